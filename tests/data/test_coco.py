import gc
import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from piip.data.coco import DetectionDataset, collate
from piip.data.images import ImageFileError
from piip.data.layout import find_dataset
from piip.data.sampler import GroupedBatchSampler
from piip.data.settings import AugmentConfig, ImageConfig
from piip.errors import DataError
from tests.data.builders import annotation, coco_raw, write_coco

SAME = ImageConfig(mean=(0, 0, 0), std=(1, 1, 1), scale=(10**6, 48))


@pytest.fixture
def source(tmp_path):
    return find_dataset(write_coco(tmp_path)).split("train")


def test_targets_of_a_training_set(source):
    dataset = DetectionDataset(source, SAME, AugmentConfig(flip=0))
    assert dataset.classes == ("cat", "dog", "zebra")
    assert dataset.category_ids == (3, 7, 90)
    assert [int(dataset.index.image_ids[k]) for k in dataset.indices] == [10, 20]
    image, target, meta = dataset[0]
    pixels = np.array(Image.open(source.images / "a.png"))
    assert torch.equal(image, torch.from_numpy(pixels).permute(2, 0, 1).float())
    assert image.dtype == torch.float32
    assert target["boxes"].tolist() == [[4, 6, 24, 16], [0, 30, 25, 48]]
    assert target["boxes"].dtype == torch.float32
    assert target["labels"].tolist() == [2, 1]
    assert target["labels"].dtype == torch.int64
    assert target["masks"].dtype == torch.uint8
    assert target["masks"].sum((1, 2)).tolist() == [200, 25 * 18]
    assert target["image_id"] == meta.image_id == 10
    assert all(type(value) in (torch.Tensor, int) for value in target.values())
    assert (meta.original_size, meta.size, meta.scale_factor) == ((48, 64), (48, 64), (1.0, 1.0))
    assert type(image) is torch.Tensor


def test_evaluation_keeps_every_image_and_crowd(source):
    dataset = DetectionDataset(source, ImageConfig(scale=(96, 96)), masks=False)
    assert len(dataset) == 4
    _, target, meta = dataset[2]
    assert target["boxes"].shape == (0, 4)
    assert "masks" not in target
    assert meta.size == (96, 96)
    assert meta.scale_factor == pytest.approx((2.4, 2.4))
    truth = dataset.coco_dict()
    assert [entry["id"] for entry in truth["annotations"]] == [1, 2, 3, 4, 5, 6, 7]
    assert sum(entry["iscrowd"] for entry in truth["annotations"]) == 1
    assert truth["categories"][0] == {"id": 3, "name": "cat"}
    json.dumps(truth)


def test_keep_empty_trains_on_images_without_objects(source):
    dataset = DetectionDataset(source, SAME, AugmentConfig(), keep_empty=True)
    assert [int(dataset.index.image_ids[k]) for k in dataset.indices] == [10, 20, 30]
    image, target, _ = dataset[2]
    assert target["masks"].shape == (0, *image.shape[1:])
    assert target["boxes"].shape == (0, 4)


def test_chosen_classes_give_the_labels(source):
    dataset = DetectionDataset(source, SAME, AugmentConfig(flip=0), classes=["zebra", "cat"])
    assert dataset.category_ids == (90, 3)
    assert dataset[0][1]["labels"].tolist() == [0]
    assert {entry["category_id"] for entry in dataset.coco_dict()["annotations"]} == {3, 90}
    with pytest.raises(DataError, match="no class 'horse'"):
        DetectionDataset(source, SAME, classes=["horse"])


def test_augmentation_depends_on_seed_epoch_and_index_only(source):
    config = AugmentConfig.detr_multiscale(0.1, None)
    first, second = (DetectionDataset(source, SAME, config, seed=3) for _ in range(2))
    second[1]
    torch.manual_seed(99)
    assert torch.equal(first[(4, 0)][0], second[(4, 0)][0])
    shapes = {tuple(first[(epoch, 0)][0].shape) for epoch in range(6)}
    assert len(shapes) > 1


