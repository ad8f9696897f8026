"""A released PIIP-LLaVA, whole: tower, projector, language model and tokenizer."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("transformers")

import transformers

from piip.cli import main
from piip.convert import from_official
from piip.errors import CheckpointError
from piip.llava import PiipLlavaForConditionalGeneration, PiipLlavaProcessor
from piip.llava.conversion import PROJECTOR, TOWER, convert_llava
from piip.tasks.multimodal.projector import PyramidProjector
from tests.golden.make import TARGET
from tests.helpers import fill, pattern
from tests.llava.tiny import text_config, tokenizer

CASE = json.loads(TARGET.read_text())["llava2_mix"]
LAYERS = {"fc1": 1, "norms": 3, "fc2": 6}
OLD_VOCABULARY = 100


@pytest.fixture(scope="module")
def parts():
    """Tower, projector and language model as they stand in a released file."""
    torch.manual_seed(0)
    tensors = {key: pattern(key, torch.Size(shape)) for key, shape in CASE["tensors"].items()}
    tower = from_official(CASE["config"], tensors)
    text = text_config()
    text.vocab_size = OLD_VOCABULARY
    projector = fill(PyramidProjector(tower.out_channels, text.hidden_size))
    return tensors, tower, projector, transformers.LlamaForCausalLM(text).eval()


@pytest.fixture
def released(parts, tmp_path):
    tensors, _, projector, language = parts
    state = {TOWER + key: value for key, value in tensors.items()}
    for key, value in projector.state_dict().items():
        part, branch, kind = key.split(".")
        state[f"{PROJECTOR}branch{int(branch) + 1}.{LAYERS[part]}.{kind}"] = value
    state |= {key: value.clone() for key, value in language.state_dict().items()}
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "model.safetensors")
    settings = language.config.to_dict() | {"model_type": "llava_llama", "mm_hidden_size": 1024}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    words = tokenizer()
    vocabulary = json.loads(words.backend_tokenizer.to_str())
    vocabulary["model"]["vocab"].pop("<image>")
    vocabulary["model"]["vocab"]["\n"] = 4
    vocabulary["added_tokens"] = [
        entry for entry in vocabulary["added_tokens"] if entry["content"] != "<image>"
    ]
    (tmp_path / "tokenizer.json").write_text(json.dumps(vocabulary))
    named = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "</s>",
        "bos_token": "<s>",
        "pad_token": "<pad>",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
    return tmp_path


@torch.no_grad()
def test_every_part_gives_what_it_gave(parts, released, tmp_path):
    _, tower, projector, language = parts
    llava, processor = convert_llava(released, tower.config)
    assert isinstance(llava, PiipLlavaForConditionalGeneration)
    assert processor.tokenizer.padding_side == "left"
    assert llava.config.image_token_id == OLD_VOCABULARY
    assert llava.config.text.vocab_size == 128
    side = tower.config.image_size
    pixels = torch.randn(1, 3, side, side)
    features = llava.get_image_features(pixels).pooler_output[0]
    assert torch.equal(features, projector(tower(pixels))[0])
    words = torch.randint(5, OLD_VOCABULARY, (1, 7))
    logits = llava(input_ids=words).logits
    torch.testing.assert_close(logits[..., :OLD_VOCABULARY], language(words).logits, rtol=0, atol=1e-6)
    inputs = processor(
        images=[[torch.zeros(3, 40, 60, dtype=torch.uint8)]], text=["<image>\nhi"], return_tensors="pt"
    )
    assert (inputs["input_ids"] == OLD_VOCABULARY).sum() == llava.config.tokens_of(side, side)
    llava.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    again = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "saved")
    assert torch.equal(again(**inputs).logits, llava(**inputs).logits)


def test_the_command_writes_a_folder_of_transformers(parts, released, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("piip.presets.get_config", lambda name: parts[1].config)
    out = tmp_path / "out"
    assert main(["convert", str(released), str(out), "--model", "tower", "--language", "true"]) == 0
    assert type(transformers.AutoProcessor.from_pretrained(out)) is PiipLlavaProcessor
    assert (
        type(transformers.AutoModelForImageTextToText.from_pretrained(out))
        is PiipLlavaForConditionalGeneration
    )
    recipe = Path(__file__).parents[2] / "recipes" / "bccd.yaml"
    words = [
        "convert",
        str(released),
        str(out),
        "--recipe",
        str(recipe),
        "--model",
        "tower",
        "--language",
        "true",
    ]
    assert main(words) == 2
    assert "which have no recipe" in capsys.readouterr().err


def test_every_tensor_is_accounted_for(parts, released):
    _, tower, _, _ = parts
    whole = transformers.modeling_utils.load_state_dict(str(released / "model.safetensors"))
    save_file(whole | {TOWER + "branch1.stranger": torch.ones(2)}, released / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"1 unknown: .*branches\.0\.stranger"):
        convert_llava(released, tower.config)
    short = {key: value for key, value in whole.items() if ".mlp.up_proj" not in key}
    save_file(short, released / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"2 missing: model\.language_model\.layers\.0\.mlp\.up_proj"):
        convert_llava(released, tower.config)
    save_file({"model.norm.weight": torch.ones(2)}, released / "model.safetensors")
    with pytest.raises(CheckpointError, match="is no PIIP-LLaVA"):
        convert_llava(released, tower.config)
    (released / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        convert_llava(released, tower.config)
