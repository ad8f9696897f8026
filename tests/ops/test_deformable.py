import importlib.util

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from piip.interaction import DeformableAttention
from piip.ops import deformable_attention, use_implementation
from piip.ops.deformable import sample_and_sum
from piip.ops.reference import reference_points
from tests.helpers import relative_error
from tests.ops.cases import inputs

IMPLEMENTATIONS = ["grid_sample", *(["fused"] if importlib.util.find_spec("numba") else [])]


def sample_naively(value, grids, locations, weights):
    """The definition, one point after the other."""
    batch, queries, heads, _, points = weights.shape
    output = torch.zeros(batch, queries, heads, value.shape[-1], dtype=value.dtype)
    start = 0
    for level, (height, width) in enumerate(grids):
        grid = value[:, start : start + height * width].unflatten(1, (height, width))
        start += height * width
        for b, q, m, p in torch.cartesian_prod(*map(torch.arange, (batch, queries, heads, points))).tolist():
            x = float(locations[b, q, m, level, p, 0]) * width - 0.5
            y = float(locations[b, q, m, level, p, 1]) * height - 0.5
            for row in (int(y // 1), int(y // 1) + 1):
                for column in (int(x // 1), int(x // 1) + 1):
                    if 0 <= row < height and 0 <= column < width:
                        share = (1 - abs(y - row)) * (1 - abs(x - column)) * weights[b, q, m, level, p]
                        output[b, q, m] += share * grid[b, row, column, m]
    return output.flatten(2)


@settings(max_examples=15)
@given(
    grids=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5)), min_size=1, max_size=3),
    heads=st.integers(1, 3),
    points=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_equals_the_definition_on_any_grids(grids, heads, points, seed):
    generator = torch.Generator().manual_seed(seed)
    total = sum(h * w for h, w in grids)
    value = torch.randn(2, total, heads, 3, generator=generator, dtype=torch.float64)
    locations = (
        torch.rand(2, 4, heads, len(grids), points, 2, generator=generator, dtype=torch.float64) * 1.6 - 0.3
    )
    weights = torch.rand(2, 4, heads, len(grids), points, generator=generator, dtype=torch.float64)
    actual = sample_and_sum(value, grids, locations, weights)
    assert torch.allclose(actual, sample_naively(value, grids, locations, weights), atol=1e-10)


def test_gradients_are_exact():
    torch.manual_seed(0)
    grids = [(3, 4), (2, 2)]
    value = torch.randn(1, 16, 2, 3, dtype=torch.float64, requires_grad=True)
    locations = (torch.rand(1, 3, 2, 2, 2, 2, dtype=torch.float64) * 0.8 + 0.1).requires_grad_()
    weights = torch.rand(1, 3, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda *inputs: sample_and_sum(inputs[0], grids, *inputs[1:]), (value, locations, weights)
    )


def test_half_precision_values_are_sampled_in_float32():
    torch.manual_seed(0)
    value = torch.randn(1, 100 * 100, 2, 4)
    locations, weights = torch.rand(1, 50, 2, 1, 4, 2), torch.rand(1, 50, 2, 1, 4)
    exact = sample_and_sum(value.bfloat16().float(), [(100, 100)], locations, weights)
    half = sample_and_sum(value.bfloat16(), [(100, 100)], locations, weights)
    assert half.dtype == torch.bfloat16
    assert relative_error(half.float(), exact) < 4e-3  # the rounding of the result alone


def test_no_levels_are_refused():
    with pytest.raises(ValueError, match="at least one level"):
        deformable_attention(
            torch.rand(1, 0, 1, 1),
            [],
            torch.rand(1, 2, 2),
            torch.rand(1, 2, 1, 0, 1, 2),
            torch.rand(1, 2, 1, 0, 1),
        )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"grids": [(3, 5)]}, r"value has the shape \(1, 12, 2, 3\).*needs \(B, 15, M, D\)"),
        ({"logits": torch.rand(1, 6, 3, 1, 2)}, r"logits has the shape .*needs \(1, Q, 2, 1, P\)"),
        ({"offsets": torch.rand(1, 6, 2, 1, 3, 2)}, r"offsets has the shape .*needs \(1, 6, 2, 1, 2, 2\)"),
        ({"reference": torch.rand(2, 6, 2)}, r"reference has the shape .*needs \(1 or 1, 6, 2\)"),
        ({"reference": (2, 2)}, r"reference is the grid \(2, 2\), but there are 6 queries"),
    ],
)
def test_shapes_that_contradict_each_other_are_refused(changed, message):
    arguments = {
        "value": torch.rand(1, 12, 2, 3),
        "grids": [(3, 4)],
        "reference": (2, 3),
        "offsets": torch.rand(1, 6, 2, 1, 2, 2),
        "logits": torch.rand(1, 6, 2, 1, 2),
    }
    deformable_attention(**arguments)
    with pytest.raises(ValueError, match=message):
        deformable_attention(**(arguments | changed))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_grid_stands_for_the_centres_of_its_tokens(implementation):
    grids = [(5, 4), (2, 3)]
    value, _, offsets, logits = inputs(grids, queries=12)
    with use_implementation(implementation), torch.no_grad():
        points = reference_points((3, 4), value.device)
        expected = deformable_attention(value, grids, points, offsets, logits)
        assert torch.equal(deformable_attention(value, grids, (3, 4), offsets, logits), expected)


