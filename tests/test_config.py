import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piip.config import (
    BranchConfig,
    InteractionConfig,
    MergingConfig,
    PIIPConfig,
    common_size_divisor,
    even_ranges,
)
from piip.errors import ConfigError
from piip.network import PIIP
from tests.helpers import hierarchical_config, tiny_branch, tiny_config


@pytest.mark.parametrize("config", [tiny_config(), hierarchical_config(), tiny_config(interaction=None)])
def test_round_trip_through_json(config):
    assert PIIPConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_replace_checks_again():
    assert tiny_config().replace(size_divisor=7).size_divisor == 7
    with pytest.raises(ConfigError, match=r"no key 'sise_divisor'. Did you mean 'size_divisor'\?"):
        tiny_config().replace(sise_divisor=7)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PIIPConfig.from_dict({}), "needs the key 'branches'"),
        (lambda: BranchConfig.from_dict({"arhc": "x"}), r"no key 'arhc'. Did you mean 'arch'\?"),
        (lambda: tiny_branch(32, 0), "image_size is 0; give a number above 0"),
        (lambda: tiny_branch(32, 64, interaction_indexes=((0, 0), (2, 2))), r"nearest valid one is \(1, 2\)"),
        (lambda: tiny_branch(32, 64, interaction_indexes=()), "at least one block range"),
        (lambda: tiny_branch(32, 64, drop_path_rate=1.0), "give a rate from 0 to below 1"),
        (lambda: tiny_branch(32, 64, window_padding="befor_qkv"), "Did you mean 'before_qkv'"),
        (lambda: tiny_branch(32, 64, window_size=7, prefix_tokens=True), "exclude each other"),
        (lambda: InteractionConfig(attention="deform"), "Did you mean 'deformable'"),
        (lambda: InteractionConfig(num_points=0), "num_points is 0"),
        (lambda: MergingConfig(kind="convs"), "Did you mean 'conv'"),
        (lambda: MergingConfig(pyramid_levels=(2, 1)), "a rising selection of 1, 2, 3, 4"),
        (lambda: MergingConfig(out_interactions=(0,)), "the other kinds make a single map"),
        (
            lambda: tiny_config(merging=MergingConfig("none", pyramid_levels=(3, 4), out_interactions=(0,))),
            "pyramid_levels must be empty",
        ),
        (lambda: MergingConfig("hierarchical", out_interactions=(0,)), "give 2 maps"),
        (lambda: tiny_config(branches=()), "at least one branch"),
        (lambda: tiny_config(merging=MergingConfig("none")), "pyramid_levels must be empty"),
        (lambda: tiny_config(interaction=InteractionConfig(links=((1, 4),))), "from 1 to 3"),
        (lambda: tiny_config(interaction=InteractionConfig(links=((1, 2), (1, 2)))), "a direction twice"),
        (lambda: tiny_config(shared_weights=True), "differ in image_size alone"),
        (
            lambda: tiny_config(
                branches=(tiny_branch(32, 64), tiny_branch(32, 64, interaction_indexes=((0, 1),)))
            ),
            "nearest common number is 1",
        ),
        (
            lambda: tiny_config(
                merging=MergingConfig("hierarchical", pyramid_levels=(1, 2), out_interactions=(5,)),
            ),
            "rising numbers from 0 to 0",
        ),
        (lambda: PIIP(tiny_config(interaction=InteractionConfig(num_heads=5))), "the nearest that does is 4"),
        (lambda: PIIP(tiny_config(branches=(tiny_branch(48, 64),) * 2)), "nearest width that works is 64"),
        (
            lambda: PIIP(tiny_config(branches=(tiny_branch(32, 64, options={"depth": 3}),))),
            "cover 2 blocks but it has 3; let the last range end at 2",
        ),
    ],
)
def test_impossible_descriptions_name_the_key_and_the_mend(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


@given(depth=st.integers(1, 60), count=st.integers(1, 60))
def test_even_ranges_cover_all_blocks(depth, count):
    if count > depth:
        with pytest.raises(ConfigError):
            even_ranges(depth, count)
        return
    ranges = even_ranges(depth, count)
    assert [block for first, last in ranges for block in range(first, last + 1)] == list(range(depth))
    lengths = {last - first + 1 for first, last in ranges}
    assert len(ranges) == count
    assert max(lengths) - min(lengths) <= 1


def test_size_divisor_gives_whole_tokens():
    assert common_size_divisor((448 / 1120, 896 / 1120, 1.0), (16, 16, 16)) == 80
    assert common_size_divisor((672 / 1568, 1120 / 1568, 1.0), (16, 16, 32)) == 224
    with pytest.raises(ConfigError, match="simpler ratios"):
        common_size_divisor((647 / 1000, 1.0), (16, 16))


def test_drop_path_rates_of_a_single_block():
    assert tiny_branch(32, 64, interaction_indexes=((0, 0),), drop_path_rate=0.1).drop_path_rates() == (0.0,)
