"""Detection in several views: boxes come back to the image, masks are averaged over the views."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import box_iou, roi_align

from piip.data.geometry import ImageMeta
from piip.data.settings import AugmentedTest, ImageConfig
from piip.data.views import View, Views
from piip.tasks.detection import DINO, RCNN, DetectorConfig, RCNNConfig, detect_views
from piip.tasks.detection.augmented import mean_masks, merge, to_image, to_view
from piip.tasks.detection.box_head import Scored
from piip.tasks.detection.boxes import mirror
from piip.tasks.detection.masks import decode_masks
from tests.tasks.detection.dino.test_detector import Backbone
from tests.tasks.detection.dino.test_detector import config as dino_config
from tests.tasks.detection.test_cascade import cascade
from tests.tasks.detection.test_rcnn import config
from tests.tasks.detection.toy import TinyBackbone

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
RAW = ImageConfig(mean=(0, 0, 0), std=(255, 255, 255), scale=(120, 90))
ALL = AugmentedTest((0.75, 1.0, 1.5), flip=True)
HEIGHT, WIDTH = 60, 80


class Oracle(RCNN):
    """A detector that sees brightness: its map is the image, its one box holds all that is bright.

    Attributes:
        scores: Score of the box in the first view, in the second, ...
        asked: The boxes for which masks were asked, view by view.
    """

    def __init__(self, scores=(0.9,) * 6, **changes):
        super().__init__(config(**changes), TinyBackbone())
        self.scores = iter(scores)
        self.asked = []

    def features(self, images):
        return [images[0][None]]

    def detect_boxes(self, pyramid, sizes, scales):
        assert sizes.tolist() == [list(pyramid[0].shape[-2:])]
        rows, columns = (pyramid[0][0, 0] > 0.5).nonzero(as_tuple=True)
        box = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
        return [Scored(box[None] / scales, torch.tensor([next(self.scores)]), torch.tensor([1]))]

    def detect_masks(self, pyramid, boxes, labels):
        assert [label.tolist() for label in labels] == [[1]]
        self.asked.append(boxes[0])
        return (roi_align(pyramid[0][:, :1], list(boxes), 28, aligned=True)[:, 0],)


def corner():
    """An L far from the middle of a dark image, which no mirroring leaves as it is."""
    mask = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    mask[10:50, 8:18] = True
    mask[38:50, 8:40] = True
    return mask, mask.to(torch.uint8).expand(3, -1, -1) * 255


def test_boxes_and_masks_of_all_views_agree_on_what_is_there():
    truth, pixels = corner()
    detector = Oracle().eval()
    found = detect_views(detector, Views(pixels, RAW, ALL))
    assert len(found) == 1, "what six views see is one object"
    assert (found.boxes - torch.tensor([8.0, 10, 40, 50])).abs().max() < 1.5
    assert found.original_size == (HEIGHT, WIDTH)
    mask = torch.from_numpy(decode_masks(found.masks, found.original_size))[0]
    assert (mask & truth).sum() / (mask | truth).sum() > 0.9
    assert len(detector.asked) == 6
    for view, boxes in zip(Views(pixels, RAW, ALL), detector.asked, strict=True):
        (height, width), (left, _, right, _) = view.meta.size, boxes[0].tolist()
        assert left + right > width if view.flipped else left + right < width
        assert boxes[0, 3] < height


def test_masks_of_a_symmetric_object_are_those_of_one_view():
    pixels = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8)
    pixels[:, 20:40, 30:50] = 255  # the image is 80 wide
    pixels[:, 10:20, 38:42] = 255
    still = RAW.replace(scale=(WIDTH, HEIGHT))
    plain = Oracle()
    seen = [(view, plain.features([view.image])) for view in Views(pixels, still, AugmentedTest(flip=True))]
    found = plain.detect_boxes(seen[0][1], torch.tensor([[HEIGHT, WIDTH]]), torch.ones(1, 4))[0]
    single, twice = mean_masks(plain, seen[:1], found), mean_masks(plain, seen, found)
    torch.testing.assert_close(single, twice)
    torch.testing.assert_close(twice, twice.flip(-1))


def test_mask_probabilities_are_averaged():
    _, pixels = corner()
    detector = Oracle()
    views = list(Views(pixels, RAW, ALL))
    found = Scored(torch.tensor([[5.0, 8, 50, 55]]), torch.tensor([0.5]), torch.tensor([1]))
    expected = torch.zeros(1, 28, 28)
    for view in views:
        sx, sy = view.meta.scale_factor
        box = [WIDTH - 50, 8, WIDTH - 5, 55] if view.flipped else [5, 8, 50, 55]
        box = torch.tensor([[box[0] * sx, box[1] * sy, box[2] * sx, box[3] * sy]])
        mask = roi_align(view.image[None, :1], [box], 28, aligned=True)[:, 0]
        expected += (mask.flip(2) if view.flipped else mask) / 6
    seen = [(view, detector.features([view.image])) for view in views]
    torch.testing.assert_close(mean_masks(detector, seen, found), expected)


def test_the_best_of_overlapping_boxes_stays_and_nothing_is_no_error():
    _, pixels = corner()
    detector = Oracle(scores=(0.2, 0.3, 0.95, 0.4, 0.5, 0.6))
    assert detect_views(detector, Views(pixels, RAW, ALL)).scores.tolist() == [pytest.approx(0.95)]
    torch.manual_seed(0)
    for masks in (True, False):
        blind = RCNN(config(masks=masks, score_threshold=1.0), TinyBackbone()).eval()
        found = detect_views(blind, Views(pixels, RAW, ALL))
        assert len(found) == 0
        assert (found.masks == []) if masks else (found.masks is None)


def test_views_are_merged_class_by_class_up_to_the_limit():
    near, far = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[30.0, 30, 40, 40]])
    first = Scored(torch.cat([near, far]), torch.tensor([0.9, 0.3]), torch.tensor([0, 0]))
    second = Scored(torch.cat([near, near + 1]), torch.tensor([0.8, 0.7]), torch.tensor([1, 0]))
    merged = merge([first, second], RCNNConfig(("a", "b"), (1,) * 4))
    assert merged.scores.tolist() == pytest.approx([0.9, 0.8, 0.3]), "0.7 overlaps 0.9 of its class"
    assert merged.labels.tolist() == [0, 1, 0]
    few = merge([first, second], RCNNConfig(("a", "b"), (1,) * 4, detections_per_image=2))
    assert few.scores.tolist() == pytest.approx([0.9, 0.8])
    # (near, near + 1) overlap by 81 / 119 = 0.68: one object at 0.5, two at the 0.7 of detectors without NMS.
    assert len(merge([first, second], DetectorConfig(("a", "b"), (1,) * 4))) == 3
    kept = merge([first, second], DetectorConfig(("a", "b"), (1,) * 4)).scores
    assert kept.tolist() == pytest.approx([0.9, 0.8, 0.7, 0.3])


FEW = {"score_threshold": 0.0, "detections_per_image": 20}


@pytest.mark.parametrize(
    "build",
    [
        lambda: RCNN(config(**FEW), TinyBackbone()),
        lambda: RCNN(config(masks=False, **FEW), TinyBackbone()),
        lambda: RCNN(config(nms_kind="gaussian", **FEW), TinyBackbone()),
        lambda: cascade(masks=True, **FEW),
        lambda: DINO(dino_config(num_queries=40, detections_per_image=20), Backbone()),
    ],
    ids=["masks", "boxes", "soft", "cascade", "dino"],
)
def test_what_is_found_in_a_mirrored_image_is_mirrored(build):
    torch.manual_seed(2)
    detector = build().eval()
    pixels = torch.randint(0, 256, (3, HEIGHT, WIDTH), dtype=torch.uint8)
    with torch.inference_mode():
        found, mirrored = (detect_views(detector, Views(p, RAW, ALL)) for p in (pixels, pixels.flip(-1)))
    assert len(found) == len(mirrored) == 20
    torch.testing.assert_close(found.scores, mirrored.scores)
    assert torch.equal(found.labels, mirrored.labels)
    torch.testing.assert_close(mirror(found.boxes, WIDTH), mirrored.boxes, atol=1e-3, rtol=0)
    assert (found.masks is not None) == detector.config.masks
    if found.masks is not None:
        ours, theirs = (decode_masks(seen.masks, seen.original_size) for seen in (found, mirrored))
        assert ours.any()
        assert (ours[..., ::-1] == theirs).mean() > 0.999


def test_without_masks_every_view_is_detected_in_and_mapped_back():
    torch.manual_seed(3)
    detector = RCNN(config(masks=False, score_threshold=0.0), TinyBackbone()).eval()
    pixels = torch.randint(0, 256, (3, HEIGHT, WIDTH), dtype=torch.uint8)
    with torch.inference_mode():
        views = Views(pixels, RAW, AugmentedTest((1.0, 1.25), flip=True))
        merged = detect_views(detector, views)
        alone = detect_views(detector, Views(pixels.flip(-1), RAW.scaled(1.25), AugmentedTest()))
    best = alone.scores.argmax()
    overlap = box_iou(
        mirror(alone.boxes[best], WIDTH)[None], merged.boxes[merged.labels == alone.labels[best]]
    )
    assert overlap.max() > 0.5, "the best box of the last view is there, or a better one that overlaps it"


@given(
    st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4),
    st.integers(1, 4000),
    st.integers(1, 4000),
    st.floats(0.2, 4),
    st.booleans(),
)
def test_boxes_go_to_a_view_and_back(shares, height, width, factor, flipped):
    low, high = sorted(shares[:2]), sorted(shares[2:])
    boxes = torch.tensor([[low[0] * width, high[0] * height, low[1] * width, high[1] * height]])
    size = (max(1, int(height * factor)), max(1, int(width * factor)))
    view = View(torch.zeros(3, 1, 1), flipped, ImageMeta.of(0, "", (height, width), size))
    seen = to_view(boxes, view)
    assert (seen[:, :2] <= seen[:, 2:]).all()
    assert (seen >= -1e-3 * max(size)).all()
    scales = torch.tensor([view.meta.scale_factor * 2])
    back = to_image(Scored(seen / scales, torch.ones(1), torch.zeros(1)), view).boxes
    torch.testing.assert_close(back, boxes, atol=2e-6 * max(height, width), rtol=0)
    torch.testing.assert_close(mirror(mirror(boxes, width), width), boxes, atol=1e-6 * width, rtol=0)
