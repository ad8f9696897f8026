"""Small networks and deterministic weights that several test files use."""

import math
import re
import zlib
from collections.abc import Mapping

import pytest
import torch
from torch import nn

from piip.config import BranchConfig, InteractionConfig, MergingConfig, PIIPConfig
from piip.convert.detector import head_names
from piip.convert.dino import dino_name
from piip.convert.names import network_name, split_branch
from piip.network import PIIP

ONEDNN_DTYPES = {torch.float32}
"""What oneDNN multiplies on this processor."""
if hasattr(torch.ops.mkldnn, "_linear_pointwise") and torch.ops.mkldnn._is_mkldnn_bf16_supported():
    ONEDNN_DTYPES.add(torch.bfloat16)

needs_bfloat16 = pytest.mark.skipif(
    torch.bfloat16 not in ONEDNN_DTYPES, reason="oneDNN multiplies no bfloat16 on this processor"
)

TINY_INTERACTION = InteractionConfig(num_heads=4, drop_path_rate=0.1)


def tiny_branch(dim: int, size: int, **changes) -> BranchConfig:
    """A ViT branch of two blocks."""
    options = {"embed_dim": dim, "depth": 2, "num_heads": 2, "img_size": 64} | changes.pop("options", {})
    settings = {"interaction_indexes": ((0, 0), (1, 1)), "arch": "vit_base_patch16_224", "image_size": size}
    return BranchConfig(options=options, **(settings | changes))


def tiny_config(**changes) -> PIIPConfig:
    """Three branches, 64 / 48 / 32 wide, reading 64 / 96 / 128 pixels."""
    branches = (tiny_branch(64, 64), tiny_branch(48, 96, window_size=3), tiny_branch(32, 128))
    return PIIPConfig(**({"branches": branches, "interaction": TINY_INTERACTION} | changes))


def tiny_network(**changes) -> PIIP:
    """A three-branch network whose every parameter matters, in evaluation mode."""
    return fill(PIIP(tiny_config(**changes))).eval()


def rotary_config() -> PIIPConfig:
    """A DINOv3 with windows on the large image, a ViT on the small one."""
    dinov3 = BranchConfig(
        "vit_small_patch16_dinov3",
        128,
        ((0, 0), (1, 1)),
        window_size=(3, None),
        options={"embed_dim": 48, "depth": 2, "num_heads": 2},
    )
    return PIIPConfig((tiny_branch(64, 64), dinov3), TINY_INTERACTION)


def without_drop_path(config: PIIPConfig) -> PIIPConfig:
    """The same network without randomness in training."""
    return config.replace(interaction=config.interaction.replace(drop_path_rate=0.0))


def hierarchical_config() -> PIIPConfig:
    """A ConvNeXt on the large image, a ViT on the small one, merged level by level."""
    ranges = ((0, 0), (1, 2), (3, 4), (5, 6))
    convnext = {"dims": (32, 32, 64, 64), "depths": (1, 1, 1, 1)}
    return PIIPConfig(
        branches=(
            tiny_branch(64, 64, interaction_indexes=((0, 0), (1, 1), (2, 2), (3, 3)), options={"depth": 4}),
            BranchConfig("convnext_tiny", 128, ranges, options=convnext),
        ),
        interaction=TINY_INTERACTION,
        merging=MergingConfig("hierarchical", out_interactions=(0, 1, 2)),
    )


@torch.no_grad()
def fill(module: nn.Module) -> nn.Module:
    """Give every parameter values that depend only on its name and shape, the same on every machine."""
    for name, parameter in module.named_parameters():
        parameter.copy_(pattern(name, parameter.shape))
    return module


def pattern(name: str, shape: torch.Size) -> torch.Tensor:
    """Values like random ones, from a formula: scaled for depth, around 1 for norms and gates."""
    count = math.prod(shape)
    phase = zlib.crc32(name.encode()) % 10007
    values = torch.sin(torch.arange(count, dtype=torch.float64) * 12.9898 + phase) * 43758.5453
    values = ((values - values.floor()) - 0.5).to(torch.float32).reshape(shape)
    if len(shape) > 1:
        fan_in = count / shape[0]
        return values * (2 / math.sqrt(fan_in))
    centred = name.endswith("weight") or "gamma" in name or "gate" in name or "weights." in name
    return values + 1.0 if centred else values


def our_name(key: str) -> str | None:
    """Our name of a tensor of a network of plain ViT or InternViT branches of the original."""
    inside = split_branch(key)
    if inside is None:
        return network_name(key, MergingConfig())
    index, rest = inside
    return f"branches.{index}." + re.sub(r"gamma_([12])$", r"ls\1.gamma", rest)


def official_heads(ours: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A detector's heads under the original's names."""
    numbers = [int(key.split(".")[1]) for key in ours if key.startswith("box_heads.")]
    stages = max(numbers, default=-1) + 1
    masks = any(key.startswith("mask_head") for key in ours)
    names = {new: old for old, new in head_names(masks, stages).items()}
    return {names[name]: tensor for name, tensor in ours.items()}


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference relative to the largest value expected."""
    assert actual.shape == expected.shape
    actual, expected = actual.detach(), expected.detach()
    return float((actual - expected).abs().max() / expected.abs().max())


def official_dino(heads):
    """Return the tensors of a DINO's heads under the original's names."""
    names = {dino_name(name): name for name in _official_dino_names()}
    return {names[name]: tensor for name, tensor in heads.items()}


def _official_dino_names():
    """Yield the original's names of all tensors of a DINO with up to six layers."""
    both = ("weight", "bias")
    for i in range(4):
        for kind in ("conv.weight", "gn.weight", "gn.bias"):
            yield from (f"neck.convs.{i}.{kind}", f"neck.extra_convs.{i}.{kind}")
    inside = "bbox_head.transformer"
    yield from (f"{inside}.level_embeds", f"{inside}.query_embed.weight", "bbox_head.label_embedding.weight")
    parts = [
        "enc_output",
        "enc_output_norm",
        "decoder.norm",
        "decoder.ref_point_head.0",
        "decoder.ref_point_head.2",
    ]
    deformable = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
    for i in range(6):
        for kind, number in (("encoder", 0), ("decoder", 1)):
            layer = f"{kind}.layers.{i}"
            parts += [f"{layer}.attentions.{number}.{part}" for part in deformable]
            parts += [f"{layer}.ffns.0.layers.0.0", f"{layer}.ffns.0.layers.1"]
            parts += [f"{layer}.norms.{n}" for n in range(2 + number)]
        attention = f"{inside}.decoder.layers.{i}.attentions.0.attn"
        yield from (f"{attention}.in_proj_{kind}" for kind in both)
        parts.append(f"decoder.layers.{i}.attentions.0.attn.out_proj")
    yield from (f"{inside}.{part}.{kind}" for part in parts for kind in both)
    for i in range(7):
        yield from (f"bbox_head.cls_branches.{i}.{kind}" for kind in both)
        yield from (f"bbox_head.reg_branches.{i}.{layer}.{kind}" for layer in (0, 2, 4) for kind in both)
