"""Every family computes what its library computes, from the library's own weights."""

import pytest
import timm
import torch
from timm.layers import DropPath

from piip.branches import FAMILIES, build_branch, family_of
from piip.config import BranchConfig
from piip.errors import ConfigError
from piip.tokens import Tokens
from tests.helpers import fill, relative_error

# Shapes shrunk to run in milliseconds; kind, norms, positions, activations stay the architecture's own.
SMALL_VIT = {"embed_dim": 48, "depth": 3, "num_heads": 3}
CASES = {
    "vit_tiny_patch16_224": SMALL_VIT,
    "deit3_small_patch16_224": SMALL_VIT,
    "vit_small_patch14_dinov2": SMALL_VIT | {"img_size": 98},
    "vit_small_patch14_reg4_dinov2": SMALL_VIT | {"img_size": 98},
    "vit_base_patch16_clip_quickgelu_224": SMALL_VIT,
    "vit_base_patch16_siglip_224": SMALL_VIT,
    "vit_small_patch16_dinov3": SMALL_VIT | {"img_size": 112},
    "eva02_tiny_patch14_224": SMALL_VIT,
    "convnext_tiny": {"depths": (1, 2, 1, 1), "dims": (16, 24, 32, 48)},
}


def config(arch, **changes):
    options = CASES[arch]
    depth = 8 if arch.startswith("convnext") else options["depth"]
    return BranchConfig(arch, 224, ((0, depth - 1),), **({"options": options} | changes))


def reference(arch, **options):
    no_head = {} if arch.startswith("convnext") else {"global_pool": ""}
    return fill(timm.create_model(arch, num_classes=0, **no_head, **CASES[arch], **options)).eval()


def whole(branch, image) -> Tokens:
    with torch.no_grad():
        return branch.run(branch.embed(image), 0, len(branch.blocks))


@pytest.mark.parametrize("arch", CASES)
def test_equals_timm_with_its_prefix_tokens_at_the_pretraining_size(arch):
    model = reference(arch)
    prefixes = getattr(model, "num_prefix_tokens", 0)
    branch = build_branch(config(arch, prefix_tokens=prefixes > 0)).eval()
    branch.load_state_dict(branch.adapt_state_dict(model.state_dict()))
    side = CASES[arch].get("img_size", 224)
    image = torch.randn(2, 3, side, side)
    tokens = whole(branch, image)
    with torch.no_grad():
        if arch.startswith("convnext"):
            expected = model.stages(model.stem(image))
            assert relative_error(tokens.to_map(), expected) < 2e-6
            return
        model.norm = torch.nn.Identity()
        expected = model.forward_features(image)
    assert relative_error(tokens.x, expected[:, prefixes:]) < 2e-6
    if prefixes:
        assert relative_error(tokens.prefix, expected[:, :prefixes]) < 2e-6


@pytest.mark.parametrize("arch", CASES)
def test_takes_any_size_and_drops_incomplete_patches(arch):
    branch = fill(build_branch(config(arch))).eval()
    stride = max(branch.strides)
    tokens = whole(branch, torch.randn(1, 3, 5 * stride + 3, 7 * stride))
    assert tokens.grid == (5, 7)
    assert tokens.x.shape == (1, 35, branch.dims[-1])
    assert tokens.prefix is None


@pytest.mark.parametrize("arch", CASES)
def test_ranges_of_blocks_add_up(arch):
    branch = fill(build_branch(config(arch))).eval()
    image = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        tokens = branch.run(branch.run(branch.embed(image), 0, 2), 2, len(branch.blocks))
    assert relative_error(tokens.x, whole(branch, image).x) < 2e-6


@pytest.mark.parametrize("arch", [a for a in CASES if not a.startswith("convnext")])
@pytest.mark.parametrize("grid", [(6, 6), (7, 4)])
def test_one_window_over_the_grid_is_global_attention(arch, grid):
    torch.manual_seed(1)
    whole_grid = fill(build_branch(config(arch, patch_size=16))).eval()
    windowed = fill(build_branch(config(arch, patch_size=16, window_size=max(grid)))).eval()
    image = torch.randn(1, 3, 16 * grid[0], 16 * grid[1])
    difference = relative_error(whole(windowed, image).x, whole(whole_grid, image).x)
    # A window larger than the grid is filled up with tokens that take part, unmasked (SPEC 4.5).
    assert (difference < 2e-6) == (grid[0] == grid[1])


def test_windows_are_independent_of_each_other():
    branch = fill(build_branch(config("vit_small_patch16_dinov3", window_size=4, options=SMALL_VIT))).eval()
    image = torch.randn(1, 3, 128, 128)
    changed = image.clone()
    changed[..., 64:, 64:] += 1
    before, after = (whole(branch, x).x.unflatten(1, (8, 8)) for x in (image, changed))
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:, 4:], after[:, 4:, 4:])


