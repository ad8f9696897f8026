"""Upsampling by products and shuffles against torch's transposed convolutions."""

import pytest
import torch
import torch.nn.functional as F

from piip.ops import split_cells, split_into_map, upsampling


@pytest.fixture(params=[1, 50, 1 << 23], ids=["row by row", "some rows", "all at once"])
def entries(request, monkeypatch):
    monkeypatch.setattr(upsampling, "ENTRIES_AT_ONCE", request.param)


def inputs(batch=2, grid=(5, 3), width=4, out=6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = (batch, width, *grid), (width, out, 2, 2), (out,)
    made = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [tensor.to(dtype).requires_grad_() for tensor in made]


def once(x, weight, bias):
    return split_into_map(x.permute(0, 2, 3, 1).flatten(1, 2), weight, bias, x.shape[2:])


def twice(x, weight, bias):
    cells = split_cells(x.permute(0, 2, 3, 1).flatten(1, 2), weight, bias)
    square = F.pad(
        weight, (0, 0, 0, 0, 0, 0, 0, weight.shape[1] - len(weight))
    )  # as many channels as it makes
    return split_into_map(cells.flatten(1, 2), square, None, x.shape[2:])


def reference_twice(x, weight, bias):
    square = F.pad(weight, (0, 0, 0, 0, 0, 0, 0, weight.shape[1] - len(weight)))
    return F.conv_transpose2d(F.conv_transpose2d(x, weight, bias, stride=2), square, stride=2)


CASES = [(once, lambda *given: F.conv_transpose2d(*given, stride=2)), (twice, reference_twice)]


@pytest.mark.usefixtures("entries")
@pytest.mark.parametrize(("ours", "reference"), CASES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients_of_torch(ours, reference, layout):
    given = inputs()
    results, gradients = [], []
    for function in (ours, reference):
        result = function(*given)
        weights = torch.linspace(-1, 1, result.numel(), dtype=torch.float64).view(result.shape)
        results.append(result)
        gradients.append(torch.autograd.grad(result, given, weights.contiguous(memory_format=layout)))
    torch.testing.assert_close(*results)
    for found, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(found, wanted)
    assert results[0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.usefixtures("entries")
@pytest.mark.parametrize("function", [once, twice])
def test_derivatives_of_second_order(function):
    given = inputs(1, (2, 3), 2, 3)
    assert torch.autograd.gradcheck(function, given)
    assert torch.autograd.gradgradcheck(function, given)


@pytest.mark.parametrize("learnt", [0, 1, 2])
def test_only_what_is_asked_for(learnt):
    given = inputs()
    for number, tensor in enumerate(given):
        tensor.requires_grad_(number == learnt)
    once(*given).sum().backward()
    assert [tensor.grad is not None for tensor in given] == [number == learnt for number in range(3)]
    again = [tensor.detach().requires_grad_(number == learnt) for number, tensor in enumerate(given)]
    F.conv_transpose2d(*again, stride=2).sum().backward()
    torch.testing.assert_close(given[learnt].grad, again[learnt].grad)


def test_without_a_bias():
    x, weight, _ = inputs()
    torch.testing.assert_close(once(x, weight, None), F.conv_transpose2d(x, weight, stride=2))
    once(x, weight, None).sum().backward()


def test_autocast():
    given = inputs(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        result = once(*given)
    assert result.dtype == torch.bfloat16
    result.float().square().sum().backward()
    assert all(tensor.grad.dtype == torch.float32 for tensor in given)
    wanted = F.conv_transpose2d(*given, stride=2)
    assert (result - wanted).abs().max() < 0.02 * wanted.abs().max()


def test_compilers_and_function_transforms_see_plain_operations():
    given = [tensor.detach() for tensor in inputs()]
    names = set()

    def backend(graph, _):
        names.update(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    compiled = torch.compile(once, backend=backend, fullgraph=True)
    torch.testing.assert_close(compiled(*given), once(*given))
    assert not any("SplitIntoMap" in name for name in names)
    tangents = [torch.ones_like(tensor) for tensor in given]
    value, tangent = torch.func.jvp(once, tuple(given), tuple(tangents))
    torch.testing.assert_close(value, once(*given))
    assert tangent.shape == value.shape
