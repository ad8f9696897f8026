"""Tensor names of the original's DINO heads and ours (HEADS.md section 5)."""

import re
from collections.abc import Mapping

from torch import Tensor

from piip.errors import CheckpointError

_ATTENTION = r"(?P<part>sampling_offsets|attention_weights|value_proj|output_proj)\."
_LAYER = r"bbox_head\.transformer\.{}\.layers\.(?P<i>\d+)\."
_FFN = (
    (r"ffns\.0\.layers\.0\.0\.", "ffn.0."),
    (r"ffns\.0\.layers\.1\.", "ffn.2."),
    (r"norms\.(?P<n>\d)\.", "norms.{n}."),
)


def _layer(kind: str, *parts: tuple[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple((_LAYER.format(kind) + old, f"{kind}.{{i}}.{new}") for old, new in (*parts, *_FFN))


_RULES = tuple(
    (re.compile(f"^{old}(?P<rest>.*)$"), new + "{rest}")
    for old, new in (
        (r"neck\.convs\.(?P<i>\d+)\.conv\.", "neck.projections.{i}.0."),
        (r"neck\.convs\.(?P<i>\d+)\.gn\.", "neck.projections.{i}.1."),
        (r"neck\.extra_convs\.(?P<i>\d+)\.conv\.", "neck.coarser.{i}.0."),
        (r"neck\.extra_convs\.(?P<i>\d+)\.gn\.", "neck.coarser.{i}.1."),
        (r"bbox_head\.transformer\.level_embeds$", "level_embed"),
        (r"bbox_head\.transformer\.query_embed\.", "query_embed."),
        (r"bbox_head\.transformer\.enc_output\.", "encoder_output.0."),
        (r"bbox_head\.transformer\.enc_output_norm\.", "encoder_output.1."),
        *_layer("encoder", (r"attentions\.0\." + _ATTENTION, "attn.{part}.")),
        *_layer(
            "decoder",
            (r"attentions\.0\.attn\.", "self_attn."),
            (r"attentions\.1\." + _ATTENTION, "cross_attn.{part}."),
        ),
        (r"bbox_head\.transformer\.decoder\.ref_point_head\.", "position_head."),
        (r"bbox_head\.transformer\.decoder\.norm\.", "decoder_norm."),
        (r"bbox_head\.cls_branches\.", "class_heads."),
        (r"bbox_head\.reg_branches\.", "box_heads."),
        (r"bbox_head\.label_embedding\.", "label_embed."),
    )
)


def dino_state_dict(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the original's head tensors to those of :class:`piip.tasks.detection.DINO`.

    Args:
        official: Tensors under ``neck.`` and ``bbox_head.``.

    Raises:
        CheckpointError: A tensor belongs to no DINO.
    """
    return {dino_name(name): tensor for name, tensor in official.items()}


def dino_name(name: str) -> str:
    """Return our name of a tensor of the original's heads.

    Raises:
        CheckpointError: It belongs to no DINO.
    """
    for pattern, template in _RULES:
        found = pattern.match(name)
        if found:
            return template.format(**found.groupdict())
    raise CheckpointError(f"The tensor {name} belongs to no DINO, whose parts are neck. and bbox_head.")
