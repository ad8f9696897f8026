import contextlib
import io

import numpy as np
import pytest
from pycocotools import mask as mask_tools
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from piip.errors import ConfigError
from piip.train.metrics import evaluate, main_metric, score_rows

SIDE = 200


def rectangle(x: float, y: float, w: float, h: float) -> dict:
    grid = np.zeros((SIDE, SIDE), np.uint8, order="F")
    grid[int(y) : int(y + h), int(x) : int(x + w)] = 1
    run = mask_tools.encode(grid)
    return {"size": run["size"], "counts": run["counts"].decode()}


def make(random: np.random.Generator, images: int = 4, per_image: int = 12, jitter: float = 4.0):
    """Return ground truth with crowds and sparse category ids, and noisy detections of it."""
    categories = [{"id": 3, "name": "dog"}, {"id": 17, "name": "cat"}, {"id": 90, "name": "never"}]
    truth, found = [], []
    for image in range(1, images + 1):
        for _ in range(per_image):
            x, y = random.uniform(0, 90, 2)
            w, h = random.uniform(8, 105, 2)
            category = int(random.choice([3, 17]))
            common = {"image_id": image * 7, "category_id": category}
            shape = {"bbox": [x, y, w, h], "area": w * h, "segmentation": rectangle(x, y, w, h)}
            crowd = int(random.random() < 0.1)
            truth.append({"id": len(truth) + 1, "iscrowd": crowd, **common, **shape})
            if random.random() < 0.8:
                box = np.clip(np.array([x, y, w, h]) + random.normal(0, jitter, 4), 2, SIDE).tolist()
                score = float(random.random())
                found.append({**common, "bbox": box, "score": score, "segmentation": rectangle(*box)})
    listed = [{"id": image * 7, "height": SIDE, "width": SIDE} for image in range(1, images + 1)]
    return {"info": {}, "images": listed, "annotations": truth, "categories": categories}, found


def reference(truth, found, kind: str) -> np.ndarray:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        # As detectron2 and mmdetection do: with a box, a mask's area would be that of the box.
        left_out = "bbox" if kind == "segm" else "segmentation"
        found = [{key: value for key, value in f.items() if key != left_out} for f in found]
        run = COCOeval(coco, coco.loadRes(found), kind)
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run.stats


@pytest.mark.parametrize("seed", [0, 1])
def test_equal_to_pycocotools_summary(seed):
    truth, found = make(np.random.default_rng(seed))
    scores = evaluate(truth, found, masks=True)
    for kind, name in (("bbox", "box"), ("segm", "mask")):
        stats = reference(truth, found, kind)
        score = scores[name]
        ours = [score.AP, score.AP50, score.AP75, score.AP_small, score.AP_medium, score.AP_large, score.AR]
        ours = [-1 if value is None else value for value in ours]  # pycocotools says -1
        assert ours == pytest.approx([*stats[:6], stats[8]])
        sizes = [score.AR_small, score.AR_medium, score.AR_large]
        assert [-1 if value is None else value for value in sizes] == pytest.approx(stats[9:12])
        classes = [score.classes[c]["AP"] for c in ("dog", "cat")]
        assert np.mean(classes) == pytest.approx(score.AP)
        assert score.classes["never"]["AP"] is None


def test_the_size_of_a_mask_is_not_that_of_its_box():
    truth, _ = make(np.random.default_rng(6), images=1, per_image=1)
    small = {"bbox": [0, 0, 20, 20], "area": 400.0, "segmentation": rectangle(0, 0, 20, 20)}
    truth["annotations"] = [{"id": 1, "image_id": 7, "category_id": 3, "iscrowd": 0, **small}]
    thin = np.zeros((SIDE, SIDE), np.uint8, order="F")
    thin[range(100), range(100)] = 1  # 100 pixels in a box of 100 x 100
    run = mask_tools.encode(thin)
    wrong = {"bbox": [0, 0, 100, 100], "segmentation": {**run, "counts": run["counts"].decode()}}
    right = {"bbox": small["bbox"], "segmentation": small["segmentation"]}
    found = [{"image_id": 7, "category_id": 3, "score": s, **f} for s, f in ((0.9, wrong), (0.5, right))]
    scores = evaluate(truth, found, masks=True)
    assert scores["mask"].AP_small == pytest.approx(0.5)
    assert scores["box"].AP_small == pytest.approx(1.0)


def test_more_than_a_hundred_objects_need_a_higher_limit():
    random = np.random.default_rng(2)
    truth, _ = make(random, images=1, per_image=300, jitter=0)
    truth["annotations"] = [a | {"iscrowd": 0} for a in truth["annotations"]]
    found = [{**a, "score": float(random.random())} for a in truth["annotations"]]
    assert evaluate(truth, found)["box"].AR < 0.8
    scores = evaluate(truth, found, max_detections=400)["box"]
    assert min(scores.AR, scores.AP, scores.precision50[0]) > 0.999


def test_no_detections_score_zero_and_absent_sizes_nothing():
    truth, _ = make(np.random.default_rng(3), per_image=3)
    for annotation in truth["annotations"]:
        annotation.update(area=50.0, iscrowd=0)
    scores = evaluate(truth, [], masks=True)
    assert scores["box"].AP == scores["mask"].AP == 0
    assert scores["box"].AP_large is None
    assert "val/AP_large" not in scores["box"].numbers("val")
    assert scores["box"].numbers("val")["val/AP_small"] == 0


def test_detections_are_not_changed_and_nothing_is_printed(capsys):
    truth, found = make(np.random.default_rng(4))
    before = [dict(f) for f in found]
    evaluate(truth, found, masks=True)
    assert found == before
    assert capsys.readouterr().out == ""


def test_main_metric_and_rows():
    truth, found = make(np.random.default_rng(5))
    both = evaluate(truth, found, masks=True)
    assert main_metric(both) == both["mask"].AP
    assert main_metric({"box": both["box"]}) == both["box"].AP
    rows = dict(score_rows(both))
    assert rows["AP50"] == [both["box"].AP50, both["mask"].AP50]
    with pytest.raises(ConfigError, match="max_detections is 0"):
        evaluate(truth, found, max_detections=0)
