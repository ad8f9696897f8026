import json

import pytest
from PIL import Image

from piip.data.check import check_detection
from piip.data.index import read_index
from piip.data.layout import find_dataset
from piip.errors import DataError
from tests.data.builders import annotation, coco_raw, write_coco, write_images, write_yolo


def found(report):
    return {(problem.severity, problem.split, problem.what): problem for problem in report.problems}


def check(folder, raw, **options):
    write_coco(folder, raw, splits=("train",))
    report = check_detection(folder, **options)
    json.dumps(report.to_dict())
    assert all(isinstance(line, str) and "\n" not in line for line in report.lines())
    return report


def test_statistics(tmp_path):
    raw = coco_raw()
    raw["annotations"][0] |= {"bbox": [0, 0, 50, 80], "area": 4000}
    raw["annotations"].append(annotation(8, 20, 3, [0, 0, 97, 97], area=None, segmentation=[]))
    numbers = check(tmp_path, raw).splits["train"]
    assert (numbers.images, numbers.empty, numbers.boxes, numbers.crowds, numbers.outlined) == (4, 1, 7, 1, 6)
    assert numbers.classes == {"cat": 5, "dog": 1, "zebra": 1}
    assert numbers.sizes == {"small": 5, "medium": 1, "large": 1}
    assert (numbers.smallest, numbers.largest, numbers.busiest) == ((40, 40), (50, 80), 4)


def test_problems_of_boxes_and_categories(tmp_path):
    raw = coco_raw()
    raw["annotations"] += [annotation(8, 20, 3, [5, 5, 0, 10]), annotation(9, 20, 3, [30, 5, 30, 10])]
    raw["categories"].append({"id": 8, "name": "dog"})
    report = check(tmp_path, raw)
    problems = found(report)
    assert report.ok
    for what, count, place in [
        ("zero-area boxes are dropped", 1, "annotation 8"),
        ("boxes thinner than a pixel are dropped", 1, "annotation 5"),
        (
            "boxes wholly outside their image are dropped",
            1,
            "annotation 6 in image 10 [70.0, 5.0, 10.0, 10.0]",
        ),
        ("boxes partly outside their image are clipped", 2, "annotation 3"),
        ("categories never used", 1, "dog"),
        ("category names used twice", 1, "dog"),
    ]:
        problem = problems["warning", "train", what]
        assert problem.count == count
        assert place in problem.where[0]
    notes = {what for severity, _, what in problems if severity == "note"}
    assert len(notes) == 3
    assert "3 notes" in report.lines()[-1]


def test_errors_of_entries(tmp_path):
    raw = coco_raw()
    raw["images"].append({**raw["images"][1]})
    raw["images"].append({"id": 77})
    raw["annotations"] += [
        annotation(1, 20, 3, [1, 1, 5, 5]),
        annotation(8, 99, 3, [1, 1, 5, 5]),
        annotation(9, 20, 4, [1, 1, 5, 5]),
        annotation(10, 20, 3, [1, 1, 4, 5], bbox="1 1 4 5"),
        annotation(11, 20, 3, [1, 1, 5, 5], segmentation={"size": [1, 1], "counts": [1]}),
        {"id": 12, "image_id": 20},
        annotation(13, 20, 3, [1, 1, 5, 5], area="25"),
    ]
    raw["images"][2] |= {"height": 0}
    report = check(tmp_path, raw)
    errors = {
        what: problem.where[0]
        for (severity, _, what), problem in found(report).items()
        if severity == "error"
    }
    assert not report.ok
    assert errors["duplicate ids of images"] == "20"
    assert errors["files listed more than once"] == "b.png"
    assert errors["images without file_name"] == "entry 5"
    assert errors["annotations of unknown images"] == "annotation 8 (image 99)"
    assert errors["unknown category ids"] == "annotation 9 (category 4)"
    assert errors["boxes that are not four numbers"] == "annotation 10 1 1 4 5"
    assert "annotation 11" in errors["segmentations of no known form"]
    assert errors["annotations without category_id"] == "entry 12"
    assert errors["areas that are no numbers"] == "annotation 13 '25'"
    assert errors["images without a valid height and width"].endswith("c.png [0, 40]")
    assert ("warning", "train", "duplicate ids of annotations") in found(report)
    assert report.lines()[-1].startswith("Mend the errors first: 10 errors")


@pytest.mark.parametrize("read_images", [True, False])
def test_image_files(tmp_path, read_images):
    write_coco(tmp_path, splits=("train",))
    images = tmp_path / "train"
    (images / "a.png").unlink()
    Image.effect_noise((50, 80), 90).convert("RGB").save(images / "b.jpg")
    (images / "b.png").write_bytes((images / "b.jpg").read_bytes()[:2000])
    Image.new("RGB", (41, 40)).save(images / "c.png")
    problems = found(check_detection(tmp_path, read_images=read_images))
    unreadable = problems["error", "train", "missing or unreadable images"]
    assert unreadable.count == 1 + read_images
    assert "a.png does not exist" in unreadable.where[0]
    assert not read_images or "b.png cannot be read" in unreadable.where[1]
    other = problems["error", "train", "images of another size than annotated"]
    assert other.where[0].endswith("c.png is 41 x 40, annotated 40 x 40")


