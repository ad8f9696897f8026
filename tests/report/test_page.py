"""What the page says of a run."""

from piip.report.page import _loss_lines


def test_the_largest_losses_come_first():
    """A DINO has two dozen parts of its loss, whose names would lie on each other: only the first are shown."""
    names = [f"train/loss_{number}" for number in range(9)]
    parts = {name: float(number) for number, name in enumerate(names)}
    lines = _loss_lines([{"step": step, "train/loss": 50.0} | parts for step in (1.0, 2.0)])
    assert [line.name for line in lines] == ["total", *(str(number) for number in reversed(range(9)))]


def test_a_loss_of_one_part_is_one_line():
    rows = [{"step": step, "train/loss": 2.0, "train/loss_ce": 2.0} for step in (1.0, 2.0)]
    assert [line.name for line in _loss_lines(rows)] == ["total"]