def test_it_travels_to_workers_that_are_started_afresh(source):
    dataset = DetectionDataset(source, SAME, AugmentConfig.detr_multiscale(0.1))
    copy = pickle.loads(pickle.dumps(dataset))
    for (image, target, meta), (other, same, origin) in zip(
        (dataset[k] for k in range(2)), (copy[k] for k in range(2)), strict=True
    ):
        assert torch.equal(image, other)
        assert torch.equal(target["masks"], same["masks"])
        assert meta == origin


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_gives_lists_in_the_sampler_order(source, workers):
    dataset = DetectionDataset(source, SAME, AugmentConfig())
    sampler = GroupedBatchSampler(dataset.orientations, 1, seed=1)
    loader = DataLoader(dataset, batch_sampler=sampler, num_workers=workers, collate_fn=collate)
    expected = [dataset[key] for batch in sampler for key in batch]
    for (images, targets, metas), (image, target, meta) in zip(loader, expected, strict=True):
        assert torch.equal(images[0], image)
        assert torch.equal(targets[0]["masks"], target["masks"])
        assert metas == [meta]


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_images_are_named_by_the_main_process(source, workers, monkeypatch):
    content = (source.images / "a.png").read_bytes()
    (source.images / "a.png").write_bytes(content[: len(content) // 2])
    loader = DataLoader(DetectionDataset(source, SAME), sampler=[0], collate_fn=collate, num_workers=workers)
    with pytest.raises(ImageFileError, match=r"^Image .*a\.png cannot be read \(.*\); replace the file\.$"):
        next(iter(loader))
    # torch waits 5 seconds for a worker that failed, whenever its iterator happens to be collected.
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)
    gc.collect()


def test_another_size_than_annotated_is_an_error(source):
    Image.new("RGB", (48, 64)).save(source.images / "a.png")
    with pytest.raises(ImageFileError, match=r"a\.png is 48 x 64 pixels but .*train\.json says 64 x 48"):
        DetectionDataset(source, SAME)[0]


def test_nothing_to_train_on(tmp_path):
    raw = coco_raw()
    raw["annotations"] = [annotation(1, 10, 3, [200, 5, 10, 10])]
    source = find_dataset(write_coco(tmp_path, raw)).split("train")
    with pytest.raises(DataError, match="no image with objects to train on"):
        DetectionDataset(source, SAME, AugmentConfig())
    raw["images"] = raw["annotations"] = []
    (source.annotations).write_text(json.dumps(raw))
    with pytest.raises(DataError, match="has no image"):
        DetectionDataset(source, SAME)


@pytest.mark.parametrize("name", ["bccd", "nuclei_dsb2018", "coco_tiny"])
def test_real_sets(shared, name):
    layout = find_dataset(shared / "data" / name)
    masks = name != "bccd"
    for split, augment in (("train", AugmentConfig.detr_multiscale(0.4, 320)), ("val", None)):
        dataset = DetectionDataset(
            layout.split(split), ImageConfig(scale=(400, 240)), augment, masks=masks and split == "train"
        )
        for index in range(0, len(dataset), 1 + len(dataset) // 3):
            image, target, _ = dataset[index]
            height, width = image.shape[1:]
            boxes = target["boxes"]
            assert (boxes >= 0).all()
            assert (boxes[:, 0::2] <= width).all()
            assert (boxes[:, 1::2] <= height).all()
            assert len(boxes) == len(target["labels"])
            if "masks" in target:
                assert target["masks"].shape == (len(boxes), height, width)


def test_ground_truth_evaluates_to_one(shared, capsys):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    dataset = DetectionDataset(
        find_dataset(shared / "data/coco_tiny").split("val"), ImageConfig(), masks=False
    )
    truth = COCO()
    truth.dataset = dataset.coco_dict()
    truth.createIndex()
    original = COCO(dataset.index.source)
    for image_id in original.getImgIds():
        ours, theirs = (
            [coco.annToMask(entry) for entry in coco.loadAnns(coco.getAnnIds([image_id]))]
            for coco in (truth, original)
        )
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
    found = [{**entry, "score": 1.0} for entry in truth.dataset["annotations"] if not entry["iscrowd"]]
    for kind in ("bbox", "segm"):
        run = COCOeval(truth, truth.loadRes(found), kind)
        run.evaluate()
        run.accumulate()
        run.summarize()
        assert run.stats[0] == pytest.approx(1.0)
