"""Saved PIIP-LLaVAs come back with the options of transformers, and complain of the right thing."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("transformers")

import transformers

from piip.config import MergingConfig
from piip.errors import CheckpointError
from piip.llava import Answerer, PiipLlavaModel, answering, loading
from piip.llava.loading import fast_dtype, load_model
from piip.network import PIIP
from tests.helpers import fill, hierarchical_config, rotary_config, tiny_config
from tests.llava.test_model import ask, batch, picture
from tests.llava.tiny import model, processor, save


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("llava"))


@pytest.mark.parametrize("attention", ["eager", "sdpa", "flex_attention"])
def test_the_language_model_s_attention_can_be_chosen(folder, attention):
    inputs = batch([ask("a?")], [picture()])
    chosen = load_model(folder, {"attn_implementation": attention})
    assert chosen.model.language_model.config._attn_implementation == attention
    changed = model()
    changed.set_attn_implementation(attention)
    assert changed.model.language_model.config._attn_implementation == attention
    if attention != "flex_attention":  # compiles for a minute
        with torch.no_grad():
            expected = model()(**inputs).logits
            torch.testing.assert_close(chosen.eval()(**inputs).logits, expected, atol=1e-5, rtol=1e-4)


def test_flash_attention_is_refused_by_no_part_of_the_model():
    """It is not installed here; what asks for it goes by this."""
    parts = [part for part in model().modules() if isinstance(part, transformers.PreTrainedModel)]
    assert len(parts) == 4
    assert all(part._supports_flash_attn for part in parts)


@pytest.mark.parametrize(
    ("name", "value"), [("attn_implementation", "nope"), ("dtype", "bfloat61"), ("colour", "red")]
)
def test_wrong_options_are_not_blamed_on_the_folder(folder, name, value):
    options = {"dtype": "auto", "device_map": {"": "cpu"}} | {name: value}
    with pytest.raises(CheckpointError, match=rf"leave out {name}='{value}', or save the model again if"):
        load_model(folder, options)


def test_damaged_folders_are_blamed(tmp_path):
    save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(CheckpointError, match=r"\); save the model again\.$"):
        load_model(tmp_path, {"dtype": torch.float32, "device_map": {"": "cpu"}})


def test_the_model_without_its_head_is_known(folder):
    bare, report = transformers.AutoModel.from_pretrained(folder, output_loading_info=True)
    assert type(bare) is PiipLlavaModel
    assert not report["missing_keys"]
    inputs = batch([ask("a?")], [picture()])
    with torch.no_grad():
        expected = model().model(**inputs).last_hidden_state
        assert torch.equal(bare.eval()(**inputs).last_hidden_state, expected)


@pytest.mark.parametrize("where", ["tower", "auto"])
def test_weights_may_lie_on_the_disk(folder, tmp_path, where):
    pytest.importorskip("accelerate")
    parts = ("model.multi_modal_projector", "model.language_model", "lm_head")
    options = {"device_map": dict.fromkeys(parts, "cpu") | {"model.vision_tower": "disk"}}
    if where == "auto":
        options = {"device_map": "auto", "max_memory": {"cpu": "700KB"}}
    loaded = load_model(folder, options | {"offload_folder": tmp_path})
    assert any(p.is_meta for p in loaded.model.vision_tower.parameters())
    inputs = batch([ask("a?")], [picture()])
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model()(**inputs).logits)


@pytest.mark.parametrize("tower", [tiny_config, rotary_config, hierarchical_config])
def test_weights_of_any_tower_may_be_brought_when_needed(tower):
    accelerate = pytest.importorskip("accelerate")
    network = fill(PIIP(tower().replace(merging=MergingConfig("none", pyramid_levels=())))).eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = network(image)
        accelerate.cpu_offload(network, "cpu")
        assert all(parameter.is_meta for parameter in network.parameters())
        for found, whole in zip(network(image), expected, strict=True):
            torch.testing.assert_close(found, whole, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("arithmetic", "memory", "device", "expected"),
    [
        (False, 2**40, "cpu", torch.float32),
        (False, 2**10, "cpu", "auto"),
        (True, 2**40, "cpu", "auto"),
        (False, 2**40, "cuda", "auto"),
    ],
)
def test_half_precision_is_left_where_it_would_be_slow(
    tmp_path, monkeypatch, arithmetic, memory, device, expected
):
    model().half().save_pretrained(tmp_path)
    processor().save_pretrained(tmp_path)
    monkeypatch.setattr(loading, "has_arithmetic", lambda dtype: arithmetic or dtype == torch.float32)
    monkeypatch.setattr(loading.psutil, "virtual_memory", lambda: SimpleNamespace(available=memory))
    assert fast_dtype(tmp_path, torch.device(device)) == expected
    if device == "cpu":
        kept = torch.float16 if expected == "auto" else expected
        assert Answerer.load(tmp_path, "cpu").model.dtype == kept
        assert Answerer.load(tmp_path, "cpu", dtype=torch.bfloat16).model.dtype == torch.bfloat16
        model().save_pretrained(tmp_path)
        assert fast_dtype(tmp_path, torch.device(device)) == "auto"


def test_settings_of_fewer_bits_leave_the_dtype(tmp_path, monkeypatch):
    model().half().save_pretrained(tmp_path)
    processor().save_pretrained(tmp_path)
    monkeypatch.setattr(loading, "has_arithmetic", lambda dtype: False)
    given = []
    monkeypatch.setattr(answering, "load_model", lambda folder, options: (given.append(options), model())[1])
    for options in ({"quantization_config": object()}, {}):
        Answerer.load(tmp_path, "cpu", **options)
    assert [options["dtype"] for options in given] == ["auto", torch.float32]
