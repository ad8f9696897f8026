"""Memory and time of evaluating masks, without a network: ``python -m benchmarks.evaluation``.

Made-up detections, 100 in every image of 640 x 480: 12 of 80 classes, boxes of 10 to 245 pixels, blobs as masks.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as tools
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from benchmarks.machine import RESULTS, machine
from piip.files import write_json
from piip.tasks.detection.masks import compress
from piip.tasks.detection.result import Instances
from piip.train.metrics import evaluate

SIZE = (480, 640)
DETECTIONS, OBJECTS, CLASSES, CLASSES_OF_AN_IMAGE = 100, 7, 80, 12
COCO_VAL = 5000
COMPARED = 20  # images drawn as torchvision draws them


def detections(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return boxes, scores, labels and mask probabilities (D, 28, 28) of an image."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    limit = torch.tensor([SIZE[1], SIZE[0]] * 2)
    centre, half = draw(DETECTIONS, 2) * limit[:2], torch.exp(draw(DETECTIONS, 2) * 3.2 + 1.6)
    boxes = torch.minimum(torch.cat([centre - half, centre + half], 1).clamp(min=0), limit)
    labels = torch.randperm(CLASSES, generator=generator)[:CLASSES_OF_AN_IMAGE]
    labels = labels[torch.randint(CLASSES_OF_AN_IMAGE, (DETECTIONS,), generator=generator)]
    rough = torch.nn.functional.interpolate(draw(DETECTIONS, 1, 6, 6), size=28, mode="bicubic")[:, 0]
    radius = torch.linspace(-1, 1, 28).square()
    blobs = (0.6 * rough + 0.8 * (1 - radius - radius[:, None])).clamp(0, 1)
    return boxes, draw(DETECTIONS).sort(descending=True).values, labels, blobs


def truth_of(found: list[dict[str, Any]], first_id: int) -> list[dict[str, Any]]:
    """Return some detections as if they were objects."""
    return [
        {**entry, "id": first_id + number, "area": entry["bbox"][2] * entry["bbox"][3], "iscrowd": 0}
        for number, entry in enumerate(found[:: DETECTIONS // OBJECTS][:OBJECTS])
    ]


def whole_images(blobs: Tensor, boxes: Tensor) -> list[Any]:
    """Draw and compress masks as torchvision and pycocotools do."""
    drawn = paste_masks_in_image(blobs[:, None], boxes, SIZE)[:, 0] >= 0.5
    return [tools.encode(np.asfortranarray(mask.numpy().astype(np.uint8))) for mask in drawn]


def seconds(function: Callable[[], Any]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def memory(name: str) -> float:
    """Return a line of Linux's account of this process in MiB: VmRSS is what it has, VmHWM the most it has had."""
    return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0]) / 2**10


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def measure(images: int) -> dict[str, float]:
    """Return seconds per image, and MiB of all detections and of comparing them."""
    for image in range(COMPARED):  # what is imported and reserved at first use is not counted
        boxes, _, _, blobs = detections(image)
        compress(blobs, boxes, SIZE, 0.5)
    results: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    categories = tuple(range(1, CLASSES + 1))
    before, drawing = memory("VmRSS"), 0.0
    for image in range(images):
        boxes, scores, labels, blobs = detections(image)
        start = time.process_time()
        masks = compress(blobs, boxes, SIZE, 0.5)
        drawing += time.process_time() - start
        results += Instances(boxes, scores, labels, masks, SIZE).to_coco(image, categories)
        annotations += truth_of(results[-DETECTIONS:], len(annotations) + 1)
    kept = memory("VmRSS")
    listed = [{"id": image, "height": SIZE[0], "width": SIZE[1]} for image in range(images)]
    classes = [{"id": number, "name": str(number)} for number in categories]
    truth = {"images": listed, "annotations": annotations, "categories": classes}
    forget_peak()
    comparing = seconds(lambda: evaluate(truth, results, masks=True))
    more = memory("VmHWM") - kept
    usual = 0.0  # measured last: it would leave much memory to be used again
    for image in range(COMPARED):
        boxes, _, _, blobs = detections(image)
        usual += seconds(partial(whole_images, blobs, boxes))
    return {
        "draw_and_compress_ms_per_image": 1000 * drawing / images,
        "torchvision_and_pycocotools_ms_per_image": 1000 * usual / COMPARED,
        "metrics_of_boxes_and_masks_ms_per_image": 1000 * comparing / images,
        "detections_kib_per_image": (kept - before) / images * 2**10,
        "metrics_kib_per_image": more / images * 2**10,
        "all_mib_of_5000_images": (kept - before + more) / images * COCO_VAL,
        "uncompressed_masks_mib_of_5000_images": DETECTIONS * SIZE[0] * SIZE[1] * COCO_VAL / 2**20,
    }


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluation", description=__doc__)
    parser.add_argument("--images", type=int, default=600, help="images (default 600)")
    parser.add_argument(
        "--output", type=Path, default=RESULTS / "evaluation.json", help="where the json goes"
    )
    options = parser.parse_args()
    found = {name: round(value, 1) for name, value in measure(options.images).items()}
    command = f"python -m benchmarks.evaluation --images {options.images}"
    write_json(options.output, {"command": command, "machine": machine(), **found})
    for name, value in found.items():
        print(f"{name:45} {value:12,.1f}")


if __name__ == "__main__":
    main()
