"""Noisy copies of the objects that train the decoder beside its own queries (HEADS.md 4.7)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from piip.tasks.detection.boxes import from_centre, to_centre
from piip.tasks.detection.dino.config import DINOConfig
from piip.tasks.detection.dino.positions import inverse_sigmoid


class Denoising(NamedTuple):
    """Queries of B images: G groups of P / G slots, of which the first half is near to objects, the second far.

    Slots of images with fewer objects than others stay empty; they learn to be background.
    """

    labels: Tensor  # (B, P) noisy class, -1 in empty slots
    boxes: Tensor  # (B, P, 4) noisy boxes as logits of centre and size, 0 in empty slots
    groups: int

    def objects(self, counts: Sequence[int]) -> Tensor:
        """Return which object of its image every slot shall find, -1 for background, (B, P).

        Args:
            counts: Objects of every image.
        """
        slots = self.labels.shape[1]
        most = slots // (2 * self.groups)
        place = torch.arange(slots, device=self.labels.device)
        near = (place // max(most, 1)) % 2 == 0
        number = place % max(most, 1)
        limits = torch.tensor(counts, device=place.device)[:, None]
        return torch.where(near & (number < limits), number, -1)

    def blocked(self, num_queries: int) -> Tensor:
        """Return which query (row) may not look at which (column), (P + Q, P + Q).

        Groups do not see each other, and the detector's own queries see no group.
        """
        slots = self.labels.shape[1]
        group = torch.arange(slots, device=self.labels.device) // max(slots // self.groups, 1)
        group = torch.cat([group, group.new_full((num_queries,), self.groups)])
        foreign = group[:, None] != group
        foreign[:, slots:] = False
        return foreign


def add_noise(config: DINOConfig, boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> Denoising:
    """Return noisy copies of the objects of a batch.

    The random numbers come in the original's order, so that one seed gives the original's noise.

    Args:
        config: The detector.
        boxes: Centre and size (M_i, 4) of the objects of every image, from 0 to 1.
        labels: Their classes (M_i,).
    """
    counts = [len(b) for b in boxes]
    most = max(counts)
    groups = max(1, config.num_denoising // most) if most else 1
    copies = 2 * groups
    known, classes = torch.cat(list(boxes)).repeat(copies, 1), torch.cat(list(labels)).repeat(copies)
    image = torch.cat([torch.full((n,), i) for i, n in enumerate(counts)]).to(classes.device).repeat(copies)
    number = torch.cat([torch.arange(n) for n in counts]).to(classes.device).repeat(copies)
    copy = torch.arange(copies, device=classes.device).repeat_interleave(sum(counts))

    classes = _with_other_classes(classes, config)
    known = inverse_sigmoid(_shifted(known, copy % 2 == 1, config.box_noise))
    slot = copy * most + number
    shape = (len(counts), copies * most)
    noisy_labels = torch.full(shape, -1, device=classes.device).index_put((image, slot), classes)
    noisy_boxes = known.new_zeros(*shape, 4).index_put((image, slot), known)
    return Denoising(noisy_labels, noisy_boxes, groups)


def _with_other_classes(classes: Tensor, config: DINOConfig) -> Tensor:
    chosen = (torch.rand_like(classes, dtype=torch.float32) < config.label_noise * 0.5).nonzero()[:, 0]
    return classes.index_put((chosen,), torch.randint_like(chosen, 0, config.num_classes))


def _shifted(boxes: Tensor, far: Tensor, noise: float) -> Tensor:
    """Move corners by up to half a box, those of ``far`` copies by half to a whole one."""
    sign = torch.randint_like(boxes, 0, 2) * 2 - 1
    share = torch.rand_like(boxes) + far[:, None]
    half = boxes[:, 2:].repeat(1, 2) / 2
    return to_centre((from_centre(boxes) + sign * share * half * noise).clamp(0, 1))
