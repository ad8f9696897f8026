"""The table and the pictures of the experiment, from what the runs have left."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from transformers import LlamaConfig

from benchmarks.machine import machine
from benchmarks.reader.language import QUESTION
from benchmarks.reader.pictures import draw_accuracy, draw_examples
from benchmarks.reader.runs import final_folder, folder_of
from benchmarks.reader.settings import CONTENDERS, SIZES, Settings
from benchmarks.reader.towers import costs, out_grid
from piip.files import write_json, write_text
from piip.llava.scoring import vqa_scores

_TABLE = re.compile("(<!-- table -->\n).*(<!-- end of table -->)", re.DOTALL)


def write_report(out: Path, settings: Settings, docs: Path) -> bool:
    """Write results, table and pictures of contenders with all runs asked, if the setting's are among them.

    Args:
        out: Folder of the experiment.
        settings: Of the experiment.
        docs: Gets ``reader.md``, or its table anew, and ``images/reader_*``; ``out`` gets ``results.json``.

    Returns:
        Whether they were.
    """
    done = [
        name
        for name in CONTENDERS
        if all(_asked(final_folder(out, name, seed, settings)) for seed in settings.seeds)
    ]
    if not set(settings.contenders) <= set(done):
        return False
    results = collect(out, settings, done)
    images = docs / "images"
    images.mkdir(parents=True, exist_ok=True)
    write_json(out / "results.json", results)
    draw_accuracy(results, images / "reader_accuracy.svg")
    draw_examples(out, settings, done, images / "reader_examples.png")
    page = docs / "reader.md"
    before = page.read_text(encoding="utf-8") if page.exists() else "<!-- table -->\n<!-- end of table -->\n"
    write_text(page, _TABLE.sub(lambda found: found[1] + table(results) + found[2], before))
    return True


def collect(out: Path, settings: Settings, names: Sequence[str]) -> dict[str, Any]:
    """Return scores of every run of some contenders at every size, what chance is, costs and times."""
    text = LlamaConfig.from_pretrained(out / "language")
    contenders: dict[str, Any] = {}
    for name in names:
        folders = [final_folder(out, name, seed, settings) for seed in settings.seeds]
        contenders[name] = costs(name, settings, text) | {
            "accuracy": {size: [_accuracy(folder, size) for folder in folders] for size in SIZES},
            "by_words": {size: [_by_words(folder, size) for folder in folders] for size in SIZES},
            "seconds": [_seconds(out, name, seed, settings) for seed in settings.seeds],
        }
    return {
        "contenders": contenders,
        "constant": {size: best_constant(out / "data" / f"asked_{size}.json") for size in SIZES},
        "guess": _guess(settings),
        "sizes": SIZES,
        "seeds": settings.seeds,
        "image_tokens": out_grid(settings)[0] * out_grid(settings)[1],
        "question": QUESTION,
        "machine": machine(),
    }


def table(results: dict[str, Any]) -> str:
    """Return the scores as a table in Markdown: the mean and every seed."""
    sizes = results["sizes"]
    head = [*(f"{name} ({em} px)" for name, em in sizes.items())]
    lines = ["| tower | image side | GMAC | parameters |", "| best constant answer | | | |"]
    lines[0] += "".join(f" {cell} |" for cell in head)
    lines[1] += "".join(f" {_percent(results['constant'][size])} |" for size in sizes)
    lines.insert(1, "|---" * (4 + len(sizes)) + "|")
    for name, found in results["contenders"].items():
        about = f"{found['side']} | {found['macs'] / 1e9:.4f} | {found['parameters'] / 1e6:.2f} M"
        cells = [
            f"**{_percent(mean(scores))}** ({', '.join(map(_percent, scores))})"
            for scores in found["accuracy"].values()
        ]
        lines.append(f"| {name} | {about} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def best_constant(questions: Path) -> float:
    """Return the best score that one answer to all questions can have."""
    truths = [entry["answers"] for entry in _read(questions)["data"]]
    answers = {truth[0] for truth in truths}
    return max(vqa_scores([(answer, truth) for truth in truths])["accuracy"] for answer in answers)


def _guess(settings: Settings) -> float:
    """Return the expected score of guessing one or two words where their number is known."""
    pairs, words = settings.stages[-1].pairs, len(settings.words)
    return (1 - pairs) / words + pairs / words**2


def _asked(folder: Path) -> bool:
    return all((folder / f"eval_asked_{size}.json").exists() for size in SIZES)


def _seconds(out: Path, contender: str, seed: int, settings: Settings) -> float:
    """Return how long all stages of a run took."""
    stages = range(1, len(settings.stages) + 1)
    folders = [folder_of(out, contender, seed, number) for number in stages]
    return sum(float(_read(folder / "results.json")["seconds"]) for folder in folders)


def _accuracy(folder: Path, size: str) -> float:
    return float(_read(folder / f"eval_asked_{size}.json")["scores"]["accuracy"])


def _by_words(folder: Path, size: str) -> dict[str, float]:
    """Return the accuracy of questions by the number of words that are written."""
    truths = _read(folder.parent / "data" / f"asked_{size}.json")["data"]
    answers = _read(folder / f"eval_asked_{size}_answers.json")
    scores: dict[str, list[float]] = {}
    for truth, record in zip(truths, answers, strict=True):
        scores.setdefault(str(len(truth["answers"][0].split())), []).append(record["score"])
    return {count: mean(found) for count, found in sorted(scores.items())}


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"
