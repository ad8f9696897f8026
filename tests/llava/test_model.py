"""A PIIP-LLaVA inside transformers: it answers, learns, is saved and comes back."""

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("transformers")

import transformers

from piip.config import BranchConfig, MergingConfig, PIIPConfig
from piip.errors import ConfigError
from piip.llava import PiipLlavaConfig, PiipLlavaForConditionalGeneration, PiipLlavaProcessor
from piip.meta import on_meta
from piip.presets import get_config, list_models
from tests.helpers import TINY_INTERACTION, rotary_config, tiny_branch, tiny_config
from tests.llava.tiny import SIDE, model, network_config, processor, text_config, tokenizer

QUESTIONS = ("what is it?", "how many cats are there in this picture?")


def picture(seed=0, size=(50, 80)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8))


def ask(*questions, images=1, answers=()):
    """Return the prompt of a conversation whose first turn has images."""
    turns = []
    for number, question in enumerate(questions):
        shown = [{"type": "image"}] * images if number == 0 else []
        turns.append({"role": "user", "content": [*shown, {"type": "text", "text": question}]})
        if number < len(answers):
            turns.append({"role": "assistant", "content": [{"type": "text", "text": answers[number]}]})
    return processor().apply_chat_template(turns, add_generation_prompt=True)


def batch(prompts, images, **options):
    return processor(**options)(images=images, text=prompts, return_tensors="pt", padding=True)


def answer(llava, inputs, **options):
    with torch.no_grad():
        output = llava.generate(**inputs, max_new_tokens=6, do_sample=False, **options)
    return output[:, inputs["input_ids"].shape[1] :]


def test_an_image_stands_for_its_tokens():
    inputs = batch([ask("a?")], [picture()])
    assert (inputs["input_ids"] == 4).sum() == 16 == model().config.image_seq_length
    assert inputs["pixel_values"].shape == (1, 3, SIDE, SIDE)
    features = model().get_image_features(inputs["pixel_values"]).pooler_output
    assert [part.shape for part in features] == [(16, 64)]


def test_the_grid_can_be_fixed():
    inputs = batch([ask("a?")], [picture()], out_grid=(2, 3))
    llava = model(out_grid=(2, 3))
    assert (inputs["input_ids"] == 4).sum() == 6 == llava.config.image_seq_length
    assert answer(llava, inputs).shape == (1, 6)


def test_features_are_those_of_network_and_projector():
    llava = model()
    pixels = torch.randn(2, 3, SIDE, SIDE)
    with torch.no_grad():
        maps = llava.model.vision_tower.network(pixels)
        expected = llava.model.multi_modal_projector(maps)
        output = llava.get_image_features(pixels)
    assert torch.equal(torch.stack(output.pooler_output), expected)
    assert [feature.shape for feature in output.hidden_states] == [(2, 64, 2, 2), (2, 32, 4, 4)]


def test_the_image_matters_and_its_place_too():
    llava, one, two = model(), picture(0), picture(1)
    prompt = ask("same?", images=2)
    with torch.no_grad():
        logits = [
            llava(**batch([prompt], [images])).logits[0, -1]
            for images in ([one, two], [two, one], [one, one])
        ]
    assert not torch.allclose(logits[0], logits[1])
    assert not torch.allclose(logits[0], logits[2])


def test_a_batch_answers_as_each_alone():
    llava = model()
    prompts, images = [ask(question) for question in QUESTIONS], [picture(0), picture(1, (90, 30))]
    together = answer(llava, batch(prompts, images))
    alone = [answer(llava, batch([prompt], [image])) for prompt, image in zip(prompts, images, strict=True)]
    assert torch.equal(together, torch.cat(alone))


def test_the_cache_changes_nothing():
    llava, inputs = model(), batch([ask(QUESTIONS[0])], [picture()])
    assert torch.equal(answer(llava, inputs), answer(llava, inputs, use_cache=False))


def test_several_turns_and_no_image():
    llava = model()
    prompt = ask(*QUESTIONS, answers=["a cat"])
    assert prompt.count("USER:") == 2
    assert "ASSISTANT: a cat</s>" in prompt
    assert answer(llava, batch([prompt], [picture()])).shape == (1, 6)
    assert answer(llava, processor()(text=[ask("hi", images=0)], return_tensors="pt")).shape == (1, 6)


def test_it_streams():
    llava, inputs = model(), batch([ask("a?")], [picture()])
    streamer = transformers.TextIteratorStreamer(tokenizer(), skip_prompt=True)
    output = llava.generate(**inputs, max_new_tokens=4, do_sample=False, streamer=streamer)
    assert "".join(streamer) == tokenizer().decode(output[0, inputs["input_ids"].shape[1] :])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_everything_learns(checkpointing):
    llava = model().train()
    if checkpointing:
        llava.activation_checkpointing_enable()
        assert llava.model.vision_tower.network.grad_checkpointing
    inputs = batch([ask(question) for question in QUESTIONS], [picture(0), picture(1)])
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == 4, -100)
    loss = llava(**inputs, labels=labels).loss
    loss.backward()
    # Gates of interactions start at 0: what is behind them learns from the second step on.
    missing = [name for name, p in llava.named_parameters() if p.grad is None]
    assert not missing
    assert loss.isfinite()


