"""Segmentation of an image in one or several views (test-time augmentation)."""

from typing import TYPE_CHECKING

from torch import Tensor

from piip.tasks.segmentation.segmenter import Segmenter

if TYPE_CHECKING:
    from piip.data.views import Views


def segment_views(segmenter: Segmenter, views: "Views") -> Tensor:
    """Return the class numbers int64 (H, W) of an image at its own size.

    Args:
        segmenter: In evaluation mode; its description says whether each view is read in windows or at once.
        views: The image.
    """
    if len(views) == 1:  # the largest logit is the largest probability
        return segmenter.segment(next(iter(views)).image[None], views.original_size)[0].argmax(0)
    return mean_probabilities(segmenter, views).argmax(0)


def mean_probabilities(segmenter: Segmenter, views: "Views") -> Tensor:
    """Return the probabilities (C, H, W) of the classes at the image's own size, averaged over its views."""
    total: Tensor | None = None
    for view in views:
        probabilities = segmenter.segment(view.image[None], views.original_size)[0].softmax(0)
        if view.flipped:
            probabilities = probabilities.flip(-1)
        total = probabilities if total is None else total.add_(probabilities)
    assert total is not None, "an image has at least one view"
    return total.div_(len(views))
