"""Triton's kernels against the plain path: interpreted on a CPU, compiled where there is a GPU."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from piip.interaction import DeformableAttention
from piip.ops import deformable, deformable_attention, use_implementation
from piip.ops.reference import reference_points
from tests.helpers import relative_error
from tests.ops.cases import assert_close, assert_same, inputs, outputs

pytest.importorskip("triton")


@pytest.fixture
def deterministic():
    """Ask torch for deterministic algorithms."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("width", [1, 4, 6, 12, 24, 25, 50, 100])
def test_any_head_width(triton_device, width):
    assert_same([(5, 7)], inputs([(5, 7)], width=width, device=triton_device), 2e-5)


@pytest.mark.parametrize("width", [6, 24, 25])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 8e-3), (torch.float16, 1e-3)])
def test_half_precision_is_computed_in_float32(triton_device, dtype, tolerance, width):
    grids = [(9, 7), (4, 3)]
    assert_same(grids, inputs(grids, width=width, dtype=dtype, device=triton_device), tolerance)


@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    grids=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 6)), min_size=1, max_size=4),
    batch=st.integers(1, 2),
    heads=st.integers(1, 3),
    points=st.integers(1, 5),
    shared=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_grids_levels_and_references(triton_device, grids, batch, heads, points, shared, seed):
    sizes = {"batch": batch, "heads": heads, "points": points, "references": 1 if shared else batch}
    tensors = inputs(grids, width=3, dtype=torch.float64, device=triton_device, seed=seed, **sizes)
    assert_same(grids, tensors, 1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("query_grid", [(5, 9), (1, 1), (7, 3), (10, 13)])
def test_the_centres_of_a_grid_are_found_by_the_kernel(triton_device, query_grid, dtype, tolerance):
    grids = [(5, 9), (7, 4)]
    queries = query_grid[0] * query_grid[1]
    value, _, *rest = inputs(grids, queries=queries, heads=1, width=4, dtype=dtype, device=triton_device)
    reference = reference_points(query_grid, value.device)
    expected = outputs("grid_sample", grids, [value.double(), reference.requires_grad_(), *rest])
    actual = outputs("fused", grids, [value, query_grid, *rest])
    del expected[2]
    assert_close(actual, [tensor.to(dtype) for tensor in expected], tolerance)


def test_images_with_references_of_their_own(triton_device):
    grids = [(5, 4), (2, 3)]
    assert_same(grids, inputs(grids, batch=3, references=3, device=triton_device), 2e-5)


@pytest.mark.parametrize("queries", [1, 31, 33, 42, 43])
def test_parts_of_blocks(triton_device, queries):
    grids = [(6, 5)]
    assert_same(grids, inputs(grids, queries=queries, heads=1, width=12, device=triton_device), 2e-5)


@pytest.mark.parametrize(("batch", "queries"), [(0, 3), (2, 0)])
def test_nothing_to_do(triton_device, batch, queries):
    grids = [(2, 3)]
    tensors = inputs(grids, batch=batch, queries=queries, references=1, device=triton_device)
    actual = outputs("fused", grids, tensors)
    assert [tensor.shape for tensor in actual] == [(batch, queries, 12), *(t.shape for t in tensors)]
    assert not any(tensor.any() for tensor in actual)


@pytest.mark.parametrize("grids", [[(5, 7)], [(5, 7), (3, 2)]])
def test_the_deterministic_gradient_is_the_same(triton_device, grids, request):
    tensors = inputs(grids, batch=2, queries=37, width=6, device=triton_device)
    expected = outputs("fused", grids, tensors)
    request.getfixturevalue("deterministic")
    one, two = (outputs("fused", grids, tensors) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert_close(one, expected, 1e-6)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_deterministic_gradient_in_other_dtypes(triton_device, dtype):
    grids = [(4, 3)]
    tolerance = 8e-3 if dtype == torch.bfloat16 else 1e-12
    assert_same(grids, inputs(grids, width=5, dtype=dtype, device=triton_device), tolerance)


@pytest.mark.parametrize("bad", [1e30, -1e30, 2e6, -2e6, float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("broken", ["reference", "offsets"])
def test_points_outside_read_and_change_nothing(triton_device, bad, broken):
    grids = [(4, 4)]
    value, reference, offsets, logits = inputs(grids, width=6, device=triton_device)
    surrounded = torch.full((3, *value.shape), float("nan"), device=triton_device)
    surrounded[1] = value.detach()
    value = surrounded[1].requires_grad_()
    target = reference if broken == "reference" else offsets
    with torch.no_grad():
        target.fill_(bad)
    actual = outputs("fused", grids, [value, reference, offsets, logits])
    assert not any(tensor.any() for tensor in actual)


def test_borders_read_only_the_map(triton_device):
    grids = [(3, 3), (2, 4)]
    value, reference, offsets, logits = inputs(grids, queries=30, width=6, device=triton_device)
    surrounded = torch.full((3, *value.shape), float("nan"), device=triton_device)
    surrounded[1] = value.detach()
    tensors = [surrounded[1].requires_grad_(), reference, offsets, logits]
    assert_close(outputs("fused", grids, tensors), outputs("grid_sample", grids, tensors), 2e-5)


def test_diverged_logits_are_not_hidden(triton_device):
    grids = [(4, 4)]
    value, reference, offsets, logits = inputs(grids, device=triton_device)
    with torch.no_grad(), use_implementation("fused"):
        output = deformable_attention(value, grids, reference, offsets, logits * float("nan"))
    assert output.isnan().all()


@pytest.mark.parametrize("largest", [80.0, 1e5, 1e9])
def test_large_logits_do_not_overflow(triton_device, largest):
    grids = [(4, 4)]
    value, reference, offsets, logits = inputs(grids, device=triton_device)
    logits = (logits.detach() + largest).requires_grad_()
    assert_same(grids, [value, reference, offsets, logits], 2e-5)


def test_slices_and_transposes(triton_device):
    from piip.ops import gpu

    grids = [(4, 5)]
    value, reference, offsets, logits = inputs(grids, width=4, dtype=torch.bfloat16, device=triton_device)
    # One element further, bfloat16 values can no longer be read in pairs.
    shifted = torch.empty(value.numel() + 1, dtype=value.dtype, device=triton_device)[1:].view_as(value)
    shifted.copy_(value.detach())
    assert [gpu._pair(tensor, 4) for tensor in (value, shifted)] == [2, 1]
    swapped = offsets.detach().transpose(1, 2).contiguous().transpose(1, 2)
    expected = outputs("fused", grids, [value, reference, offsets, logits])
    actual = outputs("fused", grids, [shifted.requires_grad_(), reference, swapped.requires_grad_(), logits])
    assert_close(actual, expected, 1e-2)
    assert torch.equal(actual[0], expected[0])


@pytest.mark.parametrize("name", ["msdeform", "msdeform_oob"])
def test_module_matches_the_original(shared, triton_device, name):
    tensors = load_file(shared / "golden" / f"{name}.safetensors", device=triton_device)
    heads, points = tensors["attention_weights"].shape[-2:]
    dim = tensors["query"].shape[-1]
    value_dim, feature_dim = tensors["state.value_proj.weight"].shape
    module = DeformableAttention(dim, feature_dim, heads, points, value_dim / dim).to(triton_device)
    state = {k.removeprefix("state."): v for k, v in tensors.items() if k.startswith("state.")}
    module.load_state_dict(state)
    query, feature = tensors["query"].requires_grad_(), tensors["feat"].requires_grad_()
    query_grid, value_grid = {"msdeform": ((9, 13), (15, 21)), "msdeform_oob": ((7, 5), (4, 6))}[name]
    with use_implementation("fused"):
        output = module(query, query_grid, feature, value_grid)
    assert relative_error(output, tensors["output"]) < 4e-6
    output.backward(tensors["upstream_grad"])
    gradients = {"query": query.grad, "feat": feature.grad}
    gradients |= {key: parameter.grad for key, parameter in module.named_parameters()}
    for key, gradient in gradients.items():
        assert relative_error(gradient, tensors[f"grad.{key}"]) < 2e-5, key


def test_autocast(triton_device):
    query, feature = (torch.randn(1, 12, 16, device=triton_device, requires_grad=True) for _ in range(2))
    module = DeformableAttention(16, 16, 4, 2, 1.0).to(triton_device)
    exact = module(query, (3, 4), feature, (4, 3))
    with torch.autocast(triton_device, torch.bfloat16), use_implementation("fused"):
        output = module(query, (3, 4), feature, (4, 3))
    assert output.dtype == torch.bfloat16
    assert relative_error(output.float(), exact) < 3e-2
    output.float().sum().backward()
    assert query.grad.isfinite().all()


@pytest.mark.parametrize("by_grid", [False, True])
def test_the_operator_keeps_the_rules_of_torch(triton_device, by_grid):
    from piip.ops.fused import fused

    value, reference, offsets, logits = inputs([(2, 3)], queries=4, width=4, device=triton_device)
    where = (None, [2, 2]) if by_grid else (reference, [])
    arguments = (value, [2, 3, 0], *where, offsets, logits)
    torch.library.opcheck(fused, arguments, atol=1e-5, rtol=1e-5)


def test_compiles_and_exports_without_graph_breaks(triton_device):
    grids = [(4, 5)]
    value, _, offsets, logits = inputs(grids, queries=6, device=triton_device)

    class Attend(torch.nn.Module):
        def forward(self, value, offsets, logits):
            return deformable_attention(value, grids, (2, 3), offsets, logits)

    with use_implementation("fused"):
        expected = Attend()(value, offsets, logits)
        compiled = torch.compile(Attend(), backend="aot_eager", fullgraph=True)(value, offsets, logits)
        exported = torch.export.export(Attend(), (value, offsets, logits)).module()(value, offsets, logits)
    assert torch.equal(compiled, expected)
    assert torch.equal(exported, expected)
    gradients = [torch.autograd.grad(o.sum(), [value, offsets, logits]) for o in (compiled, expected)]
    assert_close(*gradients, 1e-6)


def test_triton_is_chosen_on_gpus(monkeypatch):
    def chosen(device, dtype, points=4):
        value = SimpleNamespace(device=torch.device(device), dtype=dtype)
        return deformable._uses_kernel(value, torch.zeros(1, 2, 1, 1, points))

    monkeypatch.setattr(deformable, "HAS_TRITON", True)
    assert all(chosen("cuda", dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16))
    assert not chosen("cuda", torch.float8_e4m3fn)
    assert not chosen("mps", torch.float32)
    assert not chosen("cuda", torch.float32, points=deformable.MOST_POINTS + 1)
    with use_implementation("grid_sample"):
        assert not chosen("cuda", torch.float32)
    monkeypatch.setattr(deformable, "HAS_TRITON", False)
    assert not chosen("cuda", torch.float32)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs 20 GB of a GPU's memory")
def test_tensors_of_more_than_two_to_the_31_elements():
    grid, width = (3000, 3000), 64
    value = torch.randn(2, 9_000_000, 2, width, device="cuda", dtype=torch.bfloat16)
    _, reference, offsets, logits = inputs([(1, 1)], batch=2, queries=50, points=4, device="cuda")
    with torch.no_grad(), use_implementation("fused"):
        both = deformable_attention(value, [grid], reference, offsets, logits)
        last = deformable_attention(value[1:].clone(), [grid], reference, offsets[1:], logits[1:])
    assert torch.equal(both[1:], last)
