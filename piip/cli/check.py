"""``piip check-data``."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

from piip.cli.console import console
from piip.errors import ConfigError, DataError

CheckedTask = Literal["detection", "segmentation", "classification", "multimodal"]


def check_data(
    folder: Path, task: CheckedTask = "detection", read_images: bool = True, images: Path | None = None
) -> None:
    """Report what is wrong with a data set before training.

    Exit code 2 if there is an error that would stop or spoil training.

    Args:
        folder: A COCO, Roboflow or YOLO folder, a COCO json or a data.yaml; for other tasks images with masks, a
            folder per class, or a json of conversations.
        task: What it is for: detection, segmentation, classification or multimodal.
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
    if images is not None and task != "multimodal":
        raise ConfigError(f"--images is for --task multimodal; for {task} the folder says where images are.")
    report = check[task](folder, read_images=read_images)
    console().print("\n".join(report.lines()), markup=False)
    if not report.ok:
        raise DataError(f"{folder} has errors; mend what is listed above.")
