"""Metrics from counts, against torchmetrics."""

import pytest
import torch
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_confusion_matrix,
    multiclass_jaccard_index,
)

from piip.train.confusion import classification_scores, count_pixels, segmentation_scores


def random_pair(classes=5, ignored=255):
    truth = torch.randint(0, classes, (3, 40, 50))
    found = torch.where(torch.rand(truth.shape) < 0.6, truth, torch.randint(0, classes, truth.shape))
    truth[torch.rand(truth.shape) < 0.1] = ignored
    return found, truth


def test_counts_are_those_of_torchmetrics():
    found, truth = random_pair()
    expected = multiclass_confusion_matrix(found, truth, 5, ignore_index=255)
    assert (count_pixels(found, truth, 5, 255) == expected.numpy()).all()


def test_scores_are_those_of_torchmetrics():
    found, truth = random_pair()
    halves = [count_pixels(f, t, 5, 255) for f, t in zip(found, truth, strict=True)]
    scores = segmentation_scores(halves, list("abcde"))
    assert scores.mIoU == pytest.approx(multiclass_jaccard_index(found, truth, 5, ignore_index=255).item())
    macro = multiclass_accuracy(found, truth, 5, average="macro", ignore_index=255)
    micro = multiclass_accuracy(found, truth, 5, average="micro", ignore_index=255)
    assert scores.mAcc == pytest.approx(macro.item())
    assert scores.aAcc == pytest.approx(micro.item())


def test_absent_classes_do_not_count():
    truth = torch.tensor([0, 0, 1, 1])
    scores = segmentation_scores([count_pixels(truth, truth, 3, 255)], ["a", "b", "c"])
    assert (scores.mIoU, scores.mAcc, scores.aAcc) == (1, 1, 1)
    assert scores.classes["c"] == {"IoU": None, "Acc": None}
    invented = segmentation_scores([count_pixels(torch.tensor([0, 2, 1, 1]), truth, 3, 255)], ["a", "b", "c"])
    assert invented.classes["c"] == {"IoU": 0.0, "Acc": None}
    assert invented.mIoU == pytest.approx((0.5 + 1 + 0) / 3)


def test_nothing_labelled_is_no_success():
    scores = segmentation_scores([], ["a", "b"])
    assert (scores.mIoU, scores.mAcc, scores.aAcc) == (0, 0, 0)


def test_accuracies_by_class():
    counts = count_pixels(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 1]), 3, -1)
    scores = classification_scores(counts, 1.0, ["a", "b", "c"])
    assert scores["top1"] == 0.75
    assert scores["classes"] == {"a": {"Acc": 1.0}, "b": {"Acc": pytest.approx(2 / 3)}, "c": {"Acc": None}}
    assert scores["confusion"] == [[1, 0, 0], [1, 2, 0], [0, 0, 0]]
