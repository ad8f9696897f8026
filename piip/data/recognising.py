"""Telling from a folder alone for which tasks its data are."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from piip.data.classification import has_classes
from piip.data.conversation_layout import has_conversations
from piip.data.layout import find_dataset
from piip.data.mask_layout import has_masks
from piip.errors import DataError

DataTask = Literal["detection", "segmentation", "classification", "multimodal"]


def recognise_tasks(path: str | Path) -> list[DataTask]:
    """Return the tasks whose layouts a data set has, detection first; none where nothing is recognised.

    Args:
        path: A folder, or a file of annotations or conversations.
    """
    path = Path(path)
    layouts: tuple[tuple[DataTask, Callable[[Path], bool]], ...] = (
        ("detection", _has_objects),
        ("segmentation", has_masks),
        ("multimodal", has_conversations),
    )
    found = [task for task, fits in layouts if fits(path)]
    # Folders of images, masks or annotations would pass for folders of classes.
    return found or (["classification"] if has_classes(path) else [])


def _has_objects(path: Path) -> bool:
    if path.is_file() and has_conversations(path):  # a json, too
        return False
    try:
        return bool(find_dataset(path).splits)
    except DataError:
        return False
