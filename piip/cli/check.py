"""``piip check-data``."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from piip.cli.console import console
from piip.errors import ConfigError, DataError

if TYPE_CHECKING:
    from piip.data.recognising import DataTask


def check_data(
    folder: Path,
    task: Literal["detection", "segmentation", "classification", "multimodal"] | None = None,
    read_images: bool = True,
    images: Path | None = None,
) -> None:
    """Report what is wrong with a data set before training.

    Exit code 2 if there is an error that would stop or spoil training.

    Args:
        folder: A COCO, Roboflow or YOLO folder, a COCO json or a data.yaml; for other tasks images with masks, a
            folder per class, or a json of conversations or questions.
        task: What it is for; by default recognised from the folder, as detection where more than one is possible.
        read_images: Decode every image to find damaged ones; otherwise only headers are read.
        images: Multimodal only: folder of the images, where they are not beside the conversations.
    """
    from piip.data.check import check_detection
    from piip.data.check_conversations import check_multimodal
    from piip.data.check_labels import check_classification, check_segmentation
    from piip.data.report import CheckReport

    check: dict[str, Callable[..., CheckReport]] = {
        "detection": check_detection,
        "segmentation": check_segmentation,
        "classification": check_classification,
        "multimodal": partial(check_multimodal, images=images),
    }
    if task is None:
        task = _recognised(folder)
    if images is not None and task != "multimodal":
        raise ConfigError(f"--images is for --task multimodal; for {task} the folder says where images are.")
    report = check[task](folder, read_images=read_images)
    console().print("\n".join(report.lines()), markup=False)
    if not report.ok:
        raise DataError(f"{folder} has errors; mend what is listed above.")


def _recognised(folder: Path) -> "DataTask":
    """Return the task that data are for, and say so; data that nobody recognises are left to detection."""
    from piip.data.recognising import recognise_tasks

    tasks = recognise_tasks(folder)
    if not tasks:
        return "detection"
    others = f"; say --task {' or '.join(tasks[1:])} for what else is there" if tasks[1:] else ""
    console().print(f"Checked for the task {tasks[0]}{others}.", markup=False)
    return tasks[0]
