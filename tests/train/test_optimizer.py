import json

import pytest
import torch
from torch import nn

from piip.config import BranchConfig, PIIPConfig, even_ranges
from piip.convert.configs import network_config
from piip.errors import ConfigError
from piip.meta import on_meta
from piip.network import PIIP, build_on_meta
from piip.train.optimizer import build_optimizer, find_network, layer_decay_groups
from piip.train.settings import OptimizerConfig
from tests.helpers import our_name


def tiny(depth: int, dim: int = 32) -> dict:
    return {"embed_dim": dim, "depth": depth, "num_heads": 2}


def config(*depths: int, arch: str = "vit_tiny_patch16_224", **changes) -> PIIPConfig:
    sizes = range(64, 64 + 32 * len(depths), 32)
    branches = tuple(
        BranchConfig(arch, size, even_ranges(depth, 2), options=tiny(depth))
        for size, depth in zip(sizes, depths, strict=True)
    )
    return PIIPConfig(branches, size_divisor=1, **changes)


class Model(nn.Module):
    """A network inside a model with further parts, like the original's detectors."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.backbone = network
        self.neck = nn.ModuleList([nn.Linear(2, 2, device="meta")])
        self.head = nn.Linear(2, 2, device="meta")


def shapes(golden: dict) -> dict[str, torch.Tensor]:
    """Return stand-ins for the original's tensors; only those that the widths are read from have shapes."""
    names = [key.removeprefix("backbone.") for key in golden["per_param"]]
    state = {name: torch.zeros(()) for name in names}
    for index in (1, 2, 3):
        if branch := golden["model_config"].get(f"branch{index}"):
            width, grid = branch["embed_dim"], 224 // 16
            state[f"branch{index}.patch_embed.proj.weight"] = torch.zeros(width, 3, 16, 16)
            state[f"branch{index}.pos_embed"] = torch.zeros(1, grid**2 + ("norm_layer_type" in branch), width)
    return state


@pytest.mark.parametrize("name", ["optim_det3", "optim_det2_stride1p5"])
def test_rates_and_decay_of_the_original(shared, name):
    golden = json.loads((shared / "golden" / f"{name}.json").read_text())
    official = {"cls": f"mmdet {'Three' if 'det3' in name else 'Two'}BranchPIIP", **golden["model_config"]}
    model = Model(build_on_meta(network_config(official, shapes(golden))))
    rule = golden["paramwise_cfg"]
    groups = layer_decay_groups(
        model,
        golden["base_lr"],
        golden["base_wd"],
        rule["num_layers"],
        rule["layer_decay_rate"],
        rule["skip_stride"],
        prefix="backbone.",
    )
    found = {key: group for group in groups for key in group["param_names"]}
    checked = 0
    for key, wanted in golden["per_param"].items():
        inner = key.removeprefix("backbone.")
        ours = f"backbone.{our_name(inner)}" if inner != key else key
        group = found[ours]
        assert group["lr_scale"] == wanted["lr_scale"], key
        assert group["lr"] == golden["base_lr"] * wanted["lr_scale"]
        assert group["weight_decay"] == wanted["weight_decay"], key
        assert group["name"] == wanted["group"], key
        checked += 1
    assert checked == len(golden["per_param"]) > 100
    assert len(found) == checked, "we have parameters that the original has not"


def test_fractional_layers_act_as_rounded_down():
    model = PIIP(config(6, 4))
    groups = {g["name"]: g for g in layer_decay_groups(model, 1.0, 0.1, 6, 0.5, [1.5])}
    first = groups["layer_1_decay"]
    assert first["lr"] == 0.5**6
    assert "branches.1.blocks.0.attn.qkv.weight" in first["param_names"]  # layer 1.5
    assert "branches.1.blocks.1.attn.qkv.weight" in groups["layer_3_decay"]["param_names"]
    assert groups["layer_7_decay"]["lr"] == 1.0


def test_every_trainable_parameter_is_in_exactly_one_group():
    model = PIIP(config(4, 2, 2)).freeze([2])
    optimizer = build_optimizer(model, OptimizerConfig(layer_decay=0.8))
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert len(set(grouped)) == len(grouped) < len(list(model.parameters()))


def test_strides_default_to_the_ratio_of_depths():
    model = PIIP(config(6, 4, 2))
    given = build_optimizer(model, OptimizerConfig(layer_decay=0.8, num_layers=6, skip_stride=(1.5, 3)))
    default = build_optimizer(model, OptimizerConfig(layer_decay=0.8))
    assert [g["lr"] for g in given.param_groups] == [g["lr"] for g in default.param_groups]
    assert [g["param_names"] for g in given.param_groups] == [g["param_names"] for g in default.param_groups]


