"""Factors that weights take over."""

import pytest
import torch
from torch import nn

from piip.ops import gated_linear, scale_outputs
from tests.helpers import relative_error


class Adapted(nn.Linear):
    """What an adapter makes of a layer: its weight is not all there is."""

    def forward(self, x):
        return super().forward(x) + x.sum(-1, keepdim=True)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [nn.Linear, Adapted])
def test_a_gate_multiplies_the_output_and_everything_gets_its_gradient(kind, bias):
    torch.manual_seed(0)
    layer = kind(6, 4, bias=bias).double()
    x, gate = (torch.randn(*size, dtype=torch.float64, requires_grad=True) for size in ((2, 5, 6), (4,)))
    leaves = [x, gate, *layer.parameters()]
    outputs = [gate * layer(x), gated_linear(layer, x, gate)]
    gradients = [torch.autograd.grad(output.square().sum(), leaves) for output in outputs]
    assert relative_error(outputs[1], outputs[0]) < 1e-14
    for a, b in zip(*gradients, strict=True):
        assert relative_error(b, a) < 1e-13


def test_hooks_of_a_layer_are_called():
    layer, seen = nn.Linear(6, 4), []
    layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    x, gate = torch.randn(3, 6), torch.randn(4)
    assert torch.equal(gated_linear(layer, x, gate), gate * seen[0])


def test_no_gate_is_the_layer():
    layer, x = nn.Linear(6, 4), torch.randn(3, 6)
    assert torch.equal(gated_linear(layer, x, None), layer(x))


def test_scaled_weights_scale_the_output():
    layer, x, scale = nn.Linear(6, 4), torch.randn(3, 6), torch.randn(4)
    expected = scale * layer(x)
    with torch.no_grad():
        scale_outputs(layer, scale)
    assert relative_error(layer(x), expected) < 1e-6
