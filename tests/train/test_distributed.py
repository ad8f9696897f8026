import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from piip.train.checkpoints import model_weights
from piip.train.folder import RunFolder

ROOT = Path(__file__).parents[2]


def start(folder: Path, strategy: str, *, devices: int, epochs: int, option: str):
    module, numbers = "tests.train.distributed_run", (str(devices), str(folder), str(epochs))
    return subprocess.run(
        [sys.executable, "-m", module, strategy, *numbers, option],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def run(folder: Path, strategy: str, *, epochs: int = 2, resume: bool = False) -> list[dict[str, float]]:
    done = start(folder, strategy, devices=2, epochs=epochs, option="--resume" if resume else "")
    assert done.returncode == 0, done.stderr[-2000:]
    return RunFolder(folder).read_metrics()


def test_a_parameter_without_a_gradient_is_one_sentence(tmp_path):
    done = start(tmp_path, "ddp", devices=1, epochs=1, option="--idle")
    assert done.returncode == 1
    assert "ConfigError: Parts of the model get no gradient" in done.stderr.splitlines()[-1]


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


@pytest.mark.slow
def test_a_sharded_llava_learns_answers_and_is_saved_like_a_copied_one(tmp_path):
    pytest.importorskip("transformers")
    from tests.llava.language import save_language_model, write_colours

    write_colours(
        tmp_path / "data", (6, 3)
    )  # nine questions in batches of three: one process has more of them
    save_language_model(tmp_path / "language")
    (tmp_path / "recipe.yaml").write_text(
        "task: multimodal\n"
        "model: {branches: [test_vit, test_vit2], sizes: [64, 32], changes: {num_interactions: 2}}\n"
        f"data: {{folder: {tmp_path}/data, val: vqa_val, batch_size: 3, eval_batch_size: 3, workers: 0}}\n"
        f"language: {{model: {tmp_path}/language, instruction: '', max_length: 400, max_new_tokens: 6}}\n"
        "optimizer: {lr: 3.0e-3}\n"
        "trainer: {epochs: 1, accelerator: cpu, devices: 2, samples: 1, log_every: 1, clip_norm: 1.0}\n"
    )
    rows = []
    for strategy in ("ddp", "fsdp"):
        words = ["train", "recipe.yaml", "--trainer.strategy", strategy, "--out", strategy]
        done = subprocess.run(
            [sys.executable, "-m", "piip", *words],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        rows.append(RunFolder(tmp_path / strategy).read_metrics())
    for one, two in zip(*rows, strict=True):
        assert one == pytest.approx(two, rel=1e-4, abs=1e-6)
    one, two = (load_file(tmp_path / name / "model/model.safetensors") for name in ("ddp", "fsdp"))
    assert all(value.allclose(two[name], atol=1e-4) for name, value in one.items())
