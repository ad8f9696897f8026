"""Linear layers through oneDNN are torch's, to rounding, and whatever looks at operations sees torch's own."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from piip.ops import onednn, use_linear
from piip.ops.onednn import Linear, LinearGELU, linear
from tests.helpers import ONEDNN_DTYPES, needs_bfloat16, relative_error


@pytest.fixture(autouse=True)
def always_onednn(monkeypatch):
    """As on a machine where it pays, for any size."""
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(onednn, "better_dtypes", lambda: ONEDNN_DTYPES)
    monkeypatch.setattr(onednn, "FEWEST_MACS", 1)


@pytest.fixture
def calls(monkeypatch):
    """The number of products that oneDNN was asked for."""
    counted = []
    apply = onednn._OneDNNLinear.apply
    monkeypatch.setattr(onednn._OneDNNLinear, "apply", lambda *inputs: (counted.append(1), apply(*inputs))[1])
    return counted


def inputs(*shape, out=7):
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(size, generator=generator) for size in (shape, (out, shape[-1]), (out,))]
    return [tensor.requires_grad_() for tensor in made]


@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 3, 5), (2, 3, 4, 5), (0, 5)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_values_and_gradients_of_torch(shape, with_bias, calls):
    tensors = inputs(*shape)[: 3 if with_bias else 2]
    ours, theirs = linear(*tensors), F.linear(*tensors)
    assert bool(calls) == bool(tensors[0].numel())
    assert ours.shape == theirs.shape
    assert torch.allclose(ours, theirs, atol=1e-6)
    upstream = torch.linspace(-1, 1, theirs.numel()).view_as(theirs)
    pairs = zip(*(torch.autograd.grad(y, tensors, upstream) for y in (ours, theirs)), strict=True)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in pairs)


def test_inputs_in_any_memory_layout():
    x, weight, bias = inputs(2, 5, 6)
    x, weight = x.transpose(1, 2), torch.randn(5, 7).t()
    assert torch.allclose(linear(x, weight, bias), F.linear(x, weight, bias), atol=1e-6)


def test_only_plain_matrices_go_to_onednn(calls):
    x, weight, bias = inputs(3, 5)
    for expanded in (weight[:1].expand(7, 5), weight[:, :1].expand(7, 5)):
        assert torch.allclose(linear(x, expanded, bias), F.linear(x, expanded, bias), atol=1e-6)
    assert not calls
    linear(x, weight, bias).sum().backward()  # the gradient of a sum is expanded
    assert len(calls) == 3
    assert torch.allclose(weight.grad, x.detach().sum(0).expand(7, 5), atol=1e-6)


def test_second_derivatives():
    tensors = inputs(3, 5)

    def penalty(function):
        first = torch.autograd.grad(function(*tensors).square().sum(), tensors, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), tensors)

    pairs = zip(penalty(linear), penalty(F.linear), strict=True)
    assert all(relative_error(a, b) < 1e-5 for a, b in pairs)


def test_only_what_needs_a_gradient_gets_one():
    x, weight, bias = inputs(3, 5)
    weight.requires_grad_(False)
    linear(x, weight, bias).sum().backward()
    assert weight.grad is None
    assert x.grad is not None


def test_a_layer_keeps_its_name_and_tensors_and_foreign_kinds_stay():
    class Special(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(3, 4), Special(4, 4))
    before = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    use_linear(model)
    assert type(model[0]) is Linear
    assert isinstance(model[0], nn.Linear)
    assert type(model[1]) is Special
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == before


@needs_bfloat16
def test_bfloat16_is_rounded_once(calls):
    x, weight, bias = (tensor.bfloat16().detach().requires_grad_() for tensor in inputs(6, 50))
    exact = [tensor.double().detach().requires_grad_() for tensor in (x, weight, bias)]
    ours, truth = linear(x, weight, bias), F.linear(*exact)
    assert calls
    assert ours.dtype == torch.bfloat16
    assert relative_error(ours.double(), truth) < 2**-8
    ours.sum().backward()
    truth.sum().backward()
    assert relative_error(weight.grad.double(), exact[1].grad) < 2**-8


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bfloat16)])
def test_gelu_in_the_same_pass(approximate, dtype):
    layer = LinearGELU(5, 7, dtype=dtype)
    layer.approximate = approximate
    x = torch.randn(2, 3, 5, dtype=dtype)
    plain = F.gelu(F.linear(x, layer.weight, layer.bias), approximate=approximate)
    with torch.no_grad():
        fast = layer(x)
    assert relative_error(fast.float(), plain.float()) < (1e-6 if dtype == torch.float32 else 2**-7)
    assert torch.equal(layer(x), plain), "with gradients it is torch's"


@needs_bfloat16
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_autocast_multiplies_in_its_dtype_and_keeps_no_copy_of_the_weight(kind, calls):
    x, weight, bias = inputs(4, 5)
    x = x.detach().to(kind).requires_grad_()
    kept = []
    with (
        torch.autocast("cpu", torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t),
    ):
        output = linear(x, weight, bias)
    assert output.dtype == torch.bfloat16
    assert len(calls) == 1
    assert any(tensor.data_ptr() == weight.data_ptr() for tensor in kept)
    output.float().square().sum().backward()
    gradients = [tensor.grad.clone() for tensor in (x, weight, bias)]
    for tensor in (x, weight, bias):
        tensor.grad = None
    with torch.autocast("cpu", torch.bfloat16):
        expected = F.linear(x, weight, bias)
    expected.float().square().sum().backward()
    assert relative_error(output.float(), expected.float()) < 2**-7
    for gradient, tensor in zip(gradients, (x, weight, bias), strict=True):
        assert gradient.dtype == tensor.dtype
        assert relative_error(gradient.float(), tensor.grad.float()) < 2**-6


def test_which_dtypes_are_fast():
    assert onednn.has_arithmetic(torch.float32)
    assert onednn.has_arithmetic(torch.bfloat16) == (torch.bfloat16 in ONEDNN_DTYPES)


def test_other_dtypes_go_to_torch(calls):
    x, weight, bias = inputs(4, 5)
    linear(x.double(), weight.double(), bias.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x.double(), weight.double(), bias.double()).dtype == torch.float64
    with torch.autocast("cpu", torch.float16):
        assert linear(x, weight, bias).dtype == torch.float16
    assert not calls


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_counters_compilers_and_transforms_see_torchs_own(calls):
    x, weight, bias = inputs(4, 5)
    with FlopCounterMode(display=False) as counter:
        linear(x, weight, bias).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 4 * 5 * 7
    per_sample = torch.vmap(lambda row: linear(row, weight, bias))(x)
    assert torch.allclose(per_sample, F.linear(x, weight, bias), atol=1e-6)
    gradient = torch.func.grad(lambda w: linear(x, w, bias).sum())(weight)
    assert gradient.shape == weight.shape
    exported = torch.export.export(Linear(5, 7), (x.detach(),))
    assert "mkldnn" not in str(exported.graph)
    assert "mkldnn" not in str(torch.jit.trace(Linear(5, 7), x.detach(), check_trace=False).graph)
    assert not calls
