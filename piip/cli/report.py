"""``piip report``."""

from pathlib import Path

from piip.cli.console import console


def report_run(run: Path, out: Path | None = None, title: str = "") -> Path:
    """Write a run's report as one HTML page that needs nothing else.

    Args:
        run: The run folder.
        out: The file; report.html in the run folder by default.
        title: Heading; the run's name by default.
    """
    from piip.report import write_report

    path = write_report(run, out, title)
    console().print(f"report: {path}", markup=False)
    return path
