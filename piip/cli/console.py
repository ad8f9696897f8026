"""Where the verbs print to."""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, TypeVar

from piip.errors import require

T = TypeVar("T")
WIDTH_OF_FILES = 140


@lru_cache(maxsize=1)
def console() -> Any:
    """Return the console of standard output; long lines are not broken where it is no terminal."""
    rich = require("rich.console", "cli", "The command line")
    shown = rich.Console(soft_wrap=True, highlight=False)
    if not shown.is_terminal:  # a file has no width that tables would have to fit
        shown.width = WIDTH_OF_FILES
    return shown


def table(title: str, columns: list[str], rows: list[list[str]], texts: int = 1) -> None:
    """Print a table whose first ``texts`` columns are text and whose others are numbers."""
    rich = require("rich.table", "cli", "The command line")
    box = require("rich.box", "cli", "The command line")
    shown = rich.Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for index, name in enumerate(columns):
        shown.add_column(name, justify="left" if index < texts else "right")
    for row in rows:
        shown.add_row(*row)
    console().print(shown)


def tracked(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """Yield items while a bar on standard error shows how many of them there were."""
    rich = require("rich.console", "cli", "The command line")
    bars = require("rich.progress", "cli", "The command line")
    with bars.Progress(transient=True, console=rich.Console(stderr=True)) as progress:
        yield from progress.track(items, total=total, description=what)


def percent(value: float | None) -> str:
    """Return a metric between 0 and 1 as it is printed in papers."""
    return "-" if value is None else f"{100 * value:.1f}"
