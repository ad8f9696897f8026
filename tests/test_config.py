import copy
import dataclasses
import json
import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

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


def test_descriptions_do_not_depend_on_how_they_were_written():
    written = BranchConfig("vit", 64, [[0, 0], [1, 1]], window_size=[7, None], options={"dims": [1, 2]})
    assert written == BranchConfig(
        "vit", 64, ((0, 0), (1, 1)), window_size=(7, None), options={"dims": (1, 2)}
    )
    assert PIIPConfig([written.to_dict()], None, {"kind": "none"}) == PIIPConfig(
        (written,), None, MergingConfig("none")
    )
    assert len({tiny_config(), tiny_config(), tiny_config(interaction=None)}) == 2
    assert pickle.loads(pickle.dumps(written)) == copy.deepcopy(written) == written


def test_descriptions_cannot_change():
    branch = tiny_branch(32, 64)
    with pytest.raises(dataclasses.FrozenInstanceError):
        branch.image_size = 7
    with pytest.raises(TypeError, match="does not support item assignment"):
        branch.options["depth"] = 7


def test_replace_checks_again():
    assert tiny_config().replace(size_divisor=7).size_divisor == 7
    with pytest.raises(ConfigError, match=r"no key 'sise_divisor'. Did you mean 'size_divisor'\?"):
        tiny_config().replace(sise_divisor=7)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PIIPConfig.from_dict({}), "needs the key 'branches'"),
        (lambda: BranchConfig.from_dict({"arhc": "x"}), r"no key 'arhc'. Did you mean 'arch'\?"),
        (lambda: tiny_branch(32, 0), "image_size is 0; give a number from 1"),
        (lambda: tiny_branch(32, 64, interaction_indexes=((0, 0), (2, 2))), r"nearest valid one is \(1, 2\)"),
        (lambda: tiny_branch(32, 64, interaction_indexes=()), "at least one block range"),
        (lambda: tiny_branch(32, 64, drop_path_rate=1.0), "give a number from 0 to below 1"),
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
        (lambda: tiny_branch(32, 64, window_size=0), "window_size is 0; give a number from 1"),
        (lambda: tiny_branch(32, 64, window_size=(7, -3)), r"window_size is \(7, -3\); give a number from 1"),
        (lambda: tiny_branch(32, 64, window_size=7.5), "window_size is 7.5; give a whole number or a list"),
        (
            lambda: tiny_branch(32, 64, interaction_indexes=5),
            r"is 5; give a list with \[a whole number, a whole",
        ),
        (lambda: tiny_branch(32, 64, interaction_indexes=[[0]]), r"is \[\[0\]\]; give a list"),
        (lambda: tiny_branch(32, 64, prefix_tokens="false"), "prefix_tokens is 'false'; give true or false"),
        (lambda: tiny_branch(32, math.nan), "image_size is nan; give a whole number"),
        (lambda: tiny_branch(32, 64, options={"norm_layer": nn.LayerNorm}), "a dictionary of numbers, texts"),
        (lambda: tiny_config(size_divisor=1.5), "size_divisor is 1.5; give a whole number or null"),
        (
            lambda: tiny_config(interaction="none"),
            "is 'none'; give InteractionConfig or its dictionary or null",
        ),
        (lambda: tiny_config(merging="conv"), "is 'conv'; give MergingConfig or its dictionary"),
        (lambda: tiny_config(branches=3), "branches is 3; give a list"),
        (lambda: InteractionConfig(value_ratio=math.inf), "value_ratio is inf; give a number"),
        (lambda: InteractionConfig(links="12"), "links is '12'; give a list"),
        (lambda: PIIPConfig.from_dict([1]), r"PIIPConfig is \[1\]; give a dictionary"),
        (lambda: PIIP(tiny_config(interaction=InteractionConfig(value_ratio=0.001))), "value_ratio is 0.001"),
        (
            lambda: PIIP(tiny_config(interaction=InteractionConfig(num_heads=4, ffn_ratio=0.001))),
            "ffn_ratio is 0.001",
        ),
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
    assert common_size_divisor((647 / 1000, 1.0), (16, 16)) is None


def test_drop_path_rates_of_a_single_block():
    assert tiny_branch(32, 64, interaction_indexes=((0, 0),), drop_path_rate=0.1).drop_path_rates() == (0.0,)
