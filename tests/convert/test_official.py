import importlib.util
import json

import pytest
import torch
from safetensors.torch import load_file

from piip.branches import build_branch
from piip.convert import from_official
from piip.convert.configs import network_config
from piip.errors import CheckpointError
from piip.network import PIIP
from piip.ops import use_implementation
from piip.tasks.multimodal.projector import PyramidProjector, projector_state_dict
from tests.helpers import our_name, relative_error

NETWORKS = [
    "cls3_merge",
    "cls3_tokens",
    "det2_vit_nonsquare",
    "det3_beit",
    "det3_convnext_vit",
    "det3_internvit",
    "det3_normalattn",
    "det3_uniperceiver",
    "det3_vit",
    "det3_vit_flashwin",
    "det3_vit_noproj",
    "det4_vit",
    "llava2_clip",
    "llava2_mix",
    "seg2_internvit",
]
LOADERS = ["load_beit_up", "load_deit3", "load_internvit", "load_mae", "load_uniperceiver"]
IMPLEMENTATIONS = ["grid_sample", *(["fused"] if importlib.util.find_spec("numba") else [])]
OUTPUT_TOLERANCE = 4e-6
GRADIENT_TOLERANCE = 2e-5


def golden(shared, name):
    description = json.loads((shared / "golden" / f"{name}.json").read_text())
    return description, load_file(shared / "golden" / f"{name}.safetensors")


def part(tensors, prefix):
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def test_every_golden_network_is_tested(shared):
    networks = ("det", "seg", "cls", "llava2")
    present = {path.stem for path in (shared / "golden").glob("*.json") if path.stem.startswith(networks)}
    assert present == set(NETWORKS)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_match_the_original(shared, name, implementation):
    description, tensors = golden(shared, name)
    model = from_official(description["config"], part(tensors, "state."))
    assert not model.training
    with torch.no_grad(), use_implementation(implementation):
        outputs = model(tensors["input"])
    outputs = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
    assert len(outputs) == len(part(tensors, "output."))
    for index, output in enumerate(outputs):
        assert relative_error(output, tensors[f"output.{index}"]) < OUTPUT_TOLERANCE


@pytest.mark.parametrize("name", NETWORKS)
def test_tokens_inside_match_the_original(shared, name):
    description, tensors = golden(shared, name)
    model = from_official(description["config"], part(tensors, "state."))
    network = model if isinstance(model, PIIP) else model.network
    with torch.no_grad():
        tokens = network.forward_features(network.pad(tensors["input"]))[-1]
    for index, branch in enumerate(tokens):
        expected = tensors.get(f"branch{index + 1}.final")
        if expected is not None:
            assert relative_error(branch.x, expected) < OUTPUT_TOLERANCE
        if f"branch{index + 1}.final_cls" in tensors:
            assert relative_error(branch.prefix, tensors[f"branch{index + 1}.final_cls"]) < OUTPUT_TOLERANCE


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gradients_match_the_original(shared, implementation):
    description, tensors = golden(shared, "det3_vit")
    model = from_official(description["config"], part(tensors, "state."))
    with use_implementation(implementation):
        sum(output.sum() for output in model(tensors["input"])).backward()
    parameters = dict(model.named_parameters())
    expected = part(tensors, "grad.")
    assert len(expected) >= 18
    for key, gradient in expected.items():
        assert relative_error(parameters[our_name(key)].grad, gradient) < GRADIENT_TOLERANCE, key


