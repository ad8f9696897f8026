"""The feature extractor behaves like timm's own, and timm's optimisers group its parameters as they should."""

import pytest
import timm
import torch
from timm.models import group_parameters
from timm.models._features import FeatureGetterNet, feature_take_indices
from timm.optim import create_optimizer_v2, param_groups_layer_decay

from piip.bridges.timm import FeatureExtractor
from piip.config import BranchConfig, MergingConfig, PIIPConfig
from piip.errors import ConfigError
from piip.network import PIIP
from piip.train.optimizer import layer_decay_groups
from tests.branches.test_families import CASES
from tests.helpers import TINY_INTERACTION, hierarchical_config, tiny_branch, tiny_config, tiny_network

NO_MERGING = MergingConfig("none", ())


def image():
    return torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))


def features(model, *args, **options):
    with torch.no_grad():
        return model(*args, **options)


def equal(maps, expected):
    return len(maps) == len(expected) and all(map(torch.equal, maps, expected))


def extractor_of(*branches, **changes):
    return FeatureExtractor(PIIP(PIIPConfig(branches, **({"interaction": TINY_INTERACTION} | changes))))


def deep_extractor(*depths):
    """Branches of so many blocks, in a range of one and a range of the others."""
    ranges = [((0, 0), (1, depth - 1)) for depth in depths]
    return extractor_of(
        *(
            tiny_branch(32, 128, options={"depth": d}, interaction_indexes=r)
            for d, r in zip(depths, ranges, strict=True)
        )
    )


