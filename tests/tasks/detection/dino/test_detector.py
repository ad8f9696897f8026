"""DINO by its own rights: what it refuses, what it learns from, and that it learns."""

import itertools

import pytest
import torch
from torch import nn

from piip.errors import ConfigError, DataError
from piip.tasks.detection import DINO, DINOConfig
from piip.tasks.detection.dino.denoising import add_noise
from piip.tasks.detection.dino.losses import Objects, match

SMALL = {
    "embed_dim": 32,
    "num_groups": 8,
    "num_heads": 4,
    "encoder_depth": 1,
    "decoder_depth": 2,
    "ffn_dim": 64,
    "num_queries": 12,
    "num_denoising": 8,
    "detections_per_image": 10,
}


class Backbone(nn.Module):
    """Three maps of strides 8, 16 and 32."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 8, 8)
        self.halve = nn.ModuleList(nn.Conv2d(16, 16, 2, 2) for _ in range(2))

    def forward(self, batch):
        maps = [torch.relu(self.stem(batch))]
        for conv in self.halve:
            maps.append(torch.relu(conv(maps[-1])))
        return maps


def config(**changes):
    return DINOConfig(**({"classes": ("red", "blue"), "in_channels": (16,) * 3} | SMALL | changes))


def scene(height=96, width=128):
    """One red and one blue rectangle on grey."""
    image = torch.zeros(3, height, width)
    boxes = torch.tensor([[10.0, 12.0, 50.0, 60.0], [70.0, 40.0, 120.0, 80.0]])
    for channel, (x1, y1, x2, y2) in zip((0, 2), boxes.int().tolist(), strict=True):
        image[channel, y1:y2, x1:x2] = 2.0
    return image, {"boxes": boxes, "labels": torch.tensor([0, 1])}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"masks": True}, "finds boxes only"),
        ({"embed_dim": 30}, "embed_dim is 30, which num_heads does not divide"),
        ({"embed_dim": 44, "num_groups": 8}, "num_groups does not divide"),
        ({"num_levels": 2}, "the backbone has 3 maps"),
        ({"num_denoising": -1}, "num_denoising"),
        ({"label_noise": 1.5}, "label_noise"),
        ({"num_queries": 0}, "num_queries"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        config(**changes)


def test_a_description_survives_its_dictionary():
    assert DINOConfig.from_dict(config().to_dict()) == config()


def test_a_scene_is_learnt_by_heart():
    torch.manual_seed(0)
    model = DINO(config(), Backbone()).train()
    image, target = scene()
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    for _ in range(160):
        optimizer.zero_grad()
        sum(model([image], [target]).values()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    (found,) = model.eval()([image])
    labels, order = found.labels[:2].sort()
    assert labels.tolist() == [0, 1]
    assert (found.boxes[:2][order] - target["boxes"]).abs().max() < 4
    assert found.scores[1] > 0.35 > found.scores[2], "one box for each object, without suppression"


@pytest.mark.parametrize("num_denoising", [0, 8])
def test_images_without_objects_reach_every_parameter(num_denoising):
    torch.manual_seed(0)
    model = DINO(config(num_denoising=num_denoising), Backbone()).train()
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    losses = model([scene()[0]] * 2, [nothing] * 2)
    assert all(value == 0 for name, value in losses.items() if name.endswith(("box", "giou")))
    sum(losses.values()).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]


def test_padding_hardly_matters():
    """What an image shows does not depend on the images beside it, but for convolutions at the border."""
    torch.manual_seed(0)
    model = DINO(config(num_queries=8), Backbone()).eval()
    image, _ = scene()
    with torch.no_grad():
        alone = model.encode(model.pyramid(model.backbone(model.batch([image]))), [(96, 128)])
        both = model.batch([image, torch.zeros(3, 160, 192)])
        memory, places = model.encode(model.pyramid(model.backbone(both)), [(96, 128), (160, 192)])
    assert places.padded[0].sum() > 0
    assert not places.padded[1].any()
    first = memory[0, ~places.padded[0]]
    assert first.shape == alone[0][0].shape
    torch.testing.assert_close(places.centres[0, ~places.padded[0]], alone[1].centres[0])


def test_more_objects_than_queries():
    model = DINO(config(num_queries=3, num_denoising=0), Backbone()).train()
    boxes = torch.rand(7, 2) * 40
    target = {"boxes": torch.cat([boxes, boxes + 20], 1), "labels": torch.zeros(7, dtype=torch.int64)}
    losses = model([scene()[0]], [target])
    assert all(value.isfinite() for value in losses.values())


def test_fewer_tokens_than_queries():
    model = DINO(config(num_queries=500), Backbone()).eval()
    (found,) = model([scene()[0]])
    assert len(found) == 10


def test_matching_is_the_cheapest_of_all():
    """Compared with every possible assignment."""
    torch.manual_seed(0)
    settings = config(num_queries=5)
    logits, boxes = torch.randn(1, 1, 5, 2), torch.rand(1, 1, 5, 4) * 0.5 + 0.2
    truth = Objects(torch.rand(3, 4) * 0.5 + 0.2, torch.tensor([0, 1, 1]), torch.tensor([128.0, 96.0] * 2))
    from piip.tasks.detection.dino import losses

    cost = losses._cost(settings, logits[:, 0], boxes[:, 0], truth)[0]
    best = min(
        itertools.permutations(range(5), 3),
        key=lambda queries: float(cost[list(queries), range(3)].sum()),
    )
    matched = match(settings, logits, boxes, [truth])[0, 0]
    assert [int((matched == number).nonzero()) for number in range(3)] == list(best)


def test_diverged_weights_are_named():
    model = DINO(config(), Backbone()).train()
    with torch.no_grad():
        model.class_heads[0].weight.fill_(float("nan"))
    image, target = scene()
    with pytest.raises(DataError, match="loss_0_cls is nan: the training has diverged"):
        model([image], [target])


def test_noise_keeps_to_its_limits():
    """Near copies have a centre inside of the box, far ones have left its corners."""
    torch.manual_seed(0)
    settings = config(num_denoising=40, label_noise=0.0)
    boxes, labels = [torch.tensor([[0.5, 0.5, 0.2, 0.1]])], [torch.tensor([1])]
    noisy = add_noise(settings, boxes, labels)
    assert noisy.groups == 40
    assert (noisy.labels == 1).all()
    wanted = noisy.objects([1])[0]
    centre, size = noisy.boxes.sigmoid()[0].split(2, -1)
    corners = torch.cat([centre - size / 2, centre + size / 2], 1)
    moved = (corners - torch.tensor([0.4, 0.45, 0.6, 0.55])).abs() / torch.tensor([0.1, 0.05, 0.1, 0.05])
    # A corner beyond the opposite one swaps them: only copies with a size still show how far they went.
    whole = (size > 0.01).all(1)
    assert (moved[(wanted == 0) & whole] <= 1.01).all()
    assert (wanted == 0).sum() == (wanted == -1).sum() == 40


def test_light_backbone_dtype_leaves_the_head_in_float32():
    model = DINO(config(), Backbone()).eval()
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = model([scene()[0]])
    assert found.scores.dtype == found.boxes.dtype == torch.float32
