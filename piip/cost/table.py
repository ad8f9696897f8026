"""What a network costs, part by part."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class PartCost:
    """The cost of one part of a network for one image (or batch).

    Attributes:
        name: ``branch1.embed``, ``interaction``, ``merge``, ...
        macs: Multiply-accumulates.
        params: Number of parameters.
        trainable: Number of parameters that are trained.
        train_bytes: Activations that the part keeps for the backward pass; None = not measured.
    """

    name: str
    macs: int
    params: int
    trainable: int
    train_bytes: int | None = None


@dataclass(frozen=True)
class CostTable:
    """The costs of all parts; they add up to the whole.

    Attributes:
        parts: In the order of the data flow.
        counted: What the multiply-accumulates include, in words.
        peak_bytes: Most memory that activations take at once in inference; None = not measured.
    """

    parts: tuple[PartCost, ...]
    counted: str
    peak_bytes: int | None = None

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the whole network."""
        return sum(part.macs for part in self.parts)

    @property
    def params(self) -> int:
        """Parameters of the whole network."""
        return sum(part.params for part in self.parts)

    @property
    def trainable(self) -> int:
        """Trained parameters of the whole network."""
        return sum(part.trainable for part in self.parts)

    @property
    def train_bytes(self) -> int | None:
        """Activations that the whole network keeps for the backward pass; None = not measured."""
        kept = [part.train_bytes for part in self.parts if part.train_bytes is not None]
        return sum(kept) if kept else None

    def __getitem__(self, name: str) -> PartCost:
        """Return a part by name."""
        return {part.name: part for part in self.parts}[name]

    def to_dict(self) -> dict[str, Any]:
        """Return everything, totals included, as JSON-ready values."""
        total = {"macs": self.macs, "params": self.params, "trainable": self.trainable}
        return {
            "parts": [asdict(part) for part in self.parts],
            "total": total | {"train_bytes": self.train_bytes, "peak_bytes": self.peak_bytes},
            "counted": self.counted,
        }

    def to_rows(self) -> list[list[str]]:
        """Return a heading, one row per part and the total as text, for printing."""
        measured = self.train_bytes is not None
        heading = ["part", "GMACs", "share", "params (M)", "trainable (M)"]
        rows = [heading + (["kept for backward (MiB)"] if measured else [])]
        total = PartCost("total", self.macs, self.params, self.trainable, self.train_bytes)
        for part in (*self.parts, total):
            cells = [
                part.name,
                f"{part.macs / 1e9:,.3f}",
                f"{part.macs / max(self.macs, 1):.1%}",
                f"{part.params / 1e6:,.3f}",
                f"{part.trainable / 1e6:,.3f}",
            ]
            rows.append(cells + ([f"{(part.train_bytes or 0) / 2**20:,.1f}"] if measured else []))
        return rows

    def to_text(self) -> str:
        """Return an aligned table with its legend, line by line."""
        rows = self.to_rows()
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = [
            "  ".join(
                [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
            )
            for row in rows
        ]
        return "\n".join([*lines, *self.legend()])

    def legend(self) -> Iterable[str]:
        """Yield the sentences that belong under the table."""
        if self.peak_bytes is not None:
            yield f"Peak of activations in inference: {self.peak_bytes / 2**20:,.1f} MiB."
        yield self.counted
