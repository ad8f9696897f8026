"""The whole experiment in one command: ``python -m benchmarks.reader --out runs/reader``, ``--quick`` for a minute.

What is there already is not done again. Once the data is there (``--only data``), several processes may share the
runs by ``--seeds`` and ``--contenders``; whichever ends last, or ``--only report``, writes the report.
"""

import argparse
from pathlib import Path

import torch

from benchmarks.reader.language import make_language_model
from benchmarks.reader.report import write_report
from benchmarks.reader.runs import run
from benchmarks.reader.samples import make_samples
from benchmarks.reader.settings import CONTENDERS, QUICK, WHOLE, Settings
from benchmarks.reader.words import Vocabulary
from piip.cli.llava import silence_transformers

DOCS = Path(__file__).parents[2] / "docs"


def main(arguments: list[str] | None = None) -> None:
    """Make what is read, train and ask the contenders, and write the table and the pictures."""
    options = _options(arguments)
    settings = QUICK if options.quick else WHOLE
    silence_transformers()
    torch.set_num_threads(options.threads)
    data, language = prepare(options.out, settings)
    if options.only == "data":
        return
    if options.only is None:
        for seed in options.seeds or settings.seeds:
            for contender in options.contenders or settings.contenders:
                run(contender, seed, settings, data, language, options.out)
    write_report(options.out, settings, options.docs or (options.out if options.quick else DOCS))


def prepare(out: Path, settings: Settings) -> tuple[Path, Path]:
    """Make the images and the language model, unless they are there, and return their folders."""
    data, language = out / "data", out / "language"
    if not (data / f"train_{len(settings.stages)}.json").exists():  # written last
        make_samples(data, settings)
    if not (language / "tokenizer.json").exists():
        vocabulary = Vocabulary(settings.words)
        make_language_model(language, vocabulary, settings.width, settings.layers, settings.spelling_steps)
    return data, language


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reader", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/reader"), help="folder of data and runs")
    parser.add_argument("--quick", action="store_true", help="a few steps; nothing is learnt")
    parser.add_argument("--only", choices=("data", "report"), help="this part alone")
    parser.add_argument("--seeds", type=int, nargs="+", help="runs of these seeds (default: all)")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, help="default: the first two")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")
    parser.add_argument(
        "--docs", type=Path, help="where table and pictures go (default: docs/, quick: --out)"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
