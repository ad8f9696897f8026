import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounter

from piip.config import InteractionConfig, MergingConfig
from piip.errors import ConfigError, DataError
from piip.network import PIIP, build_on_meta
from piip.pyramid import image_pyramid
from piip.tokens import Tokens
from tests.helpers import (
    fill,
    hierarchical_config,
    relative_error,
    rotary_config,
    tiny_branch,
    tiny_config,
    tiny_network,
    without_drop_path,
)

NETWORK = tiny_network()


def two_branches():
    return tiny_config(branches=(tiny_branch(64, 64), tiny_branch(32, 128)))


@settings(max_examples=25)
@given(height=st.integers(20, 260), width=st.integers(20, 260))
def test_maps_cover_any_image(height, width):
    with torch.no_grad():
        maps = NETWORK(torch.randn(1, 3, height, width))
    for feature, stride in zip(maps, (4, 8, 16, 32), strict=True):
        assert feature.shape == (1, 64, -(-height // stride), -(-width // stride))
        assert torch.isfinite(feature).all()


def test_padding_is_what_the_caller_would_have_padded():
    image = torch.randn(1, 3, 120, 200)
    padded = torch.nn.functional.pad(image, (0, -200 % NETWORK.size_divisor, 0, -120 % NETWORK.size_divisor))
    with torch.no_grad():
        for cropped, whole in zip(NETWORK(image), NETWORK(padded), strict=True):
            assert torch.equal(cropped, whole[..., : cropped.shape[-2], : cropped.shape[-1]])


def test_every_branch_sees_whole_tokens_of_the_same_view():
    # 64/96/128: half and three quarters of a multiple of 64 are multiples of 16, and of 32 at the output.
    assert NETWORK.size_divisor == 64
    tokens = NETWORK.forward_features(NETWORK.pad(torch.randn(1, 3, 100, 140)))[-1]
    assert [t.grid for t in tokens] == [(4, 6), (6, 9), (8, 12)]


@pytest.mark.parametrize("branches", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["none", "linear", "conv"])
def test_any_number_of_branches_and_merging(branches, kind):
    sizes = (64, 96, 128, 160)[:branches]
    levels = (1, 2, 3, 4) if kind == "conv" or (kind == "none" and branches == 1) else ()
    config = tiny_config(
        branches=tuple(tiny_branch(32, size) for size in sizes),
        merging=MergingConfig(kind, pyramid_levels=levels),
    )
    network = PIIP(config).eval()
    with torch.no_grad():
        maps = network(torch.randn(2, 3, sizes[-1], sizes[-1]))
    assert len(maps) == len(network.out_channels) == len(network.strides)
    for feature, channels, stride in zip(maps, network.out_channels, network.strides, strict=True):
        assert feature.shape == (2, channels, *[round(sizes[-1] / stride)] * 2)


def test_hierarchical_merging_follows_the_output_branch():
    network = fill(PIIP(hierarchical_config())).eval()
    assert network.strides == (4.0, 8.0, 16.0, 32.0)
    with torch.no_grad():
        maps = network(torch.randn(1, 3, 128, 192))
    assert [tuple(m.shape[1:]) for m in maps] == [(64, 32, 48), (64, 16, 24), (64, 8, 12), (64, 4, 6)]


def test_stages_of_a_single_branch():
    stages = MergingConfig("none", pyramid_levels=(2, 4), out_interactions=(0,))
    network = PIIP(tiny_config(branches=(tiny_branch(32, 64),), merging=stages)).eval()
    assert network.strides == (8.0, 32.0)
    convnext = hierarchical_config().branches[1]
    stages = MergingConfig("none", out_interactions=(0, 1, 2))
    network = PIIP(tiny_config(branches=(convnext,), merging=stages)).eval()
    assert network.strides == (4.0, 8.0, 16.0, 32.0)
    assert network.out_channels == (32, 32, 64, 64)
    assert [m.shape[1] for m in network(torch.randn(1, 3, 64, 96))] == [32, 32, 64, 64]


def test_whole_sizes_lose_no_pixel_to_rounding():
    # 240 / 352 * 352 is 239.99999999999997 in floating point.
    assert image_pyramid(torch.zeros(1, 3, 352, 352), (240 / 352, 1.0))[0].shape[-2:] == (240, 240)


def test_dino_levels():
    network = PIIP(tiny_config(merging=MergingConfig(pyramid_levels=(2, 3, 4))))
    assert network.strides == (8.0, 16.0, 32.0)


def test_untrained_interactions_change_nothing():
    config = tiny_config()
    network = PIIP(config).eval()
    alone = PIIP(config.replace(interaction=None)).eval()
    alone.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("interactions")})
    image = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        for with_interactions, without in zip(network(image), alone(image), strict=True):
            assert torch.equal(with_interactions, without)