def test_offsets_are_pixels_and_logits_share_one_softmax():
    torch.manual_seed(0)
    grids = [(3, 4), (2, 2)]
    value, reference = torch.randn(1, 16, 2, 3), torch.rand(1, 5, 2)
    offsets, logits = torch.randn(1, 5, 2, 2, 3, 2), torch.randn(1, 5, 2, 2, 3)
    sizes = torch.tensor([[4, 3], [2, 2]]).view(1, 1, 1, 2, 1, 2)
    weights = logits.flatten(-2).softmax(-1).view_as(logits)
    expected = sample_and_sum(value, grids, reference.view(1, 5, 1, 1, 1, 2) + offsets / sizes, weights)
    assert torch.equal(deformable_attention(value, grids, reference, offsets, logits), expected)


def test_reference_points_are_token_centres():
    points = reference_points((2, 4), torch.device("cpu"))
    assert torch.equal(points[0, 0], torch.tensor([0.125, 0.25], dtype=torch.float64))
    assert torch.equal(points[0, -1], torch.tensor([0.875, 0.75], dtype=torch.float64))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", ["msdeform", "msdeform_oob"])
def test_module_matches_the_original(shared, name, implementation):
    tensors = load_file(shared / "golden" / f"{name}.safetensors")
    heads, points = tensors["attention_weights"].shape[-2:]
    dim = tensors["query"].shape[-1]
    value_dim, feature_dim = tensors["state.value_proj.weight"].shape
    module = DeformableAttention(dim, feature_dim, heads, points, value_dim / dim)
    assert relative_error(module.sampling_offsets.bias, tensors["init_sampling_offsets_bias"]) < 1e-6
    module.load_state_dict(
        {k.removeprefix("state."): v for k, v in tensors.items() if k.startswith("state.")}
    )
    inputs = {"query": tensors["query"].requires_grad_(), "feat": tensors["feat"].requires_grad_()}
    query_grid, value_grid = {"msdeform": ((9, 13), (15, 21)), "msdeform_oob": ((7, 5), (4, 6))}[name]
    with use_implementation(implementation):
        output = module(inputs["query"], query_grid, inputs["feat"], value_grid)
    assert relative_error(output, tensors["output"]) < 4e-6
    output.backward(tensors["upstream_grad"])
    gradients = {key: value.grad for key, value in inputs.items()}
    gradients |= {key: value.grad for key, value in module.named_parameters()}
    for key, gradient in gradients.items():
        assert relative_error(gradient, tensors[f"grad.{key}"]) < 2e-5, key
