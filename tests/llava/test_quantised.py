"""Language models in 8 and 4 bits, and everything else as precise as before."""

import sys

import pytest
import torch

pytest.importorskip("transformers")

import transformers

from piip.errors import ConfigError, MissingExtraError
from piip.llava import Answerer, PiipLlavaConfig, PiipLlavaForConditionalGeneration
from piip.llava.loading import in_bits
from piip.llava.modeling import UNQUANTIZED
from tests.llava.test_model import ask, batch, picture
from tests.llava.tiny import network_config, processor

WIDTH = 128
"""4 bits on a CPU need widths that are multiples of it."""


@pytest.fixture(scope="module")
def llava():
    text = transformers.LlamaConfig(
        vocab_size=101, hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        max_position_embeddings=1024,
    )  # fmt: skip
    torch.manual_seed(0)
    return PiipLlavaForConditionalGeneration(PiipLlavaConfig.of(network_config(), text, 4)).eval()


@pytest.fixture(scope="module")
def folder(llava, tmp_path_factory):
    folder = tmp_path_factory.mktemp("llava")
    llava.save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def inputs():
    return batch([ask("what is it?")], [picture()])


def logits(llava, inputs):
    with torch.no_grad():
        return llava(**inputs).logits.float()


def quantised(model):
    kinds = ("Linear8bitLt", "Linear4bit")
    return [name for name, module in model.named_modules() if type(module).__name__ in kinds]


@pytest.mark.parametrize(("bits", "error", "saved"), [(8, 0.03, 0.7), (4, 0.25, 0.6)])
def test_only_the_language_model_is_quantised(bits, error, saved, llava, folder, inputs, tmp_path):
    pytest.importorskip("bitsandbytes")
    answerer = Answerer.load(folder, "cpu", bits=bits)
    model = answerer.model
    names = quantised(model)
    assert len(names) == 2 * 7, "all matrices of two layers"
    assert all(name.startswith("model.language_model.layers.") for name in names)
    state = model.state_dict()
    for name, value in llava.state_dict().items():
        if name.startswith(UNQUANTIZED):
            assert torch.equal(state[name], value)
    assert model.get_memory_footprint() < saved * llava.get_memory_footprint()

    model.save_pretrained(tmp_path)  # before its first use, after which bitsandbytes lays 4 bits out anew
    processor().save_pretrained(tmp_path)
    expected, found = logits(llava, inputs), logits(model, inputs)
    assert 0 < (found - expected).norm() / expected.norm() < error
    again = Answerer.load(tmp_path, "cpu")
    assert quantised(again.model) == names
    assert torch.equal(logits(again.model, inputs), found)
    assert again.answer(picture(), "a?", 6) == answerer.answer(picture(), "a?", 6) != ""


def test_what_is_left_out_can_be_chosen(folder):
    pytest.importorskip("bitsandbytes")
    chosen = transformers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["lm_head"])
    model = Answerer.load(folder, "cpu", quantization_config=chosen).model
    assert any("multi_modal_projector" in name for name in quantised(model))
    assert chosen.llm_int8_skip_modules == ["lm_head"]


def test_other_numbers_of_bits_and_a_missing_library(folder, monkeypatch):
    with pytest.raises(ConfigError, match="give 4 or 8"):
        Answerer.load(folder, "cpu", bits=3)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'piip\[bits\]'"):
        in_bits(4)
