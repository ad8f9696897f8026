"""The yardstick computes what the network computes: only then is its time a comparison."""

import torch

from benchmarks.baseline import plain_forward
from piip.network import PIIP
from tests.helpers import fill, relative_error, tiny_branch, tiny_config


def test_the_plain_order_of_operations_gives_the_same_maps():
    windowed = tiny_branch(48, 96, window_size=3, window_padding="after_qkv")
    network = fill(PIIP(tiny_config(branches=(tiny_branch(64, 64), windowed, tiny_branch(32, 128))))).eval()
    image = torch.linspace(-1, 1, 3 * 128 * 128).view(1, 3, 128, 128).sin()
    with torch.no_grad():
        pairs = list(zip(plain_forward(network, image), network(image), strict=True))
    assert len(pairs) == 4
    assert all(relative_error(plain, ours) < 1e-5 for plain, ours in pairs)
