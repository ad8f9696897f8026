"""Runs the toy module; started by test_distributed in a process of its own, which starts the others."""

import sys
from pathlib import Path

import torch

from piip.train.fitting import fit
from piip.train.folder import RunFolder
from tests.train.toy import ToyData, ToyModule, toy_recipe

if __name__ == "__main__":
    torch.set_num_threads(1)
    strategy, devices, folder, epochs = sys.argv[1:5]
    recipe = toy_recipe(
        strategy=strategy, devices=int(devices), epochs=int(epochs), ema_decay=None, clip_norm=0.5
    )
    module = ToyModule(recipe)
    if "--idle" in sys.argv:
        module.idle = torch.nn.Parameter(torch.zeros(3))
    fit(module, ToyData(), RunFolder(Path(folder)), resume="--resume" in sys.argv)
