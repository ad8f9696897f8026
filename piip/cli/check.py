"""``piip check-data``."""

from collections.abc import Callable
from pathlib import Path

from piip.cli.console import console
from piip.errors import DataError
from piip.train.recipe import TaskName


def check_data(folder: Path, task: TaskName = "detection", read_images: bool = True) -> None:
    """Report what is wrong with a data set before training.

    Exit code 2 if there is an error that would stop or spoil training.

    Args:
        folder: A COCO, Roboflow or YOLO folder, a COCO json or a data.yaml; for other tasks images with masks, or
            a folder per class.
        task: What it is for: detection, segmentation or classification.
        read_images: Decode every image to find damaged ones; otherwise only headers are read.
    """
    from piip.data.check import check_detection
    from piip.data.check_labels import check_classification, check_segmentation
    from piip.data.report import CheckReport

    check: dict[str, Callable[..., CheckReport]] = {
        "detection": check_detection,
        "segmentation": check_segmentation,
        "classification": check_classification,
    }
    report = check[task](folder, read_images=read_images)
    console().print("\n".join(report.lines()), markup=False)
    if not report.ok:
        raise DataError(f"{folder} has errors; mend what is listed above.")
