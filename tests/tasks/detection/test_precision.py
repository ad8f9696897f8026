"""Detectors in double precision, against themselves in single precision."""

import pytest
import torch

from piip.tasks.detection import DINO, RCNN, CascadeRCNN, CascadeRCNNConfig, DINOConfig, RCNNConfig
from tests.tasks.detection.dino.test_detector import SMALL as SMALL_DINO
from tests.tasks.detection.toy import CHANNELS, SMALL, TinyBackbone, scene


class ThreeMaps(TinyBackbone):
    def forward(self, x):
        return super().forward(x)[1:]


def new_dino():
    config = DINOConfig(**({"classes": ("square", "bar"), "in_channels": CHANNELS[1:]} | SMALL_DINO))
    return DINO(config, ThreeMaps())


MODELS = {
    "rcnn": lambda: RCNN(RCNNConfig(**SMALL), TinyBackbone()),
    "cascade_rcnn": lambda: CascadeRCNN(CascadeRCNNConfig(**SMALL), TinyBackbone()),
    "dino": new_dino,
}


@pytest.mark.parametrize("kind", MODELS)
def test_double_precision_finds_and_learns_the_same(kind):
    torch.manual_seed(0)
    model = MODELS[kind]().eval()
    image, target = scene()
    single = model([image])[0]
    torch.manual_seed(1)
    loss = sum(model([image], [target]).values())

    model.double()
    double = model([image.double()])[0]
    assert double.boxes.dtype == double.scores.dtype == torch.float64
    # In order of their scores; which of two boxes with nearly the same comes first is up to rounding.
    torch.testing.assert_close(double.scores.float(), single.scores, atol=1e-4, rtol=1e-4)

    torch.manual_seed(1)
    losses = model([image.double()], [target])  # targets are float32 whatever the model is
    if kind != "dino":  # whose noise of denoising differs with the type it is drawn in
        torch.testing.assert_close(sum(losses.values()).float(), loss, rtol=1e-4, atol=1e-5)
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
