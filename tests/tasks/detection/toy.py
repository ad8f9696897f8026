"""A small backbone and a scene that a detector can learn by heart."""

import torch
from torch import nn
from torch.nn import functional as F

from piip.tasks.detection.masks import decode_masks

CHANNELS = (8, 12, 16, 20)
SMALL = {
    "classes": ("square", "bar"),
    "in_channels": CHANNELS,
    "fpn_channels": 16,
    "representation_size": 32,
    "mask_channels": 16,
    "mask_depth": 2,
}
"""Settings of a small detector of two stages."""


class TinyBackbone(nn.Module):
    """Four maps of strides 4 to 32."""

    def __init__(self, channels=CHANNELS):
        super().__init__()
        widths = (3, *channels)
        self.layers = nn.ModuleList(
            nn.Conv2d(a, b, 5, 4 if i == 0 else 2, 2)
            for i, (a, b) in enumerate(zip(widths, channels, strict=False))
        )

    def forward(self, x):
        maps = []
        for layer in self.layers:
            x = F.gelu(layer(x))
            maps.append(x)
        return tuple(maps)


def scene():
    """One image of 96 x 120 pixels with a bright square and a dark bar."""
    image = torch.zeros(3, 96, 120)
    masks = torch.zeros(2, 96, 120, dtype=torch.uint8)
    masks[0, 10:42, 12:44] = 1
    masks[1, 60:84, 50:98] = 1
    image[:, masks[0] > 0] = 1.5
    image[:, masks[1] > 0] = -1.5
    boxes = torch.tensor([[12.0, 10.0, 44.0, 42.0], [50.0, 60.0, 98.0, 84.0]])
    return image, {"boxes": boxes, "labels": torch.tensor([0, 1]), "masks": masks}


def learn(model, steps, lr=5e-3):
    """Train on the scene; returns the total loss of every step."""
    image, target = scene()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    history = []
    for _ in range(steps):
        total = sum(model([image], [target]).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        schedule.step()
        history.append(total.item())
    return history


def assert_sees_the_scene(model):
    """A detector with masks finds both objects, their boxes and their masks."""
    image, target = scene()
    found = model.eval()([image])[0].filter(0.5)
    assert sorted(found.labels.tolist()) == [0, 1]
    best = found.labels.argsort()
    assert (found.boxes[best] - target["boxes"]).abs().max() < 6
    masks = torch.from_numpy(decode_masks(found.masks, found.original_size))[best]
    overlap = (masks & (target["masks"] > 0)).sum((1, 2)) / (masks | (target["masks"] > 0)).sum((1, 2))
    assert overlap.min() > 0.75
