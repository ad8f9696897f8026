"""Contenders in turn, in one process: the only comparison that a shared machine allows."""

import gc
import statistics
import time
from collections.abc import Callable, Iterable, Mapping

from rich.progress import Progress

Work = Callable[[], object]
Row = dict[str, object]


def interleave(
    contenders: Mapping[str, Work],
    rounds: int,
    warm_up: int = 1,
    prepare: Callable[[str, Work], None] = lambda name, work: None,
) -> dict[str, list[float]]:
    """Return the seconds of every contender in each of ``rounds`` rounds, after rounds that are not counted.

    ``prepare`` is called with a contender before its turn, and not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    with Progress(transient=True) as progress:
        task = progress.add_task(", ".join(contenders), total=(rounds + warm_up) * len(contenders))
        for number in range(warm_up + rounds):
            for name, work in contenders.items():
                gc.collect()
                prepare(name, work)
                start = time.perf_counter()
                work()
                elapsed = time.perf_counter() - start
                if number >= warm_up:
                    seconds[name].append(elapsed)
                progress.advance(task)
    return seconds


def compared(seconds: Mapping[str, list[float]], scale: float = 1.0) -> Iterable[Row]:
    """Yield a row per contender: spread of its seconds over ``scale`` images, and of its ratio to the first one.

    A ratio is that of one round, so that what else the machine does meets both alike.
    """
    first = next(iter(seconds.values()))
    for name, values in seconds.items():
        ratios = [reference / value for reference, value in zip(first, values, strict=True)]
        yield {
            "contender": name,
            "seconds": spread([value / scale for value in values]),
            "times_faster": spread(ratios),
        }


def spread(values: Iterable[float], digits: int = 3) -> dict[str, float]:
    """Return minimum, median and maximum."""
    ordered = sorted(values)
    named = {"min": ordered[0], "median": statistics.median(ordered), "max": ordered[-1]}
    return {key: round(value, digits) for key, value in named.items()}
