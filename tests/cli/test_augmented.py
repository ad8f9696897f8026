"""``piip predict`` and ``piip eval`` with test-time augmentation, on models as they are before any training."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import piip
from piip.cli import main
from piip.data.settings import ImageConfig
from piip.network import PIIP
from tests.data.builders import write_images
from tests.helpers import tiny_config
from tests.tasks.test_classification import classifier

SIZES = {"a.png": (40, 60), "b.png": (52, 44)}
TEST = ["--scales", "0.75,1.25", "--flip"]
IMAGE = ImageConfig(scale=(80, 64))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Noise with one object each, as a COCO set, with masks of two classes, and in folders of three classes."""
    root = tmp_path_factory.mktemp("scenes")
    write_images(root / "val", SIZES)
    write_images(root / "images" / "val", SIZES)
    boxes = {name: [5.0, 8.0, 20.0, 24.0] for name in SIZES}
    images = [
        {"id": 7 + i, "file_name": name, "height": height, "width": width}
        for i, (name, (height, width)) in enumerate(SIZES.items())
    ]
    objects = [
        {"id": 1 + i, "image_id": 7 + i, "category_id": 3, "bbox": boxes[name], "area": 480.0, "iscrowd": 0}
        for i, name in enumerate(SIZES)
    ]
    categories = [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}]
    (root / "annotations").mkdir()
    truth = {"images": images, "annotations": objects, "categories": categories}
    (root / "annotations" / "val.json").write_text(json.dumps(truth))
    (root / "masks" / "val").mkdir(parents=True)
    for name, size in SIZES.items():
        labels = np.zeros(size, np.uint8)
        labels[8:32, 5:25] = 1
        Image.fromarray(labels).save(root / "masks" / "val" / name)
    (root / "classes.txt").write_text("ground\nthing\n")
    for number in range(3):
        write_images(root / "classes" / "val" / str(number), SIZES, seed=number)
    return root


def detector():
    torch.manual_seed(0)
    network = PIIP(tiny_config())
    head = {"fpn_channels": 16, "representation_size": 16, "score_threshold": 0.01, "masks": False}
    return piip.DetectionPredictor(
        piip.RCNN(piip.RCNNConfig(("cat", "dog"), network.out_channels, **head), network),
        IMAGE,
        (3, 5),
        "cpu",
    )


def segmenter():
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    network = PIIP(tiny_config())
    head = {"channels": 16, "crop_size": 48, "stride": 32}
    config = piip.SegmenterConfig(("ground", "thing"), network.out_channels, **head)
    model = piip.Segmenter(config, network).eval()
    with torch.no_grad():  # untrained, it takes everything for one class; balanced, it sees both
        model.head.classifier.bias -= model(torch.randn(1, 3, 64, 80)).mean((0, 2, 3))
    return piip.SegmentationPredictor(model, IMAGE, "cpu")


def classes():
    return piip.ClassificationPredictor(classifier(), IMAGE.replace(scale=(64, 64)), "cpu")


@pytest.mark.parametrize(
    ("build", "data", "kind"),
    [(detector, ".", "box"), (segmenter, ".", "segmentation"), (classes, "classes", "classification")],
)
def test_both_verbs_take_scales_and_flip(build, data, kind, scenes, tmp_path, capsys):
    build().save(tmp_path / "model")
    image, model, out = scenes / "val" / "a.png", str(tmp_path / "model"), tmp_path / "seen"
    words = ["predict", str(image), "--model", model, "--out", str(out), "--score", "0", "--device", "cpu"]
    listed = []
    for more in ([], TEST):
        assert main([*words, *more]) == 0
        assert (out / "a.png").is_file()
        listed.append(json.loads((out / "predictions.json").read_text()))
    assert listed[0] != listed[1]
    assert [entry["file_name"] for entry in listed[1]["images"]] == [str(image)]

    words = ["eval", model, "--data", str(scenes / data), "--device", "cpu"]
    measured = {}
    for name, more in (("plain", []), ("once", ["--scales", "1", "--flip", "false"]), ("more", TEST)):
        capsys.readouterr()
        assert main([*words, *more, "--out", str(tmp_path / f"{name}.json")]) == 0
        shown = " ".join(capsys.readouterr().out.split())
        assert ("at 0.75, 1.25 of the scale and mirrored" in shown) == (name == "more")
        measured[name] = json.loads((tmp_path / f"{name}.json").read_text())
    assert measured["plain"] == measured["once"]
    assert measured["plain"]["test"] == {"scales": [1.0], "flip": False}
    assert measured["more"]["test"] == {"scales": [0.75, 1.25], "flip": True}
    assert measured["more"].keys() == measured["plain"].keys() >= {kind}


def test_evaluation_measures_what_is_predicted(scenes, tmp_path):
    segmenter().save(tmp_path / "model")
    predictor = piip.load(tmp_path / "model", "cpu", test=piip.AugmentedTest((0.75, 1.25), flip=True))
    right = total = 0
    for name in SIZES:
        with Image.open(scenes / "masks" / "val" / name) as mask:
            same = predictor.predict(scenes / "val" / name).labels.numpy() == np.asarray(mask)
        right, total = right + int(same.sum()), total + same.size
    out = tmp_path / "measured.json"
    assert main(["eval", str(tmp_path / "model"), "--data", str(scenes), *TEST, "--out", str(out)]) == 0
    assert json.loads(out.read_text())["segmentation"]["aAcc"] == pytest.approx(right / total)


@pytest.mark.parametrize("verb", ["predict", "eval"])
def test_the_help_says_what_the_options_do(verb, capsys):
    assert main([verb, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert (
        "Look at each image at these factors of its scale, such as 0.75,1,1.25, and merge what is seen. "
        "(type: numbers, default: 1.0)" in text
    )
    assert "Also look at each image mirrored left to right. (type: true or false, default: False)" in text
