"""The command line: one typed function per verb, imported when it is called."""

import importlib
import sys
import warnings
from collections.abc import Sequence
from typing import TextIO

from piip.errors import ConfigError, PiipError, nearest

# No function has the name of one of piip's modules: jsonargparse looks every function up in the package and would
# import the module, and torch with it, to print a help text.
VERBS: dict[str, tuple[str, str]] = {
    "train": ("piip.cli.train:train_model", "Train a model from a recipe."),
    "eval": ("piip.cli.evaluate:evaluate", "Measure a trained model on a data set."),
    "predict": ("piip.cli.predict:predict_images", "Show what a trained model sees in images."),
    "chat": ("piip.cli.chat:chat_with", "Talk with a PIIP-LLaVA in the terminal."),
    "info": ("piip.cli.info:info", "Show what a model costs, part by part."),
    "list": ("piip.cli.catalog:catalog", "List the published configurations."),
    "convert": ("piip.cli.convert:convert_released", "Turn a released checkpoint into a model folder."),
    "check-data": ("piip.cli.check:check_data", "Report what is wrong with a data set before training."),
    "report": ("piip.cli.report:report_run", "Write a run's report as one HTML page."),
    "demo": ("piip.cli.demo:demo", "Train a small model on made-up pictures and report on it."),
    "env": ("piip.cli.env:env", "Show versions and hardware, for bug reports."),
}

EXIT_ERROR = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``piip VERB ...`` and return the exit code.

    A `PiipError` becomes one line and exit code 2, and so does Ctrl-C; anything else is a bug and keeps its
    traceback.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return _run(words)
    except PiipError as error:
        return _complain(f"piip: error: {' '.join(str(error).split())}")
    except KeyboardInterrupt as stop:
        return _complain(f"piip: {str(stop) or 'stopped by Ctrl-C'}")


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        sys.stdout.write(_overview())
        return 0 if words else EXIT_ERROR
    if words[0] in ("-V", "--version"):
        from piip._version import __version__

        sys.stdout.write(f"piip {__version__}\n")
        return 0
    verb, rest = words[0], words[1:]
    if verb not in VERBS:
        raise ConfigError(f"There is no verb {verb!r}. {nearest(verb, VERBS)}")
    from piip.cli.parsing import call
    from piip.memory import keep_freed_memory

    keep_freed_memory()

    module, _, name = VERBS[verb][0].partition(":")
    try:
        call(getattr(importlib.import_module(module), name), rest, prog=f"piip {verb}")
    except SystemExit as end:  # argparse leaves this way after --help
        return int(end.code or 0)
    return 0


def _overview() -> str:
    width = max(map(len, VERBS)) + 2
    listed = "\n".join(f"  {verb:<{width}}{summary}" for verb, (_, summary) in VERBS.items())
    return (
        "usage: piip VERB ...\n\nParameter-Inverted Image Pyramid Networks: see at high resolution without paying "
        f"for it.\n\n{listed}\n\n'piip VERB --help' explains a verb, 'piip --version' prints the version.\n"
    )


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Show a warning as one line; those meant for developers stay silent."""
    if issubclass(category, UserWarning):
        sys.stderr.write(f"piip: warning: {' '.join(str(message).split())}\n")


def _complain(line: str) -> int:
    sys.stderr.write(line + "\n")
    return EXIT_ERROR
