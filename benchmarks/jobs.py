"""Where the time of whole jobs goes, training and evaluating a Mask R-CNN: ``python -m benchmarks.jobs --help``.

A run of `piip.train` on real images, which are loaded in the same process, so that nothing hides. Every function
that is named below counts the processor time that it takes itself; the parts of a backward pass are told apart by
when the gradients arrive at their borders. An untrained detector is sure of nothing: the best 300 guesses in an
image count as detections.
"""

import argparse
import contextlib
import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lightning as L
import torch
from lightning.pytorch.loops.evaluation_loop import _EvaluationLoop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torchvision.ops import FeaturePyramidNetwork

from benchmarks.machine import RESULTS, machine
from piip.data.coco import DetectionDataset
from piip.files import write_json
from piip.network import PIIP
from piip.tasks.detection import box_head, detector, masks, matching, pooling, result, rpn, two_stage
from piip.train import checkpoints, detection, logs, progress
from piip.train.building import build_model
from piip.train.detection import DetectionData
from piip.train.fitting import fit
from piip.train.folder import RunFolder
from piip.train.recipe import TrainRecipe, load_recipe

NETWORK = "network: "
"""What begins like this has weights, or moves features between what has."""
CANDIDATES = 300
WATCHED: tuple[tuple[Any, str, str], ...] = (
    (DetectionDataset, "__getitem__", "loading and augmenting images"),
    (detector.Detector, "batch", "checking and joining images"),
    (detector, "check_images", "checking and joining images"),
    (detector, "check_targets", "checking and joining images"),
    (PIIP, "forward", NETWORK + "PIIP, forward"),
    (FeaturePyramidNetwork, "forward", NETWORK + "FPN, forward"),
    (rpn.RegionProposals, "forward", NETWORK + "RPN, forward"),
    (rpn.RegionProposals, "_anchors", "anchors"),
    (rpn.RegionProposals, "loss", "losses, forward"),
    (rpn.RegionProposals, "propose", "proposals without NMS"),
    (matching.Matcher, "__call__", "matching and sampling"),
    (matching.Sampler, "__call__", "matching and sampling"),
    (rpn.RegionProposals, "sample", "matching and sampling"),
    (box_head.BoxHead, "sample", "matching and sampling"),
    (rpn, "batched_nms", "suppression (NMS)"),
    (box_head, "suppress", "suppression (NMS)"),
    (pooling.RoIPooler, "__call__", NETWORK + "RoIAlign, forward"),
    (box_head.BoxHead, "forward", NETWORK + "box and mask heads, forward"),
    (box_head.BoxHead, "loss", "losses, forward"),
    (box_head.BoxHead, "detect", "detections without NMS"),
    (two_stage, "mask_targets", "mask targets"),
    (masks.MaskHead, "forward", NETWORK + "box and mask heads, forward"),
    (masks.MaskHead, "loss", "losses, forward"),
    (two_stage, "compress", "drawing and compressing masks"),
    (result.Instances, "to_coco", "results as COCO entries"),
    (detection, "evaluate", "metrics"),
    (DetectionDataset, "coco_dict", "metrics"),
    (torch.optim.AdamW, "step", "optimiser"),
    (torch.optim.AdamW, "zero_grad", "optimiser"),
    (detection.DetectionModule, "configure_gradient_clipping", "clipping of gradients"),
    (checkpoints.MovingAverage, "on_train_batch_end", "moving average of weights"),
    (logs.StepLog, "on_train_batch_end", "logs and progress"),
    (progress.ProgressReport, "on_train_batch_end", "logs and progress"),
)
PHASES = (
    (_TrainingEpochLoop, "advance", "training"),
    (_EvaluationLoop, "run", "evaluation"),
    (checkpoints.Checkpoints, "on_validation_end", "checkpoint, once for any number of images"),
)
# Backward runs from the last operation to the first: what has run when gradients arrive at the outputs of these.
BORDERS = {
    masks.MaskHead: "losses, backward",
    box_head.BoxHead: NETWORK + "RoIAlign, backward",
    pooling.RoIPooler: NETWORK + "box and mask heads, backward",
    rpn.RegionProposals: NETWORK + "RoIAlign, backward",
    FeaturePyramidNetwork: NETWORK + "RPN, backward",
    PIIP: NETWORK + "FPN, backward",
}


