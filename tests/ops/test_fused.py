"""The fused kernel against the plain path, which tests/ops/test_deformable.py ties to the definition."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from piip.errors import ConfigError
from piip.network import PIIP
from piip.ops import deformable, deformable_attention, use_implementation
from tests.helpers import fill, relative_error, tiny_config
from tests.ops.cases import assert_same, inputs, outputs

pytest.importorskip("numba")


@pytest.mark.parametrize("width", [1, 4, 6, 12, 24, 25, 50, 100])
def test_any_head_width(width):
    assert_same([(5, 7)], inputs([(5, 7)], width=width), 2e-5)


@settings(max_examples=20)
@given(
    grids=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 6)), min_size=1, max_size=4),
    batch=st.integers(1, 3),
    heads=st.integers(1, 4),
    shared=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_grids_levels_and_references(grids, batch, heads, shared, seed):
    points = 4 // len(grids)  # in all there are 4 or 3, so that two kernels are compiled
    references = 1 if shared else batch
    sizes = {"batch": batch, "heads": heads, "points": points, "references": references, "seed": seed}
    assert_same(grids, inputs(grids, width=3, dtype=torch.float64, **sizes), 1e-12)


@pytest.mark.parametrize("points", [255, 257, 513])
def test_any_number_of_points(points):
    grids = [(4, 5), (2, 3)][: 1 if points > 256 else 2]
    assert_same(grids, inputs(grids, points=points, heads=3, queries=2, dtype=torch.float64), 1e-12)


def test_gradients_are_exact():
    grids = [(4, 5), (2, 3)]
    with use_implementation("fused"):
        assert torch.autograd.gradcheck(
            lambda value, *rest: deformable_attention(value, grids, *rest),
            inputs(grids, width=3, dtype=torch.float64, references=1),
        )


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_share_the_work_and_the_result_is_always_the_same(threads):
    grids, before = [(9, 11)], torch.get_num_threads()
    tensors = inputs(grids, batch=2, queries=150, heads=3, width=4)
    one = outputs("fused", grids, tensors)
    try:
        torch.set_num_threads(threads)
        again = [outputs("fused", grids, tensors) for _ in range(3)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in again for a, b in zip(one, other, strict=True))


def test_closer_to_float64_than_the_plain_path():
    grids = [(70, 70)]
    tensors = inputs(grids, queries=400, heads=4, points=4, width=12)
    exact = outputs("grid_sample", grids, [t.detach().double().requires_grad_() for t in tensors])
    errors = {
        name: [
            relative_error(a.double(), b) for a, b in zip(outputs(name, grids, tensors), exact, strict=True)
        ]
        for name in ("fused", "grid_sample")
    }
    assert all(fused <= plain for fused, plain in zip(errors["fused"], errors["grid_sample"], strict=True))
    assert errors["fused"][0] < 2e-6


def test_bfloat16_values_are_sampled_in_float32():
    grids = [(20, 30)]
    value, *rest = inputs(grids, queries=40, width=8)
    half = value.detach().bfloat16()
    with use_implementation("fused"):
        output = deformable_attention(half, grids, *rest)
        exact = deformable_attention(half.float(), grids, *rest)
        autocast = deformable_attention(half, grids, rest[0], rest[1].bfloat16(), rest[2].bfloat16())
    assert output.dtype == autocast.dtype == torch.bfloat16
    assert relative_error(output.float(), exact) < 4e-3  # the rounding of the result alone


def test_points_far_outside_and_nan_offsets_read_nothing():
    grids = [(4, 4)]
    value, reference, offsets, logits = inputs(grids)
    for bad in (1e30, -1e30, float("inf"), float("nan")):
        with torch.no_grad(), use_implementation("fused"):
            output = deformable_attention(value, grids, reference, torch.full_like(offsets, bad), logits)
        assert torch.equal(output, torch.zeros_like(output))
    with torch.no_grad(), use_implementation("fused"):
        output = deformable_attention(value, grids, reference, offsets, logits * float("nan"))
    assert output.isnan().all(), "a network that has diverged must not look well"


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_and_exports_without_graph_breaks(backend):
    grids = [(4, 5)]
    tensors = inputs(grids)

    class Attend(torch.nn.Module):
        def forward(self, value, reference, offsets, logits):
            return deformable_attention(value, grids, reference, offsets, logits)

    with use_implementation("fused"):
        expected = Attend()(*tensors)
        compiled = torch.compile(Attend(), backend=backend, fullgraph=True)(*tensors)
        exported = torch.export.export(Attend(), tuple(tensors)).module()(*tensors)
    assert torch.equal(compiled, expected)
    assert torch.equal(exported, expected)
    for one, two in zip(*(torch.autograd.grad(o.sum(), tensors) for o in (compiled, expected)), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("implementation", ["fused", "grid_sample"])
def test_exports_for_any_batch(implementation):
    class Attend(torch.nn.Module):
        def forward(self, value, offsets, logits):
            return deformable_attention(value, [(4, 5)], (2, 3), offsets, logits)

    def some(batch):
        value, _, *rest = inputs([(4, 5)], queries=6, batch=batch)
        return tuple(tensor.detach() for tensor in (value, *rest))

    batch = {0: torch.export.Dim("batch")}
    with use_implementation(implementation):
        exported = torch.export.export(Attend(), some(3), dynamic_shapes=(batch, batch, batch)).module()
        assert torch.equal(exported(*some(5)), Attend()(*some(5)))


def test_a_network_is_the_same_with_either():
    network = fill(PIIP(tiny_config())).eval()
    image = torch.randn(1, 3, 128, 160)
    maps = []
    for name in ("fused", "grid_sample"):
        with torch.no_grad(), use_implementation(name):
            maps.append(network(image))
    assert all(relative_error(a, b) < 1e-5 for a, b in zip(*maps, strict=True))


def test_the_kernel_is_chosen_where_it_pays(monkeypatch):
    calls = []
    monkeypatch.setattr(deformable, "_fused", lambda value, *rest: calls.append(len(value)) or value)
    small, large = inputs([(4, 4)]), inputs([(4, 4)], queries=1 << 12)
    for tensors in (small, large):
        deformable_attention(tensors[0], [(4, 4)], *tensors[1:])
    assert len(calls) == 1


def test_unknown_implementations_are_refused():
    with pytest.raises(ConfigError, match="choose from auto, grid_sample, fused"), use_implementation("cuda"):
        pass


def test_forked_processes_can_use_it():
    code = """
import os, torch
from tests.ops.cases import inputs, outputs
torch.set_num_threads(2)
tensors = inputs([(9, 9)], queries=200)
outputs("fused", [(9, 9)], tensors)
child = os.fork()
if not child:
    torch.set_num_threads(1)  # as loader workers do
    outputs("fused", [(9, 9)], tensors)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
