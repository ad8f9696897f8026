"""Names that published checkpoints of single networks use, translated to timm's."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

State = dict[str, Tensor]


@dataclass(frozen=True)
class Layout:
    """How one family of checkpoints names its tensors.

    Attributes:
        marker: A name that only this layout has.
        renames: Regular expressions of its names and timm's names for them.
        finish: What cannot be said by renaming, done after it.
    """

    marker: str
    renames: tuple[tuple[str, str], ...]
    finish: Callable[[State], State] = dict

    def rename(self, key: str) -> str:
        """Return timm's name of a tensor; a name that no rule knows stays as it is."""
        for pattern, replacement in self.renames:
            key, count = re.subn(f"^{pattern}$", replacement, key)
            if count:
                return key
        return key

    def convert(self, state_dict: Mapping[str, Tensor]) -> State:
        """Return all tensors under timm's names."""
        return self.finish({self.rename(key): value for key, value in state_dict.items()})


def to_timm(state_dict: Mapping[str, Tensor]) -> State:
    """Return a checkpoint under timm's names, whatever the published layout it has."""
    state = dict(state_dict)
    for prefix in ("vision_model.", "model."):
        if state and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    for layout in LAYOUTS:
        if layout.marker in state:
            return layout.convert(state)
    return state


def _join_clip(state: State) -> State:
    """Join q, k and v, and give the class embedding and the positions timm's shapes."""
    joined = {}
    for key, value in state.items():
        part = re.match(r"(blocks\.\d+\.attn\.)q(\.weight|\.bias)$", key)
        if part:
            names = [f"{part[1]}{letter}{part[2]}" for letter in "qkv"]
            joined[f"{part[1]}qkv{part[2]}"] = torch.cat([state[name] for name in names])
        elif not re.match(r"blocks\.\d+\.attn\.[kv]\.", key):
            joined[key] = value
    joined["cls_token"] = joined["cls_token"].reshape(1, 1, -1)
    joined["pos_embed"] = joined["pos_embed"].unsqueeze(0)
    joined.pop("embeddings.position_ids", None)
    return joined


def _join_uniperceiver(state: State) -> State:
    """Add the temporal position of the first frame, a constant, to the spatial positions."""
    spatial, temporal = state.pop("spatial"), state.pop("temporal")
    return state | {"pos_embed": (spatial + temporal[0]).unsqueeze(0)}


_CLIP = Layout(
    marker="encoder.layers.0.self_attn.q_proj.weight",
    renames=(
        (r"embeddings\.class_embedding", "cls_token"),
        (r"embeddings\.position_embedding\.weight", "pos_embed"),
        (r"embeddings\.patch_embedding\.(\w+)", r"patch_embed.proj.\1"),
        (r"pre_layrnorm\.(\w+)", r"norm_pre.\1"),
        (r"post_layernorm\.(\w+)", r"norm.\1"),
        (r"encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(\w+)", r"blocks.\1.attn.\2.\3"),
        (r"encoder\.layers\.(\d+)\.self_attn\.out_proj\.(\w+)", r"blocks.\1.attn.proj.\2"),
        (r"encoder\.layers\.(\d+)\.layer_norm([12])\.(\w+)", r"blocks.\1.norm\2.\3"),
        (r"encoder\.layers\.(\d+)\.mlp\.(.+)", r"blocks.\1.mlp.\2"),
    ),
    finish=_join_clip,
)

_INTERNVIT = Layout(
    marker="encoder.layers.0.ls1",
    renames=(
        (r"embeddings\.class_embedding", "cls_token"),
        (r"embeddings\.position_embedding", "pos_embed"),
        (r"embeddings\.patch_embedding\.(\w+)", r"patch_embed.proj.\1"),
        (r"encoder\.layers\.(\d+)\.ls([12])", r"blocks.\1.ls\2.gamma"),
        (r"encoder\.layers\.(\d+)\.(.+)", r"blocks.\1.\2"),
    ),
)

_UNIPERCEIVER = Layout(
    marker="layers.0.self_attn.in_proj.weight",
    renames=(
        (r"visual_embed\.patch_embed\.spatial_pos_embed\.weight", "spatial"),
        (r"visual_embed\.patch_embed\.temporal_pos_embed\.weight", "temporal"),
        (r"visual_embed\.patch_embed\.proj\.(\w+)", r"patch_embed.proj.\1"),
        (r"visual_embed\.embeddings_norm\.(\w+)", r"norm_pre.\1"),
        (r"layers\.(\d+)\.self_attn\.in_proj\.(\w+)", r"blocks.\1.attn.qkv.\2"),
        (r"layers\.(\d+)\.self_attn\.out_proj\.(\w+)", r"blocks.\1.attn.proj.\2"),
        (r"layers\.(\d+)\.linear([12])\.(\w+)", r"blocks.\1.mlp.fc\2.\3"),
        (r"layers\.(\d+)\.gamma_([12])", r"blocks.\1.ls\2.gamma"),
        (r"layers\.(\d+)\.(norm[12]\.\w+)", r"blocks.\1.\2"),
    ),
    finish=_join_uniperceiver,
)

_CONVNEXT_HF = Layout(
    marker="encoder.stages.0.layers.0.dwconv.weight",
    renames=(
        (r"embeddings\.patch_embeddings\.(\w+)", r"stem.0.\1"),
        (r"embeddings\.layernorm\.(\w+)", r"stem.1.\1"),
        (r"layernorm\.(\w+)", r"head.norm.\1"),
        (r"encoder\.stages\.(\d+)\.downsampling_layer\.(.+)", r"stages.\1.downsample.\2"),
        (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.dwconv\.(\w+)", r"stages.\1.blocks.\2.conv_dw.\3"),
        (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.layernorm\.(\w+)", r"stages.\1.blocks.\2.norm.\3"),
        (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.pwconv([12])\.(\w+)", r"stages.\1.blocks.\2.mlp.fc\3.\4"),
        (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.layer_scale_parameter", r"stages.\1.blocks.\2.gamma"),
    ),
)

# PIIP-LLaVA renamed the layer scale of timm's ConvNeXt.
_CONVNEXT_LLAVA = Layout(
    marker="stages.0.blocks.0.weight",
    renames=((r"stages\.(\d+)\.blocks\.(\d+)\.weight", r"stages.\1.blocks.\2.gamma"),),
)

_DEIT3 = Layout(
    marker="blocks.0.gamma_1", renames=((r"blocks\.(\d+)\.gamma_([12])", r"blocks.\1.ls\2.gamma"),)
)

LAYOUTS = (_CLIP, _INTERNVIT, _UNIPERCEIVER, _CONVNEXT_HF, _CONVNEXT_LLAVA, _DEIT3)
