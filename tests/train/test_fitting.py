import os
import signal
from types import SimpleNamespace

import pytest
import torch

from piip.errors import CheckpointError, ConfigError, PiipError
from piip.train import fitting
from piip.train.checkpoints import AtomicCheckpointIO, MovingAverage, model_weights
from piip.train.fitting import build_trainer, fit
from piip.train.folder import RunFolder
from piip.train.module import TrainingError
from tests.train.toy import ToyData, ToyModule, toy_recipe


class Interrupted(ToyModule):
    """Gets Ctrl-C in the middle of a step."""

    at = 11

    def losses(self, batch):
        if len(self.seen) == self.at:
            os.kill(os.getpid(), signal.SIGINT)
        return super().losses(batch)


def run(folder, module, *, resume=False, workers=0):
    fit(module, ToyData(workers=workers), RunFolder(folder), resume=resume)
    return module


def same(first, second) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


@pytest.mark.parametrize(
    "changes", [{}, {"accumulate": 2, "eval_every": 2}, {"ema_decay": None, "clip_norm": 0.1}]
)
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, changes):
    recipe = toy_recipe(**changes)
    whole = run(tmp_path / "whole", ToyModule(recipe))
    with pytest.raises(KeyboardInterrupt, match="continue with --out"):
        run(tmp_path / "parts", Interrupted(recipe))
    resumed = run(tmp_path / "parts", ToyModule(recipe), resume=True)
    assert len(resumed.seen) < len(whole.seen)
    assert resumed.seen == whole.seen[-len(resumed.seen) :]
    assert_same_folders(tmp_path / "whole", tmp_path / "parts")


def assert_same_folders(whole, parts):
    """Compare last checkpoints, metrics and results, to the last bit."""
    one, two = (
        AtomicCheckpointIO().load_checkpoint(folder / "checkpoints/last.ckpt") for folder in (whole, parts)
    )
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "current_model_state"):
        assert same(one.get(key), two.get(key)), key
    assert (whole / "metrics.csv").read_text() == (parts / "metrics.csv").read_text()
    assert (whole / "results.json").read_text() == (parts / "results.json").read_text()


class Unmeasurable(ToyModule):
    """Cannot evaluate the second image after an epoch."""

    epoch = 0

    def validation_step(self, batch, batch_idx):
        if (self.current_epoch, batch_idx) == (self.epoch, 1):
            raise PiipError("no more")
        super().validation_step(batch, batch_idx)


@pytest.mark.parametrize(
    ("epoch", "changes"),
    [(0, {}), (1, {"ema_decay": None}), (1, {"accumulate": 2, "eval_every": 2}), (2, {"eval_every": 2})],
)
def test_an_evaluation_that_fails_costs_no_epoch(tmp_path, epoch, changes):
    recipe = toy_recipe(**changes)
    run(tmp_path / "whole", ToyModule(recipe))
    for resume in (False, True):  # a second time changes nothing
        failing = Unmeasurable(recipe)
        failing.epoch = epoch
        with pytest.raises(PiipError, match="no more"):
            run(tmp_path / "parts", failing, resume=resume)
    assert not failing.seen
    resumed = run(tmp_path / "parts", ToyModule(recipe), resume=True)
    assert {epoch for epoch, _ in resumed.seen} == set(range(epoch + 1, 3))
    assert_same_folders(tmp_path / "whole", tmp_path / "parts")


def test_an_evaluation_that_failed_is_repeated_even_if_there_would_be_none_now(tmp_path):
    with pytest.raises(PiipError, match="no more"):
        run(tmp_path, Unmeasurable(toy_recipe()))
    resumed = run(tmp_path, ToyModule(toy_recipe(eval_every=2)), resume=True)
    assert len(resumed.seen) == 2 * 7  # a step an image, none of the first epoch
    measured = [
        row["epoch"] for row in RunFolder(tmp_path).read_metrics() if row.get("val/value") is not None
    ]
    assert measured == [1, 2, 3]


def test_resuming_at_the_end_of_an_epoch_with_loader_processes(tmp_path):
    whole = run(tmp_path / "whole", ToyModule(toy_recipe()), workers=1)
    short = toy_recipe(epochs=2)
    run(tmp_path / "parts", ToyModule(short))
    resumed = run(tmp_path / "parts", ToyModule(toy_recipe()), resume=True, workers=1)
    assert resumed.seen == whole.seen[-len(resumed.seen) :]
    assert {epoch for epoch, _ in resumed.seen} == {2}


def test_every_epoch_has_its_own_order_and_augmentation(tmp_path):
    seen = run(tmp_path, ToyModule(toy_recipe())).seen
    epochs = [[index for epoch, index in seen if epoch == e] for e in range(3)]
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert all(sorted(set(epoch)) == list(range(7)) for epoch in epochs)


def test_a_loss_that_is_not_finite_stops_with_step_and_name(tmp_path):
    with pytest.raises(TrainingError, match=r"step 5 \(epoch 1\): loss_a is nan; lower optimizer.lr"):
        run(tmp_path, ToyModule(toy_recipe(), poison_step=4))