def test_saved_models_give_equal_outputs(tmp_path):
    llava, inputs = model(), batch([ask("a?")], [picture()])
    llava.save_pretrained(tmp_path)
    processor().save_pretrained(tmp_path)
    for device_map in (None, {"": "cpu"}):
        loaded = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path, device_map=device_map)
        assert type(loaded) is PiipLlavaForConditionalGeneration
        state = loaded.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in llava.state_dict().items())
        with torch.no_grad():
            assert torch.equal(llava(**inputs).logits, loaded.eval()(**inputs).logits)
    again = transformers.AutoProcessor.from_pretrained(tmp_path)
    assert type(again) is PiipLlavaProcessor
    repeated = again(images=[picture()], text=[ask("a?")], return_tensors="pt")
    assert all(torch.equal(inputs[name], repeated[name]) for name in inputs)


def test_the_pipeline_answers(tmp_path):
    model().save_pretrained(tmp_path)
    processor().save_pretrained(tmp_path)
    pipe = transformers.pipeline("image-text-to-text", model=str(tmp_path), device="cpu")
    turn = {
        "role": "user",
        "content": [{"type": "image", "image": picture()}, {"type": "text", "text": "a?"}],
    }
    (result,) = pipe(
        text=[turn], generate_kwargs={"max_new_tokens": 3, "do_sample": False}, return_full_text=False
    )
    expected = answer(model(), batch([ask("a?")], [picture()]))[:, :3]
    assert result["generated_text"] == tokenizer().decode(expected[0])


def test_images_are_prepared_as_released():
    """Square with the mean colour, bicubic, ImageNet's statistics."""
    wide = Image.new("RGB", (80, 40), (255, 0, 0))
    pixels = batch([ask("a?")], [wide])["pixel_values"][0]
    border, middle = pixels[:, 2, 32], pixels[:, 32, 32]
    assert border.abs().max() < 0.02, "the mean colour is 0 after normalisation"
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(middle, (torch.tensor([1.0, 0.0, 0.0]) - mean) / std, atol=1e-3, rtol=0)


def _with_maps(config):
    return config.replace(merging=MergingConfig("none", pyramid_levels=()))


def _siglip():
    shape = {"embed_dim": 48, "depth": 2, "num_heads": 2, "img_size": 64}
    seen = BranchConfig("vit_base_patch16_siglip_224", 96, ((0, 0), (1, 1)), options=shape)
    return PIIPConfig((tiny_branch(64, 64), seen), TINY_INTERACTION)


@pytest.mark.parametrize("tower", [tiny_config, rotary_config, _siglip], ids=["triple", "dinov3", "siglip"])
def test_any_tower(tower):
    network = _with_maps(tower())
    settings = PiipLlavaConfig.of(network, text_config(), 4)
    llava = PiipLlavaForConditionalGeneration(settings).eval()
    inputs = PiipLlavaProcessor.of(settings, tokenizer())(
        images=[picture()], text=["<image>a?"], return_tensors="pt"
    )
    assert (inputs["input_ids"] == 4).sum() == (network.image_size // 16) ** 2
    assert answer(llava, inputs).shape == (1, 6)


@pytest.mark.parametrize("name", [name for name in list_models() if "llava" in name])
def test_published_towers_fit_a_language_model(name):
    """Built without memory for their weights, before a Llama of 7B's width."""
    text = transformers.LlamaConfig(num_hidden_layers=1, vocab_size=32064)
    settings = PiipLlavaConfig.of(get_config(name), text, 32000)
    with on_meta():
        llava = PiipLlavaForConditionalGeneration(settings)
        side = settings.vision.network_config().image_size
        features = llava.get_image_features(torch.empty(1, 3, side, side)).pooler_output[0]
    assert features.shape == (settings.image_seq_length, 4096)
    if name.startswith("piip"):
        assert settings.image_seq_length in (20**2, 32**2)


def test_merged_networks_are_refused():
    with pytest.raises(ConfigError, match="set it to 'none'"):
        PiipLlavaConfig.of(tiny_config(), text_config(), 4)


def test_other_language_models():
    text = transformers.Qwen3Config(
        vocab_size=101, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    llava = PiipLlavaForConditionalGeneration(PiipLlavaConfig.of(network_config(), text, 4)).eval()
    assert answer(llava, batch([ask("a?")], [picture()])).shape[0] == 1
