"""Outputs of norms and activations that the backward pass makes again, instead of their being kept."""

import contextlib
import copy

import pytest
import torch
from torch import nn

from piip import ops
from piip.ops import linear
from piip.recomputing import CheapRecomputation, Recipe, _restore, announce_kept, cast, scaled
from tests.helpers import ONEDNN_DTYPES, needs_bfloat16, tiny_branch, tiny_network


class Kept:
    """Counts the bytes that autograd keeps of what runs inside: tensors, once each, without parameters."""

    def __init__(self, module):
        self.seen = {p.untyped_storage().data_ptr() for p in module.parameters()}
        self.tensors, self.bytes = [], 0

    def count(self, kept):
        while isinstance(kept, Recipe):
            kept = kept.first
        storage = kept.untyped_storage()
        if storage.data_ptr() not in self.seen:
            self.seen.add(storage.data_ptr())
            self.tensors.append(kept)
            self.bytes += storage.nbytes()


def step(network, image, autocast=False):
    network.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        maps = network(image)
    sum(feature.float().square().mean() for feature in maps).backward()
    return [p.grad.clone() for p in network.parameters()]


@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_stay_the_same_to_the_last_bit(autocast):
    network = tiny_network()
    image = torch.randn(1, 3, 128, 128)
    plain = step(network, image, autocast)
    network.set_grad_checkpointing("light")
    light = step(network, image, autocast)
    assert all(torch.equal(a, b) for a, b in zip(plain, light, strict=True))


def kept_bytes(monkeypatch, light):
    """Return the bytes that autograd keeps of a forward pass."""
    network = tiny_network().train()
    network.set_grad_checkpointing("light" if light else False)
    counter, replace = Kept(network), CheapRecomputation._replace

    def count(self, tensor):
        kept = replace(self, tensor) if light else tensor
        counter.count(kept)
        return kept

    monkeypatch.setattr(CheapRecomputation, "_replace", count)
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: count(None, t), lambda t: t)
    with contextlib.nullcontext() if light else hooks:
        network(torch.randn(1, 3, 128, 128))
    return counter.bytes


def test_less_is_kept(monkeypatch):
    assert kept_bytes(monkeypatch, light=True) < 0.85 * kept_bytes(monkeypatch, light=False)


def test_switching_off_leaves_no_trace():
    network = tiny_network()
    before = {name: len(module._forward_hooks) for name, module in network.named_modules()}
    network.set_grad_checkpointing("light")
    network.set_grad_checkpointing(False)
    assert {name: len(module._forward_hooks) for name, module in network.named_modules()} == before


def test_copies_are_independent():
    network = tiny_network()
    network.set_grad_checkpointing("light")
    copied = copy.deepcopy(network)
    image = torch.randn(1, 3, 128, 128)
    assert all(torch.equal(a, b) for a, b in zip(step(network, image), step(copied, image), strict=True))


class Pyramid(nn.Module):
    """Maps in both layouts, changes of precision and scaled weights: what the network does between its blocks."""

    def __init__(self):
        super().__init__()
        self.norm, self.act = nn.GroupNorm(2, 8), nn.GELU()
        self.weight, self.gate = nn.Parameter(torch.randn(6, 8)), nn.Parameter(torch.randn(6))

    def forward(self, maps):
        cells = self.act(self.norm(maps)).permute(0, 2, 3, 1).flatten(1, 2)
        product = linear(cells, scaled(self.weight, self.gate[:, None]))
        wide = cast(product, torch.float64)
        return wide * wide + cast(announce_kept(product), torch.bfloat16).double().exp()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("autocast", "onednn"),
    [(False, False), (False, True), (True, False), pytest.param(True, True, marks=needs_bfloat16)],
)
def test_maps_casts_and_scaled_weights(monkeypatch, layout, autocast, onednn):
    monkeypatch.setattr(ops.onednn, "better_dtypes", lambda: ONEDNN_DTYPES if onednn else set())
    monkeypatch.setattr(ops.onednn, "FEWEST_MACS", 1)
    torch.manual_seed(0)
    module = Pyramid()
    maps = torch.randn(2, 8, 5, 4).contiguous(memory_format=layout).requires_grad_()
    found, counts = [], []
    for light in (False, True):
        recorder, counter = CheapRecomputation(module), Kept(module)
        keep = recorder._replace if light else lambda tensor: tensor

        def count(tensor, keep=keep, counter=counter):
            kept = keep(tensor)
            counter.count(kept)
            return kept

        hooks = torch.autograd.graph.saved_tensors_hooks(count, _restore)
        recorder._replace = count
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast), recorder.active() if light else hooks:
            result = module(maps)
        found.append(torch.autograd.grad(result.sum(), [maps, *module.parameters()]))
        recorder.remove()
        counts.append(counter.bytes)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert counts[1] < 0.8 * counts[0]


def test_an_input_changed_in_place_is_an_error():
    module = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8))
    x = torch.randn(4, 8, requires_grad=True) * 1
    cheap = CheapRecomputation(module)
    with cheap.active():
        y = module(x)
    with torch.no_grad():
        x.add_(1)
    with pytest.raises(RuntimeError, match="changed in place"):
        y.sum().backward()


def test_an_output_changed_in_place_is_kept_as_it_became():
    norm, linear = nn.LayerNorm(8), nn.Linear(8, 8)
    module = nn.ModuleList([norm, linear])
    x = torch.randn(4, 8)
    cheap = CheapRecomputation(module)
    with cheap.active():
        hidden = norm(x)
        hidden.mul_(2)
        linear(hidden).sum().backward()
    assert torch.allclose(linear.weight.grad, hidden.detach().sum(0).expand(8, 8), atol=1e-5)


def test_nothing_happens_without_gradients():
    network = tiny_network()
    network.set_grad_checkpointing("light")
    with torch.no_grad():
        a = network(torch.ones(1, 3, 128, 128))
    network.set_grad_checkpointing(False)
    with torch.no_grad():
        b = network(torch.ones(1, 3, 128, 128))
    assert all(torch.equal(c, d) for c, d in zip(a, b, strict=True))


def test_compilers_see_the_plain_network():
    """They choose by themselves what to compute again; hooks would break their graphs."""
    network = tiny_network(branches=(tiny_branch(64, 64), tiny_branch(32, 128))).train()
    network.set_grad_checkpointing("light")
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch.compile(network, backend=backend, fullgraph=True)(torch.randn(1, 3, 128, 128))
    assert len(graphs) == 1