def test_convnext_branches_learn_at_the_full_rate():
    convnext = BranchConfig("convnext_femto", 96, ((0, 4), (5, 14)))
    vit = BranchConfig("vit_tiny_patch16_224", 64, even_ranges(4, 2), options=tiny(4))
    with on_meta():
        model = PIIP(PIIPConfig((vit, convnext), size_divisor=1))
    for group in layer_decay_groups(model, 1.0, 0.1, 4, 0.5, [1.0]):
        for name in group["param_names"]:
            assert (group["lr"] == 1.0) or name.startswith("branches.0."), name


def test_scalars_decay_and_vectors_do_not():
    groups = layer_decay_groups(PIIP(config(2, 2)), 1.0, 0.1, 2, 0.9, [1.0])
    decay = {name: group["weight_decay"] for group in groups for name in group["param_names"]}
    assert decay["mergings.0.weights.0"] == 0.1
    assert decay["branches.0.pos_embed"] == 0.1
    assert decay["branches.0.blocks.0.norm1.weight"] == 0
    assert decay["interactions.0.units.1_2.to_lower.attn_gate"] == 0


def test_shared_weights_have_one_set_of_groups():
    model = PIIP(config(2, 2, 2, shared_weights=True))
    names = [n for g in build_optimizer(model, OptimizerConfig()).param_groups for n in g["param_names"]]
    assert not any(name.startswith("branches.1") for name in names)


def test_bad_settings():
    with pytest.raises(ConfigError, match="skip_stride has 1 numbers for 3 branches"):
        layer_decay_groups(PIIP(config(2, 2, 2)), 1.0, 0.1, 2, 0.9, [1.0])
    with pytest.raises(ConfigError, match=r"lr is 0.0; give a number above 0"):
        OptimizerConfig(lr=0)
    with pytest.raises(ConfigError, match="no PIIP network"):
        find_network(nn.Linear(1, 1))
    with pytest.raises(ConfigError, match="frozen"):
        build_optimizer(PIIP(config(2)).requires_grad_(False), OptimizerConfig())


def test_updates_are_fused_where_there_is_a_kernel():
    network = PIIP(config(2, 2))
    settings = OptimizerConfig()
    assert build_optimizer(network, settings).defaults["fused"]
    singly = build_optimizer(network, settings, one_by_one=True).defaults
    assert not singly["fused"]
    assert singly["foreach"] is False
    assert not build_optimizer(build_on_meta(config(2, 2)), settings).defaults["fused"]


def test_everything_but_the_branches_can_learn_faster():
    model = Model(build_on_meta(config(2, 2)))
    optimizer = build_optimizer(model, OptimizerConfig(lr=1e-3, rest_factor=10.0))
    rates = {name: group["lr"] for group in optimizer.param_groups for name in group["param_names"]}
    inside = {name for name in rates if name.startswith("backbone.branches.")}
    assert {rates[name] for name in inside} == {1e-3}
    assert all(rates[name] == pytest.approx(1e-2) for name in rates.keys() - inside)
    assert len(rates) == sum(1 for _ in model.parameters())


def rates(model: nn.Module, **settings) -> dict[str, float]:
    groups = build_optimizer(model, OptimizerConfig(lr=1e-3, layer_decay=0.5, **settings)).param_groups
    return {name: group["lr"] for group in groups for name in group["param_names"]}


def test_parts_may_have_rates_of_their_own():
    model = Model(build_on_meta(config(2, 2)))
    plain, found = rates(model), rates(model, factors={"interactions": 3.0, "neck": 0.1})
    assert found.keys() == plain.keys()
    for name, rate in found.items():
        factor = 3.0 if "interactions" in name else 0.1 if "neck" in name else 1.0
        assert rate == pytest.approx(factor * plain[name]), name
    assert [found[f"neck.0.{name}"] for name in ("weight", "bias")] == pytest.approx([1e-4, 1e-4])
    assert any("interactions" in name for name in found)


def test_a_factor_of_nothing_is_refused():
    model = Model(build_on_meta(config(2, 2)))
    with pytest.raises(ConfigError, match=r"optimizer\.factors names nekc"):
        build_optimizer(model, OptimizerConfig(factors={"nekc": 0.1}))
    with pytest.raises(ConfigError, match=r"optimizer\.factors\.neck is 0"):
        OptimizerConfig(factors={"neck": 0})
