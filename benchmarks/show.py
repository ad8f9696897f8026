"""Results as tables in the terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.timing import Row


def show(console: Console, title: str, rows: Sequence[Row]) -> None:
    """Print rows with the columns that occur in them."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*(_text(row.get(column)) for column in columns))
    console.print(table)


def _text(value: object) -> str:
    if isinstance(value, dict):
        return " / ".join(f"{part:g}" for part in value.values())
    if value is None:
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)