@pytest.mark.parametrize(
    "changes",
    [
        {"attention": "regular"},
        {"projection": False},
        {"norm": "none"},
        {"projection": False, "norm": "none", "ffn_ratio": None},
        {"links": ((1, 2),)},
        {"links": ((3, 1), (1, 2), (2, 3))},
    ],
)
def test_kinds_of_interaction(changes):
    interaction = InteractionConfig(**({"num_heads": 4} | changes))
    network = fill(PIIP(tiny_config(interaction=interaction))).eval()
    network(torch.randn(1, 3, 128, 128))[0].square().mean().backward()
    gates = {n: p for n, p in network.named_parameters() if n.endswith("gate") and "interactions.0" in n}
    assert gates
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in gates.values())


def test_features_flow_only_along_links():
    # Only branch 1 is read at the end of the last link, so a one-way link 3 -> 2 cannot reach branch 1.
    config = tiny_config(interaction=InteractionConfig(num_heads=4, links=((3, 2),)))
    network = fill(PIIP(config)).eval()
    image = torch.randn(1, 3, 128, 128)
    before = network.forward_features(image)[-1]
    with torch.no_grad():
        network.branch(2).patch_embed.proj.bias += 1
    after = network.forward_features(image)[-1]
    assert torch.equal(before[0].x, after[0].x)
    assert not torch.equal(before[1].x, after[1].x)


def test_both_directions_of_a_unit_read_the_old_tokens():
    network = tiny_network()
    unit = network.interactions[0].units["1_2"]
    tokens = network.forward_features(torch.randn(1, 3, 128, 128))[-1]
    lower, higher = unit(tokens[0], tokens[1])
    assert torch.equal(lower.x, unit.to_lower(tokens[0], tokens[1]).x)
    assert torch.equal(higher.x, unit.to_higher(tokens[1], tokens[0]).x)


def test_shared_weights_are_one_network():
    branches = tuple(tiny_branch(32, size) for size in (64, 96, 128))
    config = tiny_config(branches=branches, shared_weights=True)
    network = fill(PIIP(config)).eval()
    assert len(network.branches) == 1
    alone = PIIP(dataclasses.replace(config, branches=branches[-1:]))
    trunk = sum(p.numel() for p in alone.branches.parameters())
    assert sum(p.numel() for p in network.branches.parameters()) == trunk
    assert len(network(torch.randn(1, 3, 128, 128))) == 4


def test_parameter_direct_pyramids_merge_at_the_largest_image():
    branches = (tiny_branch(64, 128), tiny_branch(48, 96), tiny_branch(32, 64))
    network = PIIP(tiny_config(branches=branches)).eval()
    assert network.config.output_branch == 0
    assert network(torch.randn(1, 3, 128, 128))[2].shape == (1, 64, 8, 8)


def test_equal_sizes_read_the_same_image():
    branches = (tiny_branch(64, 96), tiny_branch(32, 96))
    network = PIIP(tiny_config(branches=branches)).eval()
    assert network.size_divisor == 32
    assert [m.shape[-1] for m in network(torch.randn(1, 3, 96, 96))] == [24, 12, 6, 3]