@pytest.mark.parametrize("arch", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3"])
def test_every_window_of_a_uniform_image_is_treated_alike(arch):
    # Without absolute positions (rotary ones are relative), all windows see the same.
    branch = fill(build_branch(config(arch, window_size=4, options=SMALL_VIT))).eval()
    if branch.pos_embed is not None:
        branch.pos_embed.data.zero_()
    tokens = whole(branch, torch.ones(1, 3, 128, 192)).x.unflatten(1, (8, 12))
    assert relative_error(tokens[:, 4:, 8:], tokens[:, :4, :4]) < 2e-6


@pytest.mark.parametrize("arch", CASES)
def test_checkpointing_changes_no_gradient(arch):
    branch = fill(build_branch(config(arch))).train()
    image = torch.randn(1, 3, 64, 64)
    gradients = []
    for enabled in (False, True):
        branch.zero_grad()
        branch.grad_checkpointing = enabled
        branch.run(branch.embed(image), 0, len(branch.blocks)).x.square().mean().backward()
        gradients.append(
            {name: p.grad.clone() for name, p in branch.named_parameters() if p.grad is not None}
        )
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


@pytest.mark.parametrize("arch", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3"])
def test_windowed_blocks_run_as_modules(arch):
    branch = fill(build_branch(config(arch, window_size=4))).eval()
    seen = []
    for block in branch.blocks:
        block.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    whole(branch, torch.randn(1, 3, 64, 64))
    assert seen == [(1, 16, 48)] * 3


def test_parallel_blocks_get_their_drop_path():
    settings = {"drop_path_rate": 0.2, "drop_path_decay": "constant", "options": SMALL_VIT}
    branch = build_branch(BranchConfig("vit_small_patch16_18x2_224", 224, ((0, 2),), **settings))
    drops = [m.drop_prob for m in branch.blocks[0].modules() if isinstance(m, DropPath)]
    assert drops == [0.2] * 4


@pytest.mark.parametrize("decay", ["linear", "constant"])
def test_drop_path_rates(decay):
    branch = build_branch(config("vit_tiny_patch16_224", drop_path_rate=0.4, drop_path_decay=decay))
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in branch.blocks]
    assert rates == pytest.approx([0.4] * 3 if decay == "constant" else [0.0, 0.2, 0.4])


def test_convnext_counts_downsampling_as_blocks():
    branch = build_branch(config("convnext_tiny"))
    assert branch.strides == (4, 8, 8, 8, 16, 16, 32, 32)
    assert branch.dims == (16, 24, 24, 24, 32, 32, 48, 48)
    family = family_of("convnext_tiny")
    assert family.count_blocks("convnext_tiny", {}) == 21
    assert family.count_blocks("convnext_base", {}) == 39


def test_internvit_normalises_queries_over_the_full_width():
    options = SMALL_VIT | {"img_size": 64, "patch_size": 16}
    branch = build_branch(BranchConfig("internvit_6b", 64, ((0, 2),), options=options))
    attention = branch.blocks[0].attn
    assert attention.q_norm.weight.shape == (48,)
    x = torch.randn(1, 5, 48)
    assert torch.allclose(
        attention.q_norm(x), x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt(), atol=1e-6
    )


def test_internvit_6b_has_its_published_size():
    with torch.device("meta"):
        branch = build_branch(BranchConfig("internvit_6b", 224, ((0, 47),)))
    assert sum(p.numel() for p in branch.parameters()) == pytest.approx(5.903e9, rel=1e-3)


def test_huggingface_internvit_names_load():
    options = SMALL_VIT | {"img_size": 64, "patch_size": 16}
    branch = fill(build_branch(BranchConfig("internvit_6b", 64, ((0, 2),), options=options)))
    own = branch.state_dict()
    published = {
        "embeddings.class_embedding": torch.zeros(1, 1, 48),
        "embeddings.position_embedding": torch.cat([torch.zeros(1, 1, 48), own["pos_embed"]], 1),
        "embeddings.patch_embedding.weight": own["patch_embed.proj.weight"],
        "embeddings.patch_embedding.bias": own["patch_embed.proj.bias"],
    }
    for key, value in own.items():
        if key.startswith("blocks."):
            published["encoder.layers." + key.removeprefix("blocks.").replace(".gamma", "")] = value
    adapted = branch.adapt_state_dict(published)
    assert adapted.keys() == own.keys()
    assert all(relative_error(adapted[key], own[key]) < 1e-6 for key in own)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch": "deit3_smal_patch16_224"}, "Did you mean 'deit3_small_patch16_224'"),
        ({"arch": "resnet50"}, "no ViT, Eva, BEiT or ConvNeXt"),
        ({"arch": "vit_base_patch16_siglip_224", "prefix_tokens": True}, "no class or register tokens"),
        ({"options": {"depht": 3}}, "cannot be built with options"),
        ({"arch": "convnext_tiny", "window_size": 7}, "has no window_size"),
        ({"window_size": (7, 7)}, "2 entries for 12 blocks"),
        ({"options": {"img_size": (64, 128)}}, "a grid of 4 x 8 position embeddings"),
        ({"arch": "vit_small_patch16_dinov3", "window_padding": "after_qkv"}, "before the projection only"),
        ({"arch": "beit_base_patch16_224", "window_size": (7,) * 6 + (14,) * 6}, r"mixes \[7, 14\]"),
    ],
)
def test_impossible_branches_are_refused(changes, message):
    settings = {
        "arch": "vit_tiny_patch16_224",
        "image_size": 224,
        "interaction_indexes": ((0, 11),),
    } | changes
    with pytest.raises(ConfigError, match=message):
        build_branch(BranchConfig(**settings))


def test_every_family_has_its_own_name():
    assert len({family.family for family in FAMILIES}) == len(FAMILIES)
