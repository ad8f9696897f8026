"""The original's small Mask R-CNN, loaded into our detector."""

import json

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from piip.convert.detector import detector_state_dict
from piip.data.geometry import ImageMeta
from piip.tasks.detection import RCNN, RCNNConfig

CONFIG = RCNNConfig(
    classes=("a", "b", "c", "d", "e"),
    in_channels=(24, 32, 40, 48),
    pad_divisor=32,
    fpn_channels=32,
    representation_size=48,
    mask_channels=32,
)


class FixedMaps(nn.Module):
    """A backbone whose maps are given."""

    def __init__(self, maps):
        super().__init__()
        self.maps = maps

    def forward(self, batch):
        assert batch.shape == (2, 3, 224, 288)
        return self.maps


def load(shared, name):
    return load_file(shared / "golden" / "heads" / f"{name}.safetensors")


def detector(shared):
    maps = [load(shared, "maskrcnn_infer")[f"in.{i}"] for i in range(4)]
    model = RCNN(CONFIG, FixedMaps(maps))
    model.load_state_dict(detector_state_dict(load(shared, "maskrcnn_weights")))
    return model.eval()


def metas(shared):
    entries = json.loads((shared / "golden" / "heads" / "maskrcnn_infer.json").read_text())["metas"]
    return [
        ImageMeta(
            i, f"{i}.png", tuple(m["ori_shape"][:2]), tuple(m["img_shape"][:2]), tuple(m["scale_factor"][:2])
        )
        for i, m in enumerate(entries)
    ]


def unpack(bits, width):
    return torch.from_numpy(np.unpackbits(bits.numpy(), axis=-1)[..., :width])


def assert_close(ours, reference, tolerance=2e-5):
    assert ours.shape == reference.shape
    if reference.numel():
        torch.testing.assert_close(ours, reference, rtol=0, atol=tolerance * float(reference.abs().max()))
