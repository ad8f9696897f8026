"""``piip check-data``."""

from pathlib import Path

from piip.cli.console import console
from piip.errors import DataError


def check_data(folder: Path, read_images: bool = True) -> None:
    """Report what is wrong with a data set before training.

    Exit code 2 if there is an error that would stop or spoil training.

    Args:
        folder: A COCO, Roboflow or YOLO folder, a COCO json or a data.yaml.
        read_images: Decode every image to find damaged ones; otherwise only headers are read.
    """
    from piip.data.check import check_detection

    report = check_detection(folder, read_images=read_images)
    console().print("\n".join(report.lines()), markup=False)
    if not report.ok:
        raise DataError(f"{folder} has errors; mend what is listed above.")
