"""Which query finds which object, and how well it does (HEADS.md 4.8)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from piip.errors import require
from piip.tasks.detection.boxes import from_centre, giou
from piip.tasks.detection.dino.config import DINOConfig

ALPHA, GAMMA = 0.25, 2.0
TINY = 1e-12
LEAST = torch.finfo(torch.float32).eps
BACKGROUND = -1


class Objects(NamedTuple):
    """The objects of one image."""

    boxes: Tensor  # (M, 4) centre and size from 0 to 1
    labels: Tensor  # (M,)
    extent: Tensor  # (4,) width, height, width, height of the image in pixels


@torch.no_grad()
def match(config: DINOConfig, logits: Tensor, boxes: Tensor, objects: Sequence[Objects]) -> Tensor:
    """Give every object the query that suits it best, each query at most one object.

    Args:
        config: Weights of class, box and overlap.
        logits: Of K outputs for B images, (K, B, Q, C).
        boxes: Centre and size from 0 to 1, (K, B, Q, 4).
        objects: Of the B images.

    Returns:
        int64 (K, B, Q): index of the object in its image, -1 for none.
    """
    solve = require("scipy.optimize", "detect", "Matching queries with objects").linear_sum_assignment
    matched = torch.full(logits.shape[:3], BACKGROUND)
    for image, truth in enumerate(objects):
        if not len(truth.labels):
            continue
        cost = _cost(config, logits[:, image], boxes[:, image], truth)
        # A diverged training shall say so in its losses, not here.
        for output, table in enumerate(cost.nan_to_num(nan=1e9, posinf=1e9, neginf=-1e9).cpu().numpy()):
            query, number = (torch.from_numpy(index) for index in solve(table))
            matched[output, image, query] = number
    return matched.to(logits.device)


def _cost(config: DINOConfig, logits: Tensor, boxes: Tensor, truth: Objects) -> Tensor:
    """Return what it costs that a query (rows) finds an object (columns), (K, Q, M)."""
    probability = logits.sigmoid()
    found = -(probability + TINY).log() * ALPHA * (1 - probability) ** GAMMA
    missed = -(1 - probability + TINY).log() * (1 - ALPHA) * probability**GAMMA
    distance = torch.cdist(boxes, truth.boxes.expand(len(boxes), -1, -1), p=1)
    corners, wanted = (from_centre(b) * truth.extent for b in (boxes, truth.boxes))
    overlap = giou(corners[:, :, None], wanted, 1e-6)
    return (
        config.match_class * (found - missed)[..., truth.labels]
        + config.match_box * distance
        - config.match_giou * overlap
    )


def set_losses(
    config: DINOConfig, logits: Tensor, boxes: Tensor, matched: Tensor, objects: Sequence[Objects]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the losses (K,) of class, box and overlap of K outputs.

    Args:
        config: Weights of the losses.
        logits: (K, B, Q, C).
        boxes: Centre and size from 0 to 1, (K, B, Q, 4).
        matched: Index of the object of every query in its image, -1 for background, (K or 1, B, Q).
        objects: Of the B images.
    """
    matched = matched.expand(logits.shape[:3])
    output, image, query = (matched >= 0).nonzero(as_tuple=True)
    counts = torch.tensor([len(truth.labels) for truth in objects], device=matched.device)
    number = matched[output, image, query] + (counts.cumsum(0) - counts)[image]
    labels = torch.cat([truth.labels for truth in objects])[number]
    wanted = torch.cat([truth.boxes for truth in objects])[number]
    extent = torch.stack([truth.extent for truth in objects])[image]

    target = torch.zeros_like(logits)
    target[output, image, query, labels] = 1.0
    chosen = boxes[output, image, query]
    distance = (chosen - wanted).abs().sum(-1)
    overlap = 1 - giou(from_centre(chosen) * extent, from_centre(wanted) * extent, 1e-7)

    def per_output(values: Tensor) -> Tensor:
        return logits.new_zeros(len(logits)).index_add(0, output, values)

    # All outputs have as many positives: every object has its query in each of them.
    positives = _average_over_processes(logits.new_tensor(len(output) / len(logits))).clamp(min=1) + LEAST
    focal = sigmoid_focal_loss(logits, target, ALPHA, GAMMA).sum((1, 2, 3))
    # The sum over no rows at all still reaches the parameters, with gradient 0 (distributed training).
    return (
        config.loss_class * focal / positives,
        config.loss_box * per_output(distance) / positives,
        config.loss_giou * per_output(overlap) / positives,
    )


def _average_over_processes(value: Tensor) -> Tensor:
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(value)
        value = value / dist.get_world_size()
    return value
