"""Denoising, matching, losses and gradients against the original (golden/heads/dino_train and dino_dn)."""

import json
from dataclasses import replace

import pytest
import torch

from piip.convert.dino import dino_name
from piip.tasks.detection.boxes import to_centre
from piip.tasks.detection.dino.denoising import add_noise
from piip.tasks.detection.dino.losses import match
from tests.tasks.detection.dino.golden import CONFIG, SIZES, detector
from tests.tasks.detection.golden import assert_close, load

CASES = ("a", "fewer_than_gt", "one_empty", "all_empty")
LOSSES = {"cls": "cls", "box": "bbox", "giou": "iou"}


@pytest.fixture(scope="module")
def golden(shared):
    return load(shared, "dino_train")


@pytest.fixture(scope="module")
def model(shared):
    return detector(shared).train()


def targets_of(golden, prefix=""):
    return [
        {"boxes": golden[f"{prefix}gt_boxes.{i}"], "labels": golden[f"{prefix}gt_labels.{i}"]}
        for i in range(2)
    ]


def theirs(name):
    """Return the original's name of one of our losses."""
    where, kind = name.removeprefix("loss_").rsplit("_", 1)
    where, noisy, _ = where.partition("_noisy")
    layer = {"encoder": "interm_", "0": "d0.", "1": ""}[where]
    return f"loss.{layer}{'dn_' if noisy else ''}loss_{LOSSES[kind]}"


def test_losses_and_gradients(golden, model):
    model.zero_grad()
    maps = [x.clone().requires_grad_() for x in model.backbone.maps]
    model.backbone.maps = maps
    torch.manual_seed(321)
    losses = model([torch.zeros(3, *size) for size in SIZES], targets_of(golden))
    assert {theirs(name) for name in losses} == {k for k in golden if k.startswith("loss.")} - {"loss.total"}
    for name, value in losses.items():
        assert_close(value.detach(), golden[theirs(name)], 1e-5)
    total = sum(losses.values())
    assert_close(total.detach()[None], golden["loss.total"], 1e-5)
    total.backward()
    ours = {name: p.grad for name, p in model.named_parameters()}
    checked = {
        dino_name(key.removeprefix("gradnorm.")): value
        for key, value in golden.items()
        if key.startswith("gradnorm.")
    }
    assert ours.keys() == checked.keys()
    for name, norm in checked.items():
        assert_close(ours[name].norm(), norm, 1e-4)
    assert_close(ours["query_embed.weight"], golden["grad.query_embed"], 1e-4)
    assert_close(maps[2].grad, golden["grad.input.2"], 1e-4)


@torch.no_grad()
def test_matches(golden, model):
    objects = [model.objects(size, target) for size, target in zip(SIZES, targets_of(golden), strict=True)]
    logits = torch.cat([golden["topk_score"][None], golden["all_cls"][:, :, 24:]])
    boxes = torch.cat([golden["topk_anchor"][None], golden["all_boxes"][:, :, 24:]])
    matched = match(model.config, logits, boxes, objects)
    assert torch.equal(matched.flatten(0, 1) + 1, golden["matches"].long())


@pytest.mark.parametrize("case", CASES)
def test_noise(shared, model, case):
    golden = load(shared, "dino_dn")
    settings = json.loads((shared / "golden" / "heads" / "dino_dn.json").read_text())
    config = replace(CONFIG, num_denoising=settings["num_dn_queries"][case])
    boxes, labels = [], []
    for target, (height, width) in zip(targets_of(golden, f"{case}."), SIZES, strict=True):
        boxes.append(to_centre(target["boxes"] / torch.tensor([width, height] * 2)))
        labels.append(target["labels"])
    torch.manual_seed(settings["seeds"][case])
    noisy = add_noise(config, boxes, labels)
    assert noisy.groups == golden[f"{case}.num_groups"]
    assert noisy.labels.shape[1] == golden[f"{case}.pad_size"]
    assert torch.equal(noisy.blocked(20), golden[f"{case}.attn_mask"].bool())
    assert_close(noisy.boxes, golden[f"{case}.bbox_query"], 1e-5)
    content = model.label_embed(noisy.labels.clamp(min=0)).detach() * (noisy.labels >= 0)[..., None]
    assert torch.equal(content, golden[f"{case}.label_query"])
