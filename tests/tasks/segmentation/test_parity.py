"""UperNet against the original (golden/heads/upernet_*)."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from piip.convert.segmenter import segmenter_name, segmenter_state_dict
from piip.meta import on_meta
from piip.tasks.segmentation import Segmenter, SegmenterConfig
from piip.tasks.segmentation.inference import resize_logits
from tests.helpers import relative_error

pytest.importorskip("transformers")

CONFIG = SegmenterConfig(
    classes=tuple("abcdefg"), in_channels=(12, 16, 20, 24), channels=20, crop_size=64, stride=43
)


class FixedMaps(nn.Module):
    """A backbone whose maps are given."""

    def __init__(self, maps):
        super().__init__()
        self.maps = maps

    def forward(self, image):
        return self.maps


class Stub(nn.Module):
    """The backbone of upernet_slide: map i = sin(3 * conv1x1(average pool by 4 * 2^i))."""

    def __init__(self):
        super().__init__()
        self.stub = nn.ModuleList(nn.Conv2d(3, width, 1) for width in CONFIG.in_channels)

    def forward(self, image):
        return [
            torch.sin(3 * convolution(F.avg_pool2d(image, 4 * 2**i)))
            for i, convolution in enumerate(self.stub)
        ]


def load(shared, name):
    return load_file(shared / "golden" / "heads" / f"{name}.safetensors")


def with_weights(shared, config, backbone):
    weights = load(shared, "upernet_weights")
    model = Segmenter(config, backbone)
    heads = {k: v for k, v in weights.items() if not k.startswith("backbone.")}
    state = segmenter_state_dict(heads)
    if isinstance(backbone, Stub):
        state |= {k: v for k, v in weights.items() if k.startswith("backbone.")}
    model.load_state_dict(state)
    return model.eval()


@pytest.fixture
def golden(shared):
    return load(shared, "upernet_heads")


@pytest.fixture
def model(shared, golden):
    return with_weights(shared, CONFIG, FixedMaps([golden[f"in.{i}"] for i in range(4)]))


@torch.no_grad()
def test_logits_of_both_heads(golden, model):
    maps = model.backbone.maps
    assert relative_error(model.head(maps), golden["decode_logits"]) < 1e-5
    assert relative_error(model.auxiliary(maps), golden["aux_logits"]) < 1e-5
    resized = resize_logits(model.head(maps), (96, 128))[..., ::3, ::3]
    assert relative_error(resized, golden["upsampled_logits"]) < 1e-5


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_losses_gradients_and_running_statistics(mode, golden, model):
    model.train(mode == "train")
    for head in (model.head, model.auxiliary):
        head.classifier.dropout = 0.0
    losses = model(torch.zeros(2, 3, 96, 128), golden["gt"][:, 0])
    assert losses["loss_seg"].item() == pytest.approx(golden[f"{mode}_loss.decode.loss_ce"].item(), rel=1e-5)
    assert losses["loss_aux"].item() == pytest.approx(golden[f"{mode}_loss.aux.loss_ce"].item(), rel=1e-5)
    sum(losses.values()).backward()
    ours = dict(model.named_parameters())
    norms = {k.split(".", 1)[1]: v for k, v in golden.items() if k.startswith(f"{mode}_gradnorm.")}
    assert len(norms) == len(ours)
    for name, norm in norms.items():
        assert ours[segmenter_name(name)].grad.norm().item() == pytest.approx(norm.item(), rel=1e-4, abs=1e-7)
    after = {k.removeprefix("train_after."): v for k, v in golden.items() if k.startswith("train_after.")}
    if mode == "train":
        state = model.state_dict()
        assert all(relative_error(state[segmenter_name(k)], v) < 1e-5 for k, v in after.items())


@torch.no_grad()
def test_windows_and_the_whole_image(shared):
    golden = load(shared, "upernet_slide")
    meta = json.loads((shared / "golden" / "heads" / "upernet_slide.json").read_text())["meta"][0]
    size = tuple(meta["ori_shape"][:2])
    model = with_weights(shared, CONFIG, Stub())
    assert relative_error(model.segment(golden["img"]), golden["slide_logits_net"]) < 1e-5
    in_windows = model.segment(golden["img"], size)
    assert relative_error(in_windows, golden["slide_logits_ori"]) < 1e-5
    assert torch.equal(in_windows.argmax(1), golden["pred"])
    whole = with_weights(shared, CONFIG.replace(inference="whole"), Stub())
    assert relative_error(whole.segment(golden["img"], size), golden["whole_logits_ori"]) < 1e-5


def test_every_tensor_of_the_released_heads_has_its_place(shared):
    keys = json.loads((shared / "golden" / "heads" / "keys_released.json").read_text())
    released = next(table for name, table in keys.items() if "upernet" in name.lower())
    released = {k: v for k, v in released.items() if k.startswith(("decode_head.", "auxiliary_head."))}
    classes = tuple(map(str, range(150)))
    with on_meta():
        model = Segmenter(SegmenterConfig(classes, (3200,) * 4, channels=1536), nn.Identity())
    ours = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert {segmenter_name(name): list(shape) for name, shape in released.items()} == ours
