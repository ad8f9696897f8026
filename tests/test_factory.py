import pytest
import timm
import torch
from safetensors.torch import save_file

import piip
from piip.config import MergingConfig
from piip.errors import CheckpointError, ConfigError
from piip.factory import build, create_model


def test_any_timm_networks_in_one_line():
    network = build(["test_vit", "test_vit2"], [128, 64], window_size=4).eval()
    assert [branch.arch for branch in network.config.branches] == ["test_vit2", "test_vit"]
    assert [branch.image_size for branch in network.config.branches] == [64, 128]
    with torch.no_grad():
        maps = network(torch.randn(1, 3, 100, 132))
    assert [m.shape[-2:] for m in maps] == [(25, 33), (13, 17), (7, 9), (4, 5)]


def test_blocks_are_split_evenly_between_the_interactions():
    network = build(["deit_tiny_patch16_224", "deit3_base_patch16_224"], [448, 224], num_interactions=4)
    assert network.config.branches[0].interaction_indexes == ((0, 2), (3, 5), (6, 8), (9, 11))


def test_a_convnext_on_the_largest_image_merges_level_by_level():
    network = build(["convnext_tiny", "deit3_small_patch16_224"], [256, 128], num_interactions=12)
    assert network.config.merging.kind == "hierarchical"
    assert network.strides == (4.0, 8.0, 16.0, 32.0)


def test_one_network_is_a_baseline():
    network = build(["test_vit"], [96]).eval()
    assert not network.interactions
    assert len(network(torch.randn(1, 3, 96, 96))) == 4


def test_merging_can_be_chosen():
    network = build(["test_vit", "test_vit2"], [128, 64], merging=MergingConfig("linear", pyramid_levels=()))
    assert network.strides == (16.0,)


def test_pretrained_weights_come_from_the_tags(monkeypatch):
    loaded = []
    monkeypatch.setattr(piip.factory, "load_pretrained", lambda branch, source: loaded.append(source))
    build(["test_vit.r160_in1k", "test_vit2.r160_in1k"], [128, 64], pretrained=True)
    assert loaded == ["test_vit2.r160_in1k", "test_vit.r160_in1k"]


def test_timm_names_without_a_tag_mean_timms_default_weights():
    network = build(["test_vit", "vit_base_patch16_gap_224"], [128, 64], num_interactions=2)
    assert [branch.pretrained for branch in network.config.branches] == [None, "test_vit.r160_in1k"]


def test_branches_without_published_weights_are_named(monkeypatch):
    loaded = []
    monkeypatch.setattr(piip.factory, "load_pretrained", lambda branch, source: loaded.append(source))
    with pytest.warns(UserWarning, match=r"branch 2 \(deit_tiny_patch16_224\), branch 3 .*random start"):
        create_model("piip_nano_deit", pretrained=True)
    assert loaded == ["deit_tiny_patch16_224.fb_in1k"]


def test_branches_need_not_interact():
    network = build(["test_vit", "test_vit2"], [128, 64], interaction=None)
    assert not network.interactions


def test_pretrained_from_a_local_file(tmp_path):
    trunk = timm.create_model("test_vit", num_classes=0)
    save_file(trunk.state_dict(), tmp_path / "trunk.safetensors")
    branch = build(["test_vit"], [96]).config.branches[0].to_dict()
    config = build(["test_vit"], [96]).config.replace(
        branches=[branch | {"pretrained": str(tmp_path / "trunk.safetensors")}]
    )
    network = piip.factory.load_branches(piip.PIIP(config))
    assert torch.equal(network.branches[0].blocks[0].mlp.fc1.weight, trunk.blocks[0].mlp.fc1.weight)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: build(["test_vit"], [128, 64]), ConfigError, "1 networks and 2 sizes"),
        (lambda: build([], []), ConfigError, "one size per network"),
        (lambda: build(["test_vitt"], [64]), ConfigError, "Did you mean 'test_vit'"),
        (
            lambda: create_model("piip_nano", pretrained=True),
            ConfigError,
            "no pretrained weights by name for branch 1 .deit_tiny_patch16_224., branch 2",
        ),
        (lambda: build(["test_vit"], [96], num_interactions=0), ConfigError, "give 1 to"),
        (lambda: create_model("piip_tsb_1120_896_44"), ConfigError, "Did you mean 'piip_tsb_1120_896_448'"),
        (lambda: create_model("piip_nano", merge="conv"), ConfigError, "Did you mean 'merging'"),
        (
            lambda: build(["test_vit.nowhere"], [96], pretrained=True),
            CheckpointError,
            "Did you mean 'test_vit.r160",
        ),
    ],
)
def test_mistakes_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_models_by_name_take_changes():
    network = create_model("piip_nano", size_divisor=256)
    assert network.size_divisor == 256
    assert network.config.branches == piip.get_config("piip_nano").branches
    assert "piip_nano" in piip.list_models("piip_n*")