def test_splits_are_compared(tmp_path):
    write_coco(tmp_path)
    raw = coco_raw()
    raw["categories"][0]["name"] = "horse"
    (tmp_path / "annotations/val.json").write_text(json.dumps(raw))
    (tmp_path / "val/b.png").write_bytes((tmp_path / "train/a.png").read_bytes())
    problems = found(check_detection(tmp_path))
    assert problems["error", "train + val", "classes differ"].where[0] == "90 horse, 90 zebra"
    same = problems["warning", "train + val", "the same image is in more than one split"]
    assert same.count == 1
    assert "train/a.png = " in same.where[0]


def test_yolo(tmp_path):
    write_yolo(tmp_path)
    (tmp_path / "labels/train/gone.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    (tmp_path / "labels/train/c.txt").write_text("5 0.5 0.5 0.1 0.1\n")
    (tmp_path / "images/train/x.jpg").write_text("no image")
    report = check_detection(tmp_path)
    problems = found(report)
    assert (
        problems["warning", "train", "label files without an image are ignored"].where[0].endswith("gone.txt")
    )
    assert "c.txt line 1: class 5" in problems["error", "train", "unknown class"].where[0]
    assert "x.jpg" in problems["error", "train", "unreadable image"].where[0]
    assert report.splits["train"].boxes == 2
    assert report.splits["val"].empty == 1


def test_unusable_annotations_are_one_error(tmp_path):
    write_coco(tmp_path)
    (tmp_path / "annotations/val.json").write_text("{")
    report = check_detection(tmp_path)
    assert list(report.splits) == ["train"]
    assert "not a readable json" in found(report)["error", "val", "annotations cannot be used"].where[0]


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda raw: raw["images"][0].update(id=[1]), "images whose id is no whole number"),
        (lambda raw: raw["images"][0].update(id="im1"), "images whose id is no whole number"),
        (lambda raw: raw["images"][0].update(id=2**70), "images whose id is no whole number"),
        (lambda raw: raw["categories"][0].update(id="cat"), "categories whose id is no whole number"),
        (
            lambda raw: raw["annotations"][0].update(category_id=None),
            "annotations whose category_id is no whole",
        ),
        (lambda raw: outline(raw, [[float("nan"), 1, 2, 3, 4, 5]]), "segmentations of no known form"),
        (lambda raw: outline(raw, [[1e9, 1, 2, 3, 4, 5]]), "segmentations of no known form"),
        (lambda raw: outline(raw, {"size": 5, "counts": "a"}), "segmentations of no known form"),
        (lambda raw: outline(raw, {"size": [80, 50], "counts": "ä"}), "segmentations of no known form"),
        (lambda raw: outline(raw, {"size": [80, 50], "counts": ["a"]}), "segmentations of no known form"),
        (
            lambda raw: outline(raw, {"size": [80, 50], "counts": [-5, 4005]}),
            "segmentations of no known form",
        ),
    ],
)
def test_damaged_entries_are_reported_and_refused_in_training(tmp_path, damage, what):
    raw = coco_raw()
    damage(raw)
    problems = [problem for problem in check(tmp_path, raw).problems if problem.severity == "error"]
    assert any(problem.what.startswith(what) for problem in problems)
    with pytest.raises(DataError):
        read_index(find_dataset(tmp_path).split("train"))


def outline(raw, segmentation):
    raw["annotations"][0]["segmentation"] = segmentation


def test_ids_written_as_texts_are_numbers(tmp_path):
    raw = coco_raw()
    for entry in raw["annotations"]:
        entry["category_id"] = str(entry["category_id"])
    assert check(tmp_path, raw).ok
    assert len(read_index(find_dataset(tmp_path).split("train")).boxes)


def test_one_split_and_no_data(tmp_path):
    write_coco(tmp_path)
    assert list(check_detection(find_dataset(tmp_path).split("val")).splits) == ["val"]
    with pytest.raises(DataError, match="No data set was recognised"):
        check_detection(tmp_path / "train")
    write_images(tmp_path / "empty", {})
    (tmp_path / "empty/e.json").write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
    report = check_detection(tmp_path / "empty/e.json")
    assert report.splits["train"].images == 0
    assert [problem.what for problem in report.problems] == ["no annotations at all"]
    assert not report.ok


@pytest.mark.parametrize(("name", "notes"), [("bccd", 2), ("nuclei_dsb2018", 0), ("coco_tiny", 4)])
def test_real_sets_have_no_errors(shared, name, notes):
    report = check_detection(shared / "data" / name)
    assert report.ok
    assert sum(problem.severity == "note" for problem in report.problems) == notes
