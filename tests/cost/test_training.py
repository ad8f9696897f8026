import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from piip.cost.training import LEVELS, TrainingMemory, activation_bytes, gathered_bytes, training_memory

SAMPLES, WIDE, NARROW = 10, 64, 16


class TwoLayers(nn.Module):
    """Two linear layers, the first of them a unit that FSDP gathers."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(NARROW, WIDE, bias=False)])
        self.last = nn.Linear(WIDE, NARROW, bias=False)

    def loss(self):
        return self.last(self.blocks[0](torch.zeros(SAMPLES, NARROW)).relu()).square().sum()


def on_meta(kind=TwoLayers):
    with torch.device("meta"):
        return kind()


def test_states_by_hand():
    model = on_meta()
    model.last.to(torch.bfloat16).requires_grad_(False)
    fixed, learnt = 2 * WIDE * NARROW, 4 * WIDE * NARROW
    assert (
        gathered_bytes(model, model.blocks) == fixed + 2 * learnt
    )  # the rest; weights and gradients of the block
    model.last.float()
    memory = training_memory(model, model.loss, model.blocks)
    assert (memory.fixed, memory.learnt, memory.gradients, memory.moments) == (
        learnt,
        learnt,
        learnt,
        2 * learnt,
    )


def test_activations_by_hand():
    image, hidden, scalar = 4 * SAMPLES * NARROW, 4 * SAMPLES * WIDE, 4
    # The peak is in the backward pass of the relu: it reads its output and the gradient of that, and writes the
    # gradient of its input, while the image waits for its turn, and the loss and its own gradient are there.
    model = on_meta()
    assert activation_bytes(model, model.loss) == image + 3 * hidden + 2 * scalar


def test_what_is_not_learnt_keeps_less():
    model = on_meta()
    everything = activation_bytes(model, model.loss)
    model = on_meta()
    model.blocks.requires_grad_(False)
    assert activation_bytes(model, model.loss) < everything


def test_levels_by_hand():
    memory = TrainingMemory(fixed=80, learnt=160, gradients=160, moments=320, activations=1000, gathered=70)
    assert memory.per_gpu("ddp", 8) == memory.per_gpu("ddp", 1) == 1720
    assert memory.per_gpu("zero1", 8) == 1720 - 320 + 40
    assert memory.per_gpu("zero2", 8) == 1720 - 480 + 60
    assert memory.per_gpu("fsdp", 8) == 1000 + 720 // 8 + 70
    assert memory.per_gpu("fsdp", 1) == 1720


@pytest.mark.parametrize("level", LEVELS)
def test_more_gpus_never_need_more(level):
    memory = TrainingMemory(
        fixed=2 * 10**9, learnt=10**9, gradients=10**9, moments=2 * 10**9, activations=10**9
    )
    needs = [memory.per_gpu(level, gpus) for gpus in (1, 2, 8, 64)]
    assert needs == sorted(needs, reverse=True)
    assert needs[0] == 7 * 10**9


class Blocks(nn.Module):
    """Layers that are computed again in the backward pass, or not."""

    def __init__(self):
        super().__init__()
        layers = (
            nn.Sequential(nn.Linear(WIDE, 4 * WIDE), nn.GELU(), nn.Linear(4 * WIDE, WIDE)) for _ in range(6)
        )
        self.blocks = nn.ModuleList(layers)

    def loss(self, again):
        x = torch.zeros(100, WIDE)
        for block in self.blocks:
            x = x + (checkpoint(block, x, use_reentrant=False) if again else block(x))
        return x.float().sum()


def test_recomputing_and_bfloat16_save_activations():
    def bytes_of(again, bf16=False):
        model = on_meta(Blocks)
        return activation_bytes(model, lambda: model.loss(again), bf16)

    plain, wide = bytes_of(False), 4 * 100 * 4 * WIDE
    assert plain > 12 * wide  # of every block, input and output of the activation
    assert bytes_of(True) < 6 * wide
    copies = 2 * 6 * (8 * WIDE**2 + 5 * WIDE)
    assert bytes_of(False, bf16=True) < 0.6 * plain + copies
