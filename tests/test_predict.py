import numpy as np
import pytest
import torch
from PIL import Image

import piip
from piip.data.geometry import ImageMeta
from piip.data.images import read_image
from piip.data.settings import AugmentedTest, ImageConfig
from piip.data.transforms import prepare_image
from piip.errors import CheckpointError, ConfigError, DataError
from piip.network import PIIP
from piip.predict import DetectionPredictor, load
from piip.tasks.detection import RCNN, RCNNConfig
from tests.helpers import tiny_config


@pytest.fixture(scope="module")
def predictor():
    torch.manual_seed(0)
    backbone = PIIP(tiny_config())
    config = RCNNConfig(
        ("cat", "dog"),
        backbone.out_channels,
        fpn_channels=32,
        representation_size=32,
        mask_channels=32,
        score_threshold=0.01,
    )
    return DetectionPredictor(RCNN(config, backbone), ImageConfig(scale=(160, 128)), (17, 18), "cpu")


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (90, 150, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def test_files_arrays_and_tensors_are_the_same_image(predictor, picture):
    opened = Image.open(picture).convert("RGB")
    pixels = np.asarray(opened)
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    first, *others = predictor.predict_all([picture, str(picture), opened, pixels, tensor])
    assert len(first) > 0
    assert first.path == picture
    assert first.instances.original_size == (90, 150)
    for other in others:
        assert torch.equal(first.instances.boxes, other.instances.boxes)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, "got NoneType"),
        (7, "got int"),
        ([[1, 2, 3]], "got list"),
        (np.zeros((4, 4, 3)), r"got float64 of shape \(4, 4, 3\)"),
        (np.array("a"), r"of shape \(\)"),
        (np.zeros((3, 4, 4), np.uint8), r"got uint8 of shape \(3, 4, 4\)"),
        (torch.zeros(4, 4, 3, dtype=torch.uint8), r"got torch.uint8 of shape \(4, 4, 3\)"),
        (torch.zeros(3, 4, 4), "got torch.float32"),
    ],
)
def test_what_is_no_image(predictor, image, message):
    with pytest.raises(DataError, match=message):
        predictor.predict(image)


def test_results_carry_names_and_categories(predictor, picture):
    found = predictor.predict(picture)
    assert set(found.names()) <= {"cat", "dog"}
    assert {entry["category_id"] for entry in found.to_coco()} <= {17, 18}
    best = float(found.instances.scores.max())
    assert len(predictor.predict(picture, score=best)) == 1


def test_saved_predictors_predict_the_same(predictor, picture, tmp_path):
    predictor.save(tmp_path / "run" / "model")
    for folder in (tmp_path / "run" / "model", tmp_path / "run"):
        loaded = load(folder, device="cpu")
        assert loaded.classes == ("cat", "dog")
        assert loaded.image == predictor.image
        expected, actual = predictor.predict(picture), loaded.predict(picture)
        assert torch.equal(expected.instances.boxes, actual.instances.boxes)
        assert expected.to_coco()[0]["category_id"] == actual.to_coco()[0]["category_id"]


def test_networks_without_a_head_cannot_predict(tmp_path):
    piip.save_pretrained(PIIP(tiny_config()), tmp_path)
    with pytest.raises(CheckpointError, match="holds a PIIP without image settings"):
        load(tmp_path)


def test_missing_devices_are_named(tmp_path, predictor):
    with pytest.raises(ConfigError, match="The device 'cuda:7' is not there; use --device cpu or auto"):
        DetectionPredictor(predictor.model, predictor.image, device="cuda:7")


@torch.inference_mode()
def test_one_view_is_bit_for_bit_the_model_on_the_prepared_image(predictor, picture):
    image = prepare_image(read_image(picture), predictor.image)
    meta = ImageMeta.of(0, "picture.png", (90, 150), tuple(image.shape[1:]))
    plain = predictor.model([image], metas=[meta])[0]
    predictor.test = AugmentedTest(scales=(1.0,), flip=False)
    found = predictor.predict(picture).instances
    assert torch.equal(found.boxes, plain.boxes)
    assert torch.equal(found.scores, plain.scores)
    assert found.masks == plain.masks


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_augmented_results_are_results_like_others(predictor, picture, tmp_path):
    predictor.save(tmp_path / "model")
    augmented = load(tmp_path / "model", "cpu", test=piip.AugmentedTest((0.75, 1.0), flip=True))
    found, plain = augmented.predict(picture), predictor.predict(picture)
    assert not torch.equal(found.instances.boxes[:5], plain.instances.boxes[:5])
    assert found.instances.original_size == (90, 150)
    entries = found.to_coco()
    assert 0 < len(entries) == len(found) <= 100
    assert {tuple(entry["segmentation"]["size"]) for entry in entries} == {(90, 150)}
    assert found.plot().size == plain.plot().size
    assert (found.instances.scores.diff() <= 0).all()


def test_augmentation_is_no_part_of_a_saved_model(predictor, tmp_path):
    predictor.test = AugmentedTest(flip=True)
    try:
        predictor.save(tmp_path / "model")
    finally:
        predictor.test = AugmentedTest()
    assert load(tmp_path / "model", "cpu").test == AugmentedTest()


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4), np.uint8), np.zeros((8, 8, 3), np.float32), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)],
)
def test_images_of_another_form_are_refused(predictor, image):
    with pytest.raises(DataError, match="uint8"):
        predictor.predict(image)


def test_broken_files_are_named(predictor, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"broken\.jpg"):
        predictor.predict(tmp_path / "broken.jpg")