class Clock:
    """Adds up the time that named, nested stretches take themselves, apart for training and evaluation."""

    def __init__(self) -> None:
        self.seconds: dict[str, dict[str, float]] = {}
        self._phase = "before and after"
        self._open = ["Lightning, checkpoints and the rest"]
        self._last = time.process_time()
        self._borders: list[tuple[str, list[float]]] = []

    def turn(self, now: float | None = None) -> None:
        """Give the time since the last turn to the stretch that is open."""
        now = time.process_time() if now is None else now
        names = self.seconds.setdefault(self._phase, {})
        names[self._open[-1]] = names.get(self._open[-1], 0.0) + now - self._last
        self._last = now

    @contextlib.contextmanager
    def stretch(self, name: str) -> Iterator[None]:
        """Count a block; the time of stretches inside is theirs."""
        self.turn()
        self._open.append(name)
        try:
            yield
        finally:
            self.turn()
            self._open.pop()

    def watched(self, owner: Any, name: str, title: str) -> Any:
        """Return a patch that makes every call of a function a stretch, and a border of the backward pass."""
        function, border = (
            getattr(owner, name),
            BORDERS.get(owner) if name in ("forward", "__call__") else None,
        )

        def call(*arguments: Any, **options: Any) -> Any:
            with self.stretch(title):
                outputs = function(*arguments, **options)
            for tensor in tree_leaves(outputs) if border else ():
                if isinstance(tensor, Tensor) and tensor.requires_grad:
                    tensor.register_hook(self._arrival(border))
            return outputs

        return patch.object(owner, name, call)

    def phase(self, owner: Any, name: str, phase: str) -> Any:
        """Return a patch that counts the calls of a function apart."""
        function = getattr(owner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            self.turn()
            before, self._phase = self._phase, phase
            try:
                return function(*arguments, **options)
            finally:
                self.turn()
                self._phase = before

        return patch.object(owner, name, call)

    def backward(self) -> Any:
        """Return a patch that counts the parts of Lightning's backward pass."""
        function = L.LightningModule.backward

        def call(*arguments: Any, **options: Any) -> None:
            with self.stretch(NETWORK + "PIIP, backward"):
                function(*arguments, **options)
                for moment, name in sorted((max(times), name) for name, times in self._borders):
                    with patch.object(self, "_open", [name]):
                        self.turn(moment)
            self._borders.clear()

        return patch.object(L.LightningModule, "backward", call)

    def _arrival(self, name: str | None) -> Callable[[Tensor], None]:
        times: list[float] = []
        self._borders.append((name or "", times))
        return lambda gradient: times.append(time.process_time())


def usual_candidates() -> Any:
    """Return a patch by which as many boxes of an image pass the score threshold as those of a trained detector."""
    function = box_head.BoxHead.detect

    def detect(
        head: box_head.BoxHead,
        boxes: Tensor,
        logits: Tensor,
        deltas: Tensor,
        size: Tensor,
        scale: Tensor,
        config: Any,
    ) -> Any:
        scores = logits.softmax(-1)[:, :-1].flatten()
        threshold = float(scores.topk(min(CANDIDATES, len(scores))).values[-1])
        config = dataclasses.replace(config, score_threshold=threshold)
        return function(head, boxes, logits, deltas, size, scale, config)

    return patch.object(box_head.BoxHead, "detect", detect)


def profile(recipe: TrainRecipe, images: int) -> dict[str, dict[str, float]]:
    """Train for an epoch of some images and evaluate on as many; return the seconds of every stretch."""
    torch.manual_seed(0)
    data = DetectionData(recipe)
    for split in (data.train_set, data.val_set):
        split.indices = split.indices[:images]
    model = build_model(recipe, data.classes)
    assert isinstance(model, two_stage.TwoStage)
    module = detection.DetectionModule(model, recipe, data)
    image, target, meta = data.train_set[0]
    losses = model([image], [target], [meta])
    torch.stack(list(losses.values())).sum().backward()  # what is compiled at first use is not counted
    model.zero_grad()
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as patches:
        for owner, name, title in WATCHED:
            patches.enter_context(clock.watched(owner, name, title))
        for owner, name, phase in PHASES:
            patches.enter_context(clock.phase(owner, name, phase))
        for other in (clock.backward(), usual_candidates()):
            patches.enter_context(other)
        fit(module, data, RunFolder(Path(folder)))
        clock.turn()
    return clock.seconds


def main() -> None:
    """Profile a recipe, print the shares and add them to the file of results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.jobs", description=__doc__)
    parser.add_argument("recipe", help="a file of recipes/")
    parser.add_argument("changes", nargs="*", help="KEY=VALUE, as data.folder=../shared/data/bccd")
    parser.add_argument("--images", type=int, default=20, help="images of each job (default 20)")
    parser.add_argument("--output", type=Path, default=RESULTS / "jobs.json", help="where the json goes")
    options = parser.parse_args()
    pairs = [change.split("=", 1) for change in options.changes]
    fixed = {"data.workers": 0, "trainer.epochs": 1, "trainer.samples": 0, "trainer.accelerator": "cpu"}
    recipe = load_recipe(options.recipe, fixed | {key: _value(value) for key, value in pairs})
    words = ["python -m benchmarks.jobs", options.recipe, *options.changes, f"--images {options.images}"]
    report: dict[str, Any] = {"command": " ".join(words), "machine": machine(), "jobs": {}}
    for phase, names in profile(recipe, options.images).items():
        total, rows = sum(names.values()), sorted(names.items(), key=lambda item: -item[1])
        network = sum(seconds for name, seconds in rows if name.startswith(NETWORK)) / total
        shares = {name: round(seconds / total, 4) for name, seconds in rows}
        job = {"seconds_per_image": round(total / options.images, 4), "network": round(network, 4)}
        report["jobs"][phase] = job | {"shares": shares}
        print(f"{phase}: {total / options.images:.3f} s per image, network {network:.1%}")
        for name, seconds in rows:
            print(f"    {name:45} {1000 * seconds / options.images:9.1f} ms  {seconds / total:6.1%}")
    before = json.loads(options.output.read_text())["runs"] if options.output.exists() else []
    others = [run for run in before if run["command"] != report["command"]]
    write_json(options.output, {"runs": [*others, report]})


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


if __name__ == "__main__":
    main()
