"""Errors that a user can cause and mend: each message is one sentence that names the thing and the mend."""

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType

MOST_SHOWN = 30
"""Names that an error message lists at most."""

_FROM_LOADER = "DataLoader worker process"


class PiipError(Exception):
    """Base of every error that the command line shows as one line, with exit code 2.

    A data loader hands an error of its worker over as the text of the whole traceback. Only the last
    sentence is kept, so that the main process raises what the worker did.
    """

    def __init__(self, message: str) -> None:
        name = f"{type(self).__module__}.{type(self).__qualname__}: "
        super().__init__(message.rpartition(name)[2].strip() if _FROM_LOADER in message else message)


class ConfigError(PiipError, ValueError):
    """A description of a model or of a run contradicts itself or names something unknown."""


class DataError(PiipError):
    """A data set, an image or an annotation cannot be used."""


class CheckpointError(PiipError):
    """A file of weights is missing, damaged, unsafe or does not fit the model."""


class MissingExtraError(PiipError, ImportError):
    """An optional library is not installed."""


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Import an optional library.

    Args:
        module: Dotted module name, such as ``pycocotools.mask``.
        extra: The extra of piip that installs it.
        purpose: What needs it, the subject of the message.

    Raises:
        MissingExtraError: The library is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{purpose} needs {module.split('.')[0]}: pip install 'piip[{extra}]'."
        ) from error


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` for the known name closest to ``name``, or the list of known names."""
    choices = list(known)
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    if close:
        return f"Did you mean {close[0]!r}?"
    shown = ", ".join(map(repr, sorted(choices)[:MOST_SHOWN]))
    return (
        f"Known: {shown}." if len(choices) <= MOST_SHOWN else f"Known: {shown}, ... ({len(choices)} in all)."
    )
