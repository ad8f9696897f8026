import os
import subprocess
import sys
from pathlib import Path

import pytest

from piip.train.checkpoints import model_weights
from piip.train.folder import RunFolder

ROOT = Path(__file__).parents[2]


def run(folder: Path, strategy: str, *, epochs: int = 2, resume: bool = False) -> list[dict[str, float]]:
    command = [sys.executable, "-m", "tests.train.distributed_run", strategy, "2", str(folder), str(epochs)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command + ["--resume"] * resume,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return RunFolder(folder).read_metrics()


@pytest.mark.slow
def test_sharding_gives_the_same_numbers_as_copying_and_resumes(tmp_path):
    copied = run(tmp_path / "ddp", "ddp")
    sharded = run(tmp_path / "fsdp", "fsdp")
    assert [row["step"] for row in copied] == list(range(1, 9))  # 4 batches of each process and epoch
    for one, two in zip(copied, sharded, strict=True):
        assert one == pytest.approx(two, rel=1e-4, abs=1e-6)
    weights = [model_weights(tmp_path / name / "checkpoints/last.ckpt") for name in ("ddp", "fsdp")]
    assert weights[0].keys() == weights[1].keys()
    for key, value in weights[0].items():
        assert value.allclose(weights[1][key], atol=1e-4), key
    more = run(tmp_path / "fsdp", "fsdp", epochs=3, resume=True)
    assert [row["step"] for row in more] == list(range(1, 13))
