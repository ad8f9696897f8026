"""The copy that `optimize` makes computes the same with fewer operations, and leaves the model alone."""

import copy

import pytest
import torch
from torch import nn

import piip
from piip.config import InteractionConfig, MergingConfig
from piip.errors import ConfigError
from piip.network import PIIP
from piip.tasks.classification import ClassifierConfig, ImageClassifier
from piip.tasks.detection import RCNN, RCNNConfig
from tests.helpers import (
    fill,
    hierarchical_config,
    relative_error,
    rotary_config,
    tiny_branch,
    tiny_config,
    tiny_network,
)

IMAGE = torch.linspace(-1, 1, 3 * 128 * 128).view(1, 3, 128, 128).sin()


def scaled_config():
    """Layer scales in every branch, one of them a BEiT."""
    options = {"init_values": 0.1}
    beit = tiny_branch(
        48, 96, arch="beitv2_base_patch16_224", window_size=3, options={"img_size": 224, **options}
    )
    return tiny_config(branches=(tiny_branch(64, 64, options=options), beit))


@pytest.mark.parametrize(
    "config",
    [
        tiny_config(),
        tiny_config(interaction=InteractionConfig(attention="regular", num_heads=4)),
        tiny_config(interaction=InteractionConfig(num_heads=4, ffn_ratio=None)),
        scaled_config(),
        rotary_config(),
        hierarchical_config(),
    ],
    ids=["vit", "regular", "no ffn", "layer scale", "eva", "convnext"],
)
def test_the_copy_computes_the_same(config):
    network = fill(PIIP(config)).eval()
    before = copy.deepcopy(network.state_dict())
    optimized = piip.optimize(network)
    with torch.no_grad():
        pairs = list(zip(optimized(IMAGE), network(IMAGE), strict=True))
    assert all(relative_error(fast, plain) < 1e-5 for fast, plain in pairs)
    assert not any("gate" in name or "ls1" in name or "gamma" in name for name in optimized.state_dict())
    assert not any(parameter.requires_grad for parameter in optimized.parameters())
    after = network.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_bfloat16_weights_take_float32_images():
    network = tiny_network()
    optimized = piip.optimize(network, torch.bfloat16)
    with torch.no_grad():
        fast, plain = optimized(IMAGE), network(IMAGE)
    assert {parameter.dtype for parameter in optimized.parameters()} == {torch.bfloat16}
    assert all(feature.dtype == torch.bfloat16 for feature in fast)
    assert all(relative_error(a.float(), b) < 0.05 for a, b in zip(fast, plain, strict=True))


def test_a_classifier_keeps_its_head_in_float32():
    branches = (tiny_branch(64, 64), tiny_branch(32, 128))
    network = PIIP(tiny_config(branches=branches, merging=MergingConfig("linear", pyramid_levels=())))
    classifier = fill(ImageClassifier(ClassifierConfig(5, head="merged"), network)).eval()
    optimized = piip.optimize(classifier)
    with torch.no_grad():
        assert relative_error(optimized(IMAGE), classifier(IMAGE)) < 1e-5


def test_a_detectors_laterals_move_into_the_upsamplings():
    network = tiny_network()
    config = RCNNConfig(
        classes=("a", "b"),
        in_channels=network.out_channels,
        strides=tuple(int(stride) for stride in network.strides),
        fpn_channels=32,
    )
    detector = RCNN(config, network).eval()
    optimized = piip.optimize(detector)
    with torch.no_grad():
        plain = detector.pyramid(detector.backbone(IMAGE))
        fast = optimized.pyramid(optimized.backbone(IMAGE))
    assert all(relative_error(a, b) < 1e-5 for a, b in zip(fast, plain, strict=True))
    assert optimized.config.in_channels == (32, 32, 64, 64)
    assert optimized.backbone.out_channels == (32, 32, 64, 64)
    assert [isinstance(block, nn.Identity) for block in optimized.fpn.inner_blocks] == [
        True,
        True,
        False,
        False,
    ]
    assert detector.backbone.out_channels == (64,) * 4


def test_what_cannot_be_optimized_is_named():
    with pytest.raises(ConfigError, match="Linear contains no PIIP"):
        piip.optimize(nn.Linear(2, 2))
    with pytest.raises(ConfigError, match=r"torch\.int8 is no floating-point type"):
        piip.optimize(tiny_network(), torch.int8)
