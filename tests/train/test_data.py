import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_loader_processes_do_not_keep_a_failed_run_alive():
    """A traceback holds the loader's iterator, so that nothing has ended its processes when Python ends."""
    script = """
        from piip.train.data import end_loaders_at_exit
        from tests.train.toy import ToyData

        end_loaders_at_exit()
        batches = iter(ToyData(workers=2).train_dataloader())
        next(batches)
        raise SystemExit("the step failed")
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, timeout=60, capture_output=True, text=True
    )
    assert ended.returncode == 1
    assert ended.stderr.strip().endswith("the step failed")