@pytest.mark.parametrize("name", LOADERS)
def test_pretrained_branches_load_as_in_the_original(shared, name):
    description, tensors = golden(shared, name)
    config = description["config"]
    words = {"BEiT": "beit", "vit_models": "deit", "UnifiedBertEncoder": "perceiver"}
    pretrained = words.get(config["cls"], "other")
    branch = config | {"real_size": 224, "interaction_indexes": [[0, config["depth"] - 1]]}
    branch = {"patch_size": 16, "pretrained": pretrained} | branch
    whole = {"cls": "mmdet PIIP", "n_points": 4, "deform_num_heads": 2, "branch1": branch}
    official = part(tensors, "state.")
    described = network_config(whole, {f"branch1.{key}": value for key, value in official.items()})
    ours = build_branch(described.branches[0])
    loaded = ours.adapt_state_dict(part(tensors, "ckpt."))
    expected = ours.adapt_state_dict(official)
    assert set(expected) == set(ours.state_dict())
    unexpected = set(loaded) - set(expected)
    assert unexpected <= set(description["unexpected_keys"])
    for key in set(loaded) - unexpected:
        assert relative_error(loaded[key], expected[key]) < 4e-6, key
    missing = {our_name(f"branch1.{key}") for key in description["missing_keys"]}
    left_out = {f"branches.0.{key}" for key in set(expected) - set(loaded)}
    assert left_out == {key for key in missing if not key.endswith("relative_position_index")}


def test_projector_matches_the_original(shared):
    description, tensors = golden(shared, "llava_projector_gn")
    config = description["config"]
    projector = PyramidProjector((config["dim1"], config["dim2"]), config["out_dim"], "group")
    projector.load_state_dict(projector_state_dict(part(tensors, "state.")))
    with torch.no_grad():
        output = projector((tensors["input.0"], tensors["input.1"]))
    assert relative_error(output, tensors["output.0"]) < OUTPUT_TOLERANCE


def test_converted_model_is_the_same_class_as_a_built_one(shared):
    description, tensors = golden(shared, "det3_vit")
    model = from_official(description["config"], part(tensors, "state."))
    twin = PIIP(type(model.config).from_dict(model.config.to_dict())).eval()
    twin.load_state_dict(model.state_dict())
    with torch.no_grad():
        for ours, theirs in zip(twin(tensors["input"]), model(tensors["input"]), strict=True):
            assert torch.equal(ours, theirs)


def test_every_key_is_accounted_for(shared):
    description, tensors = golden(shared, "det3_vit")
    state = part(tensors, "state.")
    with pytest.raises(CheckpointError, match=r"1 unknown: branch2\.norm\.weight"):
        from_official(description["config"], state | {"branch2.norm.weight": torch.ones(48)})
    with pytest.raises(CheckpointError, match=r"1 unknown: surprise"):
        from_official(description["config"], state | {"surprise": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"1 missing: mergings\.0\.weights\.1"):
        from_official(description["config"], {k: v for k, v in state.items() if k != "w2"})
    with pytest.raises(
        CheckpointError, match=r"1 of another shape: levels\.1\.0\.bias \(3,\) instead of \(64,\)"
    ):
        from_official(description["config"], state | {"fpn2.0.bias": torch.ones(3)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cls": "something"}, "give '<sub-project> <class>'"),
        ({"branch1": None, "cls": "mmseg PIIPThreeBranch"}, "only two branches can be converted"),
    ],
)
def test_configurations_without_equivalent_are_refused(shared, change, message):
    description, tensors = golden(shared, "det3_vit")
    with pytest.raises(CheckpointError, match=message):
        from_official(description["config"] | change, part(tensors, "state."))


def test_incomplete_configurations_and_checkpoints_name_what_is_missing(shared):
    description, tensors = golden(shared, "det3_vit")
    config, state = description["config"], part(tensors, "state.")
    with pytest.raises(CheckpointError, match="no 'n_points'"):
        from_official({k: v for k, v in config.items() if k != "n_points"}, state)
    with pytest.raises(CheckpointError, match=r"no 'patch_embed\.proj\.weight'"):
        from_official(config, {k: v for k, v in state.items() if k != "branch2.patch_embed.proj.weight"})


def test_no_branches_are_refused():
    with pytest.raises(CheckpointError, match="has no branch1"):
        from_official({"cls": "mmdet PIIPTwoBranch"}, {})


def test_half_precision_checkpoints_become_float32_models(shared):
    description, tensors = golden(shared, "det3_vit")
    half = {key: value.bfloat16() for key, value in part(tensors, "state.").items()}
    model = from_official(description["config"], half)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.isfinite(model(tensors["input"])[0]).all()
