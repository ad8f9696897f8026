"""Saved PIIP-LLaVAs come back with the options of transformers, and complain of the right thing."""

import pytest
import torch

pytest.importorskip("transformers")

import transformers

from piip.errors import CheckpointError
from piip.llava.loading import load_model
from tests.llava.test_model import ask, batch, picture
from tests.llava.tiny import model, save


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
