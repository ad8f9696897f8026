"""Proof that an interrupted run of any task goes on as if nothing had happened."""

import os
import signal

import pytest
import torch

from piip.train.checkpoints import AtomicCheckpointIO
from piip.train.run import run_training


def assert_resumes_exactly(run, recipe, module, step, folder, monkeypatch):
    """Interrupt the recipe after a step, resume it in ``folder`` and compare it with the uninterrupted ``run``."""
    original = module.losses

    def interrupted(self, batch):
        if self.global_step == step - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, batch)

    monkeypatch.setattr(module, "losses", interrupted)
    with pytest.raises(KeyboardInterrupt, match=f"after step {step}"):
        run_training(recipe, folder)
    monkeypatch.undo()
    resumed = run_training(recipe, folder, resume=True)
    assert resumed.metrics.read_text() == run.metrics.read_text()
    one, two = (AtomicCheckpointIO().load_checkpoint(part.last)["state_dict"] for part in (run, resumed))
    assert all(torch.equal(one[key], two[key]) for key in one)
    results = [{**part.read_results(), "seconds": 0} for part in (run, resumed)]
    assert results[0] == results[1]
