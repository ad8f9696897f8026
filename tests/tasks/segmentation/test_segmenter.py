"""The segmenter: its description, bad input, learning."""

import pytest
import torch

from piip.errors import ConfigError, DataError
from piip.tasks.segmentation import Segmenter, SegmenterConfig
from tests.helpers import tiny_network

pytest.importorskip("transformers")


def tiny_segmenter(**changes):
    torch.manual_seed(0)
    network = tiny_network()
    described = {
        "classes": ("sky", "road", "car"),
        "in_channels": network.out_channels,
        "channels": 16,
        "crop_size": 64,
        "stride": 43,
    }
    return Segmenter(SegmenterConfig(**(described | changes)), network)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ("sky",)}, "two different classes"),
        ({"classes": ("sky", "sky")}, "two different classes"),
        ({"in_channels": (1, 2, 3)}, "four maps"),
        ({"ignore_index": 1}, "label of 'road'"),
        ({"stride": 65}, "gaps"),
        ({"dropout": 1.5}, "dropout"),
        ({"channels": 0}, "channels"),
    ],
)
def test_impossible_descriptions(changes, message):
    with pytest.raises(ConfigError, match=message):
        tiny_segmenter(**changes)


@pytest.mark.parametrize("inference", ["slide", "whole"])
def test_logits_have_the_size_of_the_image_or_another(inference):
    model = tiny_segmenter(inference=inference).eval()
    image = torch.randn(1, 3, 96, 130)
    with torch.no_grad():
        assert model(image).shape == (1, 3, 96, 130)
        assert model.segment(image, (40, 50)).shape == (1, 3, 40, 50)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(2, 64, 64), "int64"),
        (torch.zeros(2, 32, 64, dtype=torch.int64), "shape"),
        (torch.full((2, 64, 64), 3), "label 3"),
        (torch.full((2, 64, 64), -1), "label -1"),
    ],
)
def test_bad_labels(labels, message):
    with pytest.raises(DataError, match=message):
        tiny_segmenter()(torch.zeros(2, 3, 64, 64), labels)


def test_pixels_without_a_class_count_in_the_mean_only():
    model = tiny_segmenter(auxiliary=False).eval()
    image, labels = torch.randn(1, 3, 64, 64), torch.ones(1, 64, 64, dtype=torch.int64)
    labels[:, :32] = 255
    logits = model._window(image)
    kept = torch.nn.functional.cross_entropy(logits[:, :, 32:], labels[:, 32:])
    assert model(image, labels)["loss_seg"].item() == pytest.approx(kept.item() / 2, rel=1e-5)
    nothing = torch.full((1, 64, 64), 255)
    assert model(image, nothing)["loss_seg"].item() == 0


def test_it_learns_a_picture_by_heart():
    model = tiny_segmenter(dropout=0.0).train()
    image = torch.randn(2, 3, 64, 64)
    labels = torch.zeros(2, 64, 64, dtype=torch.int64)
    labels[:, 16:48, 16:48] = 1
    labels[1, :, 40:] = 2
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        sum(model(image, labels).values()).backward()
        optimizer.step()
    model.train()
    with torch.no_grad():
        found = model._window(image).argmax(1)
    assert (found == labels).float().mean() > 0.97


def test_autocast_gives_float32_logits_and_finite_losses():
    model = tiny_segmenter().train()
    image, labels = torch.randn(2, 3, 64, 64), torch.ones(2, 64, 64, dtype=torch.int64)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(image, labels)
        assert model.eval()(image).dtype == torch.float32
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize("training", [False, True])
def test_heads_stay_in_float32_under_autocast(training):
    model, seen = tiny_segmenter().train(training), []
    for part in (model.head, model.head.fpn_bottleneck, model.auxiliary):
        part.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    labels = torch.zeros(2, 64, 64, dtype=torch.int64) if training else None
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(2, 3, 64, 64), labels)
    assert set(seen) == {torch.float32}
    assert len(seen) == (3 if training else 2)