@pytest.mark.parametrize("indices", [None, 2, (0, 3), (-1,), (-1, 1), [2, 0]])
def test_features_are_the_chosen_maps(indices):
    network = tiny_network()
    extractor = FeatureExtractor(network, indices)
    maps = features(network, image())
    taken = sorted(feature_take_indices(len(maps), indices)[0])
    chosen = features(extractor, image())
    assert equal(chosen, [maps[index] for index in taken])
    info = extractor.feature_info
    assert len(info) == 4
    assert info.channels() == [feature.shape[1] for feature in chosen]
    assert info.reduction() == [128 // feature.shape[3] for feature in chosen]
    assert info.module_name() == [f"output{index}" for index in taken]
    assert [entry["index"] for entry in info.get_dicts()] == taken
    assert all(type(stride) is int for stride in info.reduction())


def test_intermediates_are_those_of_timms_pyramids():
    extractor = FeatureExtractor(tiny_network(), (0,))
    maps = features(extractor.network, image())
    final, intermediates = features(extractor.forward_intermediates, image())
    assert equal([final, *intermediates], [maps[-1], *maps])
    options = {"indices": (1, -1), "intermediates_only": True, "norm": True, "stop_early": True}
    assert equal(features(extractor.forward_intermediates, image(), **options), [maps[1], maps[3]])
    convnext = timm.create_model("convnext_tiny", **CASES["convnext_tiny"], num_classes=0)
    shapes = [feature.shape[2:] for feature in features(convnext.forward_intermediates, image())[1]]
    assert shapes == [feature.shape[2:] for feature in intermediates]


def test_timms_own_wrapper_takes_it():
    extractor = FeatureExtractor(tiny_network())
    wrapped = FeatureGetterNet(extractor, out_indices=(1, 3))
    maps = features(extractor, image())
    assert equal(features(wrapped, image()), [maps[1], maps[3]])
    assert wrapped.feature_info.reduction() == [8, 32]


def test_maps_of_unmerged_branches_come_finest_first():
    extractor = FeatureExtractor(tiny_network(merging=NO_MERGING))
    maps = features(extractor.network, image())
    assert equal(features(extractor, image()), maps[::-1])
    assert extractor.feature_info.channels() == [32, 48, 64]
    assert extractor.feature_info.reduction() == pytest.approx([16, 64 / 3, 32])
    assert torch.equal(features(extractor.forward_intermediates, image())[0], maps[0])


def test_wrong_choices_are_refused():
    extractor = FeatureExtractor(tiny_network())
    for indices in (0, 5, (4,), (-5,), ()):
        with pytest.raises(ConfigError, match="network that has 4"):
            FeatureExtractor(extractor.network, indices)
    with pytest.raises(ConfigError, match="'NCHW' only"):
        extractor.forward_intermediates(image(), output_fmt="NLC")


@pytest.mark.parametrize("arch", [*CASES, "beit_base_patch16_224"])
def test_no_weight_decay_says_what_the_branches_timm_models_say(arch):
    options = CASES.get(arch, {"embed_dim": 48, "depth": 3, "num_heads": 3})
    reference = timm.create_model(arch, num_classes=0, **options)
    depth = 8 if arch == "convnext_tiny" else 3
    tokens = arch not in ("convnext_tiny", "beit_base_patch16_224") and reference.num_prefix_tokens > 0
    config = BranchConfig(arch, 224, ((0, depth - 1),), prefix_tokens=tokens, options=options)
    extractor = extractor_of(config, merging=NO_MERGING)
    undecayed = getattr(reference, "no_weight_decay", set)()
    published = {name: p for name, p in reference.state_dict().items() if name in undecayed}
    ours = extractor.network.branches[0].adapt_state_dict(published)
    if arch == "beit_base_patch16_224":
        ours.pop("cls_token", None)
    assert extractor.no_weight_decay() == {f"network.branches.0.{name}" for name in ours}


def test_timms_optimizer_decays_weights_alone():
    extractor = FeatureExtractor(tiny_network())
    optimizer = create_optimizer_v2(extractor, "adamw", lr=1e-3, weight_decay=0.1)
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    names = {name for name, p in extractor.named_parameters() if id(p) not in decayed}
    embeddings = {f"network.branches.{index}.pos_embed" for index in range(3)}
    assert extractor.no_weight_decay() == embeddings
    flat = {name for name, p in extractor.named_parameters() if p.ndim <= 1 or name.endswith(".bias")}
    assert names == embeddings | flat


@pytest.mark.parametrize("depths", [(2, 2, 2), (4, 2), (3, 2), (5, 3, 2)])
def test_timms_layer_decay_is_the_released_one(depths):
    extractor = deep_extractor(*depths)
    strides = [depths[0] / depth for depth in depths[1:]]
    released = layer_decay_groups(extractor, 1.0, 0.1, depths[0], 0.7, strides, "network.")
    expected = {id(p): group["lr_scale"] for group in released for p in group["params"]}
    groups = param_groups_layer_decay(extractor, layer_decay=0.7)
    assert {id(p): group["lr_scale"] for group in groups for p in group["params"]} == pytest.approx(expected)


def test_layers_ascend_from_the_stem_to_the_interactions():
    extractor = FeatureExtractor(PIIP(hierarchical_config()))
    layer_of = group_parameters(extractor, extractor.group_matcher(), reverse=True)
    assert set(layer_of) == dict(extractor.named_parameters()).keys()
    convnext, vit = "network.branches.1.blocks.{}.conv_dw.weight", "network.branches.0.blocks.{}.norm1.weight"
    assert [layer_of[convnext.format(block)] for block in (0, 2, 4, 6)] == [1, 3, 5, 7]
    assert [layer_of[vit.format(block)] for block in range(4)] == [1, 3, 5, 7]
    assert layer_of["network.branches.1.stem.0.weight"] == layer_of["network.branches.0.pos_embed"] == 0
    assert {layer for name, layer in layer_of.items() if ".branches." not in name} == {8}


def test_coarse_layers_are_ranges_of_blocks():
    extractor = deep_extractor(4, 2)
    layer_of = group_parameters(extractor, extractor.group_matcher(coarse=True), reverse=True)
    names = "network.branches.{}.blocks.{}.norm1.weight"
    assert [layer_of[names.format(0, block)] for block in range(4)] == [1, 2, 2, 2]
    assert [layer_of[names.format(1, block)] for block in range(2)] == [1, 2]
    assert max(layer_of.values()) == 3


def test_blocks_of_many_digits_are_not_confused():
    branch = tiny_branch(32, 128, options={"depth": 12}, interaction_indexes=((0, 11),))
    extractor = extractor_of(branch, interaction=None, merging=NO_MERGING)
    layer_of = group_parameters(extractor, extractor.group_matcher(), reverse=True)
    assert [layer_of[f"network.branches.0.blocks.{block}.norm1.weight"] for block in range(12)] == list(
        range(1, 13)
    )


def test_shared_branches_have_one_set_of_layers():
    extractor = extractor_of(tiny_branch(64, 64), tiny_branch(64, 128), shared_weights=True)
    assert list(extractor.group_matcher()) == ["stem", "layer1", "layer2"]
    assert extractor.no_weight_decay() == {"network.branches.0.pos_embed"}


def test_it_trains_and_comes_back(tmp_path):
    extractor = FeatureExtractor(PIIP(tiny_config())).train()
    extractor.set_grad_checkpointing()
    assert extractor.network.grad_checkpointing
    optimizer = create_optimizer_v2(extractor, "adamw", lr=1e-3, weight_decay=0.1, layer_decay=0.75)
    before = {name: p.detach().clone() for name, p in extractor.named_parameters()}
    sum(feature.square().mean() for feature in extractor(image())).backward()
    assert all(p.grad is not None for p in extractor.parameters())
    optimizer.step()
    assert not torch.equal(before["network.branches.0.pos_embed"], extractor.network.branches[0].pos_embed)
    extractor.eval()
    torch.save(extractor.state_dict(), tmp_path / "weights.pt")
    other = FeatureExtractor(PIIP(tiny_config())).eval()
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert equal(features(other, image()), features(extractor, image()))
