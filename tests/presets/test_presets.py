import pytest
import timm
import torch

import piip.presets as presets
from piip.branches import family_of
from piip.config import MAX_SIZE_DIVISOR, even_ranges
from piip.cost import executed_cost
from piip.errors import ConfigError
from piip.network import build_on_meta

NAMES = presets.list_models()
BRANCHES = {
    f"{branch.arch} {dict(branch.options)}": branch
    for name in NAMES
    for branch in presets.get_config(name).branches
}


def test_names_are_sorted_and_match_patterns():
    assert sorted(NAMES) == NAMES
    assert presets.list_models("piip_tsbl_*") == [
        "piip_tsbl_1344_896_672_448",
        "piip_tsbl_1568_1120_672_448",
        "piip_tsbl_1792_1344_896_448",
        "piip_tsbl_1792_1568_1120_448",
    ]
    assert presets.list_models("nothing*") == []


@pytest.mark.parametrize(
    ("wrong", "meant"), [("piip_tbs_1120_896_448", "piip_tsb_1120_896_448"), ("vit_b", "vit_b_1024")]
)
def test_an_unknown_name_is_answered_with_the_nearest(wrong, meant):
    with pytest.raises(ConfigError, match=f"Did you mean '{meant}'.* all {len(NAMES)}"):
        presets.get_config(wrong)


@pytest.mark.parametrize("name", NAMES)
def test_descriptions_survive_their_dictionary(name):
    config = presets.get_config(name)
    assert type(config).from_dict(config.to_dict()) == config


@pytest.mark.parametrize("name", NAMES)
def test_image_sizes_are_those_of_the_name(name):
    numbers = [int(part) for part in name.split("_") if part.isdigit()]
    sizes = [branch.image_size for branch in presets.get_config(name).branches]
    assert list(reversed(sizes)) == numbers or name.startswith("piip_nano")


@pytest.mark.parametrize("key", BRANCHES)
def test_ranges_cover_every_network(key):
    branch = BRANCHES[key]
    assert family_of(branch.arch).count_blocks(branch.arch, branch.options) == branch.depth


def test_timm_knows_the_weights():
    known = set(timm.list_pretrained())
    for branch in BRANCHES.values():
        assert (
            branch.pretrained is None or branch.pretrained.startswith("hf-hub:") or branch.pretrained in known
        )


@pytest.mark.parametrize(
    ("name", "millions", "strides"),
    [
        ("piip_tsb_1120_896_448", 175.0, (4, 8, 16, 32)),
        ("piip_lh6b_1536_1024_512", 7481.1, (4, 8, 16, 32)),
        ("piip_ct_vs_cb_1024_672_448", 178.8, (4, 8, 16, 32)),
        ("convnext_b_1024", 87.6, (4, 8, 16, 32)),
        ("piip_clip_bl_512_256_llava", 398.0, (32, 16)),
        ("piip_bbb_896_448_224_shared", 124.8, (4, 8, 16, 32)),
        ("piip_tsb_1024_768_512_dinov3", 174.7, (4, 8, 16, 32)),
    ],
)
def test_networks_have_the_right_size(name, millions, strides):
    model = build_on_meta(presets.get_config(name))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)
    assert model.strides == pytest.approx(strides)


def test_released_ranges():
    h6b = presets.get_config("piip_h6b_1024_512").branches
    assert [last - first + 1 for first, last in h6b[1].interaction_indexes] == [2] * 4 + [3] * 8
    assert len(presets.get_config("piip_lh6b_1536_1024_512").branches[0].interaction_indexes) == 4
    tiny = presets.get_config("piip_ct_cs_cb_1024_672_448").branches[2]
    assert tiny.interaction_indexes[:4] == ((0, 2), (3, 6), (7, 8), (9, 9))
    assert tiny.interaction_indexes[-2:] == ((16, 16), (17, 20))


def test_the_nano_network_is_made_for_a_cpu():
    model = build_on_meta(presets.get_config("piip_nano"))
    maps = model(torch.randn(1, 3, 512, 512, device="meta"))
    assert [feature.shape[-1] for feature in maps] == [128, 64, 32, 16]
    assert executed_cost(model, 512, 512).macs < 15e9


def shallow(config):
    """The same sizes, architectures and merging, with four blocks a branch; building is most of a test's time."""
    if config.merging.out_interactions:
        return config
    count = min(4, len(config.branches[0].interaction_indexes))
    return config.replace(branches=tuple(shallow_branch(branch, count) for branch in config.branches))


def shallow_branch(branch, count):
    depth = {"depths": (1, 1, 1, 1)} if branch.arch.startswith("convnext") else {"depth": 4}
    options = branch.options | depth
    blocks = family_of(branch.arch).count_blocks(branch.arch, options)
    return branch.replace(options=options, interaction_indexes=even_ranges(blocks, count), window_size=None)


def test_published_networks_take_their_nominal_size_as_it_is():
    configs = {  # many rows of the paper differ in interactions alone; strides come from sizes and architectures
        tuple((branch.image_size, branch.arch) for branch in config.branches): config
        for config in map(presets.get_config, NAMES)
    }
    for branches, config in configs.items():
        model = build_on_meta(shallow(config))
        assert config.image_size % model.size_divisor == 0, branches
        assert model.size_divisor <= MAX_SIZE_DIVISOR, branches
