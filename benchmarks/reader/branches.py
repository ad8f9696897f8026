"""What each branch of the two gives: ``python -m benchmarks.reader.branches --out runs/reader``, after the runs.

Every size is asked again with the tokens of one branch left out of the sum, and the gates of the interactions are
read, which begin at 0. A branch still reaches the answer through the other one where features flow between them.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.reader.runs import ASKED_AT_ONCE, final_folder
from benchmarks.reader.settings import CONTENDERS, SIZES, WHOLE
from piip.cli.llava import silence_transformers
from piip.files import write_json
from piip.llava import Answerer
from piip.llava.questions import answer_questions, read_questions, score


def main() -> None:
    """Print and save accuracies without each branch, and the mean size of the gates, of every seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/reader"), help="folder of data and runs")
    out = parser.parse_args().out
    silence_transformers()
    torch.set_num_threads(1)
    found = {}
    for seed in WHOLE.seeds:
        answerer = Answerer.load(final_folder(out, CONTENDERS[0], seed, WHOLE), "cpu")
        scores: dict[str, Any] = {"gates": gates(answerer.model)}
        for index, name in enumerate(("without the large network", "without the small network")):
            with left_out(answerer.model, index):
                scores[name] = {
                    size: _accuracy(answerer, out / "data" / f"asked_{size}.json") for size in SIZES
                }
        found[f"seed {seed}"] = scores
        print(f"seed {seed}: {scores}", flush=True)
    write_json(out / "branches.json", found)


def gates(model: Any) -> dict[str, float]:
    """Return the mean absolute value of every gate of the interactions."""
    network = model.model.vision_tower.network
    return {
        name: round(float(value.abs().mean()), 4)
        for name, value in network.interactions.named_parameters()
        if name.endswith("gate")
    }


@contextmanager
def left_out(model: Any, index: int) -> Iterator[None]:
    """Leave the tokens of the branch with this index out of the sum."""

    def nothing(_module: Any, _inputs: Any, tokens: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(tokens)

    hook = model.model.multi_modal_projector.fc2[index].register_forward_hook(nothing)
    try:
        yield
    finally:
        hook.remove()


def _accuracy(answerer: Answerer, path: Path) -> float:
    form, questions = read_questions(path)
    answers = list(answer_questions(answerer, questions, batch_size=ASKED_AT_ONCE))
    return score(form, questions, answers)["accuracy"]


if __name__ == "__main__":
    main()