def test_gradient_checkpointing_keeps_gradients():
    network = tiny_network().train()
    for module in network.modules():
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
    image = torch.randn(1, 3, 128, 128)
    gradients = []
    for enabled in (False, True):
        network.zero_grad()
        network.set_grad_checkpointing(enabled)
        sum(feature.square().mean() for feature in network(image)).backward()
        gradients.append([p.grad.clone() for p in network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_every_parameter_learns():
    network = tiny_network().train()
    sum(feature.square().mean() for feature in network(torch.randn(2, 3, 128, 128))).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


def test_autocast_stays_close_and_float64_runs():
    image = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        exact = NETWORK(image)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = NETWORK(image)
        double = tiny_network().double()(image.double())
    for a, b, c in zip(exact, half, double, strict=True):
        assert relative_error(b.float(), a) < 0.1
        assert relative_error(a.double(), c) < 1e-5


def test_frozen_branches_stay_as_they_are():
    network = tiny_network().freeze([1, 3]).train()
    assert not network.branch(0).training
    assert network.branch(1).training
    sum(feature.mean() for feature in network(torch.randn(1, 3, 128, 128))).backward()
    assert all(p.grad is None for p in network.branch(0).parameters())
    assert any(p.grad is not None for p in network.branch(1).parameters())
    with pytest.raises(ConfigError, match="no branch 4"):
        network.freeze([4])
    assert network.train().frozen == {1, 3}


@pytest.mark.parametrize(
    ("config", "training"),
    [(two_branches(), False), (tiny_config(), True), (hierarchical_config(), True), (rotary_config(), True)],
)
def test_compiles_without_graph_breaks(config, training):
    network = fill(PIIP(without_drop_path(config))).train(training)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True, dynamic=False)
    image = torch.randn(1, 3, 100, 140)
    results = []
    for model in (compiled, network):
        network.zero_grad()
        maps = model(image)
        sum(m.square().mean() for m in maps).backward()
        results.append([*maps, *(p.grad for p in network.parameters())])
    for a, b in zip(*results, strict=True):
        assert (a is None) == (b is None)
        assert a is None or relative_error(a, b) < 1e-4


def test_one_dynamic_graph_serves_all_sizes():
    network = fill(PIIP(two_branches())).eval()
    counter = CompileCounter()
    compiled = torch.compile(network, backend=counter, fullgraph=True, dynamic=True)
    for height, width in ((128, 160), (160, 128), (192, 224), (150, 200), (256, 160)):
        image = torch.linspace(-1, 1, 3 * height * width).view(1, 3, height, width).sin()
        with torch.no_grad():
            pairs = list(zip(compiled(image), network(image), strict=True))
        assert all(relative_error(fast, plain) < 1e-5 for fast, plain in pairs)
    assert counter.frame_count == 1


def test_merged_maps_are_summed_in_float32():
    merging = tiny_network().mergings[0].bfloat16()
    tokens = [Tokens(torch.randn(1, 16, dim).bfloat16(), (4, 4), None) for dim in (64, 48, 32)]
    with torch.no_grad():
        maps = [projection(t.to_map()) for projection, t in zip(merging.projections, tokens, strict=True)]
        exact = sum(m.double() * w.double() for m, w in zip(maps, merging.weights, strict=True))
        merged = merging(tokens)
    assert merged.dtype == torch.bfloat16
    assert relative_error(merged.double(), exact) < 2**-8


def test_billions_of_parameters_build_on_the_meta_device():
    ranges = tuple((4 * k, 4 * k + 3) for k in range(12))
    small = tuple((k, k) for k in range(12))
    branches = (
        tiny_branch(1, 224, arch="internvit_6b", interaction_indexes=ranges, options={}, patch_size=16),
        tiny_branch(1, 448, arch="deit3_base_patch16_224", interaction_indexes=small, options={}),
    )
    branches = tuple(dataclasses.replace(branch, options={}) for branch in branches)
    network = build_on_meta(tiny_config(branches=branches, interaction=InteractionConfig()))
    assert sum(p.numel() for p in network.parameters()) > 6e9


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(3, 128, 128), r"shape \(B, 3, H, W\)"),
        (torch.zeros(1, 4, 128, 128), r"\(1, 4, 128, 128\)"),
        (torch.zeros(1, 3, 128, 128, dtype=torch.uint8), "torch.uint8"),
    ],
)
def test_wrong_images_are_refused(image, message):
    with pytest.raises(DataError, match=message):
        NETWORK(image)


def test_images_too_small_for_a_branch_are_refused():
    network = PIIP(tiny_config(size_divisor=1))
    with pytest.raises(DataError, match=r"Branch 1 .* needs at least 16 x 16"):
        network(torch.zeros(1, 3, 30, 30))
