"""Every stage of prediction against the original (golden/heads/dino_infer)."""

import pytest
import torch

from piip.ops import use_implementation
from tests.tasks.detection.dino.golden import SIZES, detector
from tests.tasks.detection.golden import assert_close, load, metas


@pytest.fixture(scope="module")
def golden(shared):
    return load(shared, "dino_infer")


@pytest.fixture(scope="module")
def model(shared):
    return detector(shared)


@pytest.fixture(scope="module")
def pyramid(model):
    with torch.no_grad():
        return model.pyramid(model.backbone.maps)


def test_neck(golden, pyramid):
    assert len(pyramid) == 4
    for level, ours in enumerate(pyramid):
        assert_close(ours, golden[f"neck.{level}"], 1e-5)


@torch.no_grad()
def test_encoder(golden, model, pyramid):
    memory, places = model.encode(pyramid, SIZES)
    assert torch.equal(places.padded, golden["mask_flat"])
    assert_close(places.valid, golden["valid_ratios"], 1e-6)
    positions = places.embedding + model.level_embed[places.levels]
    assert_close(positions[:, ::7], golden["pos_plus_level_every7"], 1e-5)
    references = places.centres[:, ::7, None] * places.valid[:, None]
    assert_close(references, golden["enc_ref_every7"], 1e-6)
    assert_close(memory[:, ::7], golden["memory_every7"], 1e-5)


@torch.no_grad()
def test_selection(golden, model, pyramid):
    memory, places = model.encode(pyramid, SIZES)
    selected = model.select(memory, places)
    real = ~golden["topk_is_padding"].bool()
    assert not real.all(), "the golden picks tokens that are no box, too"
    assert torch.equal(selected.tokens[real], golden["topk_indices"][real])
    assert_close(selected.logits, golden["topk_score"], 1e-5)
    assert_close(selected.boxes.sigmoid(), golden["topk_anchor"], 1e-5)


@pytest.mark.parametrize("implementation", ["grid_sample", "fused"])
@torch.no_grad()
def test_decoder(golden, model, pyramid, implementation):
    if implementation == "fused":
        pytest.importorskip("numba")
    with use_implementation(implementation):
        memory, places = model.encode(pyramid, SIZES)
        decoded = model.decode(memory, places, model.select(memory, places).boxes)
    assert_close(decoded.logits, golden["all_cls"], 1e-5)
    assert_close(decoded.boxes, golden["all_boxes"], 1e-5)


@pytest.mark.parametrize("original", [False, True], ids=["network_pixels", "original_pixels"])
@torch.no_grad()
def test_whole_detector(golden, shared, model, original):
    images = [torch.zeros(3, *size) for size in SIZES]
    found = model(images, metas=metas(shared) if original else None)
    prefix = "det_ori" if original else "det_net"
    for image, ours in enumerate(found):
        assert torch.equal(ours.labels, golden[f"{prefix}_labels.{image}"])
        boxes = torch.cat([ours.boxes, ours.scores[:, None]], 1)
        assert_close(boxes, golden[f"{prefix}_boxes.{image}"], 1e-5)
        assert ours.masks is None