def test_a_full_disk_is_one_sentence_and_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    run(tmp_path, ToyModule(toy_recipe(epochs=1)))
    before = (tmp_path / "checkpoints/last.ckpt").read_bytes()

    def full(checkpoint, path):
        path.write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    monkeypatch.setattr("torch.save", full)
    with pytest.raises(PiipError, match=r"Cannot write .*ckpt: .*Free some space"):
        run(tmp_path, ToyModule(toy_recipe(epochs=2)), resume=True)
    assert (tmp_path / "checkpoints/last.ckpt").read_bytes() == before
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"last.ckpt", "best.ckpt"}


def test_a_damaged_checkpoint_is_one_sentence(tmp_path):
    run(tmp_path, ToyModule(toy_recipe(epochs=1)))
    last = tmp_path / "checkpoints/last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="is damaged"):
        run(tmp_path, ToyModule(toy_recipe()), resume=True)
    last.write_bytes(b"abc")
    with pytest.raises(CheckpointError, match="is damaged"):
        run(tmp_path, ToyModule(toy_recipe()), resume=True)
    torch.save({"state_dict": {}}, last)
    with pytest.raises(CheckpointError, match="is no checkpoint of a run"):
        run(tmp_path, ToyModule(toy_recipe()), resume=True)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        model_weights(tmp_path / "none.ckpt")


def test_a_checkpoint_of_another_model_is_one_sentence(tmp_path):
    run(tmp_path, ToyModule(toy_recipe(epochs=1)))
    last = tmp_path / "checkpoints/last.ckpt"
    content = torch.load(last, weights_only=True)
    content["state_dict"].pop("model.0.mergings.0.weights.0")
    torch.save(content, last)
    with pytest.raises(CheckpointError, match=r"last.ckpt is of another model"):
        run(tmp_path, ToyModule(toy_recipe()), resume=True)


def test_rows_of_a_step_already_logged_stay_when_resuming_inside_an_accumulation(tmp_path):
    recipe = toy_recipe(accumulate=2)
    run(tmp_path / "whole", ToyModule(recipe))
    stopped = Interrupted(recipe)
    stopped.at = 9
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", stopped)
    run(tmp_path / "parts", ToyModule(recipe), resume=True)
    assert (tmp_path / "parts/metrics.csv").read_text() == (tmp_path / "whole/metrics.csv").read_text()


def test_a_missing_gpu_is_one_sentence(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match=r"accelerator gpu.*--trainer\.accelerator auto"):
        build_trainer(toy_recipe(accelerator="gpu"), RunFolder(tmp_path))


def test_the_average_is_what_is_saved_and_starts_fast(tmp_path):
    module = run(tmp_path, ToyModule(toy_recipe(epochs=1)))
    averaged = model_weights(tmp_path / "checkpoints/last.ckpt")
    now = module.model.state_dict()
    assert all(torch.equal(averaged[key], now[key]) for key in now)  # copied back at the end
    average = MovingAverage(0.999)._kwargs["multi_avg_fn"]
    for count, expected in ((torch.tensor(0), 0.9), (10**6, 0.001)):
        averages = [torch.zeros(1), torch.zeros(2)]
        average(averages, [torch.ones(1), torch.ones(2)], count)
        assert torch.cat(averages).tolist() == pytest.approx([expected] * 3)
    counters = [torch.tensor(3)]
    average(counters, [torch.tensor(4)], 1)
    assert counters == [4]


def test_progress_lines_and_metrics(tmp_path, capsys):
    run(tmp_path, ToyModule(toy_recipe(epochs=2)))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[:2] for line in lines] == [["epoch", "1/2"], ["epoch", "2/2"]]
    assert all("metric" in line for line in lines)
    rows = RunFolder(tmp_path).read_metrics()
    assert {"step", "train/loss", "train/lr", "train/loss_a", "val/value"} <= set().union(*rows)
    assert rows[0]["train/lr"] < rows[3]["train/lr"]


def test_bf16_trains_close_to_float32(tmp_path):
    rows = []
    for precision in ("32", "bf16"):
        folder = RunFolder(tmp_path / precision)
        recipe = toy_recipe(epochs=1, precision=precision, clip_norm=0.5)
        fit(ToyModule(recipe), ToyData(), folder)
        rows.append([row["train/loss"] for row in folder.read_metrics()])
    assert rows[0] != rows[1]
    assert rows[0] == pytest.approx(rows[1], rel=0.05)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_slow_bfloat16_is_announced_once(tmp_path, monkeypatch, recwarn, known, precision):
    monkeypatch.setattr(fitting, "has_arithmetic", lambda dtype: known)
    recipe = toy_recipe(epochs=1, precision=precision)
    build_trainer(recipe, RunFolder(tmp_path))
    fit(ToyModule(recipe), ToyData(), RunFolder(tmp_path))
    told = [str(warning.message) for warning in recwarn if "arithmetic" in str(warning.message)]
    assert len(told) == (precision == "bf16" and not known)


@pytest.mark.parametrize(("processes", "device"), [(2, "cuda"), (1, "cuda"), (2, "cpu")])
def test_batch_norms_see_the_batches_of_all_gpus(processes, device):
    """As the original's; CPUs and single GPUs have nothing to share."""
    module = ToyModule(toy_recipe())
    module.model.norm = torch.nn.BatchNorm1d(4)
    strategy = SimpleNamespace(root_device=torch.device(device))
    module._trainer = SimpleNamespace(world_size=processes, strategy=strategy)
    module.configure_model()
    shared = isinstance(module.model.norm, torch.nn.SyncBatchNorm)
    assert shared == (processes > 1 and device == "cuda")
