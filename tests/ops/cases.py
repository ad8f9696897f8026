"""Inputs of deformable attention and comparisons of its implementations, shared by the tests of each."""

import torch

from piip.ops import deformable_attention, use_implementation


def inputs(
    grids,
    *,
    batch=1,
    queries=5,
    heads=2,
    points=2,
    width=6,
    references=1,
    dtype=torch.float32,
    device="cpu",
    seed=0,
):
    """Value, reference, offsets and logits; some points lie outside the map."""
    generator = torch.Generator().manual_seed(seed)
    levels = len(grids)
    cells = sum(height * width for height, width in grids)
    shapes = [(batch, cells, heads, width), (references, queries, 2)]
    shapes += [(batch, queries, heads, levels, points, 2), (batch, queries, heads, levels, points)]
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    tensors[1] = tensors[1].sigmoid()
    tensors[2] *= 2
    dtypes = [dtype, torch.float64, dtype, dtype]
    return [t.to(device, kind).requires_grad_() for t, kind in zip(tensors, dtypes, strict=True)]


def outputs(name, grids, tensors):
    """The output and all gradients."""
    with use_implementation(name):
        output = deformable_attention(tensors[0], grids, *tensors[1:])
    upstream = torch.linspace(-1, 1, output.numel(), dtype=output.dtype, device=output.device).view_as(output)
    return [
        output,
        *torch.autograd.grad(output, [t for t in tensors if isinstance(t, torch.Tensor)], upstream),
    ]


def assert_same(grids, tensors, tolerance):
    """The fused kernel and the plain path agree in the output and all gradients."""
    assert_close(outputs("fused", grids, tensors), outputs("grid_sample", grids, tensors), tolerance)


def assert_close(actual, expected, tolerance):
    """Tensors agree within a tolerance relative to the largest value of each."""
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == other.dtype
        largest = max(float(other.detach().abs().max()), 1e-3)
        assert torch.allclose(one, other, atol=tolerance * largest, rtol=0)
