"""Where an answer came from."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("transformers")

from piip.errors import DataError
from piip.llava import Answerer, PiipLlavaConfig, PiipLlavaForConditionalGeneration, PiipLlavaProcessor, Turn
from piip.llava.explaining import explain
from tests.helpers import tiny_branch
from tests.llava.test_dataset import subwords
from tests.llava.test_model import ask, batch, picture
from tests.llava.tiny import SIDE, model, network_config, processor, text_config


@pytest.fixture(scope="module")
def found():
    return explain(model(), processor(), picture(), ask("a?"), " a cat")


def test_maps_cover_the_grid_and_sum_to_one(found):
    for grid in (found.attention, *found.branches):
        assert grid.shape == (4, 4)
        assert grid.min() >= 0
        assert grid.sum() == pytest.approx(1, abs=1e-5)
    assert len(found.branches) == len(found.shares) == 2
    assert sum(found.shares) == pytest.approx(1)
    assert found.image.shape == (SIDE, SIDE, 3)


def test_attention_is_that_of_the_whole_model(found):
    """Asked of transformers by its own names, with the image read as ever."""
    llava = model()
    llava.model.language_model.set_attn_implementation("eager")
    inputs = batch([ask("a?") + " a cat"], [picture()])
    with torch.no_grad():
        layers = llava(**inputs, output_attentions=True).attentions
    image = (inputs["input_ids"][0] == 4).nonzero()[:, 0]
    last = inputs["input_ids"].shape[1]
    rows = range(last - 7, last - 1)
    mean = torch.stack([layer[0, :, row, image].mean(0) for layer in layers for row in rows]).mean(0)
    torch.testing.assert_close(torch.from_numpy(found.attention).flatten(), mean / mean.sum())


def test_a_branch_that_adds_nothing_has_no_share():
    llava = model()
    projector = llava.model.multi_modal_projector
    torch.nn.init.zeros_(projector.fc2[1].weight)
    torch.nn.init.zeros_(projector.fc2[1].bias)
    found = explain(llava, processor(), picture(), ask("a?"), "a cat")
    assert found.shares == (1.0, 0.0)


@pytest.mark.filterwarnings("error")
def test_a_single_branch_has_all():
    single = dataclasses.replace(
        network_config(), branches=(tiny_branch(64, SIDE, interaction_indexes=((0, 1),)),)
    )
    config = PiipLlavaConfig.of(single, text_config(), 4)
    torch.manual_seed(0)
    found = explain(
        PiipLlavaForConditionalGeneration(config).eval(), processor(), picture(), ask("a?"), "a cat"
    )
    assert found.shares == (1.0,)


def test_the_model_stays_as_it_was(found):
    llava = model()
    before = llava.model.language_model.config._attn_implementation
    explain(llava, processor(), picture(), ask("a?"), "a cat")
    assert llava.model.language_model.config._attn_implementation == before
    assert all(p.grad is None for p in llava.parameters())


def test_it_is_drawn(found, tmp_path):
    found.plot(tmp_path / "found.png")
    with Image.open(tmp_path / "found.png") as drawn:
        width, height = drawn.size
    assert width > 3 * height


def test_a_long_answer_stays_inside_the_picture(found, tmp_path):
    dataclasses.replace(found, answer="A cat and a dog. \N{REPLACEMENT CHARACTER}" * 90).plot(
        tmp_path / "found.png"
    )
    with Image.open(tmp_path / "found.png") as drawn:
        lines = np.asarray(drawn.convert("L"))[:60]
    assert lines.min() < 128
    assert lines[:, [*range(10), *range(-10, 0)]].min() == 255


@pytest.mark.parametrize(("images", "answer"), [(0, "a"), (2, "a"), (1, "")])
def test_one_image_and_one_answer(images, answer):
    with pytest.raises(DataError, match="exactly one image"):
        explain(model(), processor(), picture(), ask("a?", images=images), answer)


def test_a_question_is_put_into_the_form_of_a_conversation(found):
    answerer = Answerer(model(), processor())
    again = answerer.explain(picture(), "a?", "a cat")
    assert again.answer == found.answer == "a cat"
    np.testing.assert_allclose(again.attention, found.attention, rtol=1e-5)
    answer = answerer.answer(picture(), "a?", 3)
    assert answerer.explain(picture(), "a?", max_new_tokens=3).answer == answer


@pytest.fixture(scope="module")
def in_subwords():
    tokenizer = subwords("bytes")
    text = text_config()
    text.vocab_size = 512
    settings = PiipLlavaConfig.of(network_config(), text, tokenizer.convert_tokens_to_ids("<image>"))
    torch.manual_seed(0)
    llava = PiipLlavaForConditionalGeneration(settings)
    return Answerer(llava, PiipLlavaProcessor.of(settings, tokenizer))


def read(answerer):
    """Return a list that gets what the language model is shown from now on."""
    seen = []
    embedding = answerer.model.get_input_embeddings()
    embedding.register_forward_pre_hook(lambda _, given: seen.append(given[0][0].tolist()))
    return seen


def test_what_was_said_is_explained_token_by_token(in_subwords, monkeypatch):
    """A model of random weights says what no tokenizer would make of its words, here an image token too."""
    tokenizer = in_subwords.processor.tokenizer
    said = tokenizer.encode(" yes", add_special_tokens=False) + tokenizer.encode(
        "y<image>e", add_special_tokens=False
    )
    assert tokenizer.encode(tokenizer.decode(said, skip_special_tokens=True)) != said
    end = tokenizer.eos_token_id
    monkeypatch.setattr(
        in_subwords.model,
        "generate",
        lambda input_ids, **_: torch.cat([input_ids, torch.tensor([[*said, end]])], 1),
    )
    seen = read(in_subwords)
    found = in_subwords.explain(picture(), "is it red?")
    assert seen[-1][-len(said) :] == said
    assert found.answer == "yesye"


def test_a_given_answer_is_read_as_in_training(in_subwords):
    seen = read(in_subwords)
    in_subwords.explain(picture(), "is it red?", " yes ")
    tokenizer = in_subwords.processor.tokenizer
    text = in_subwords.render([Turn("user", "is it red?", (picture(),))])
    expected = in_subwords.processor(images=[picture()], text=[text + " yes"], return_tensors="pt")
    assert seen[-1] == expected["input_ids"][0].tolist()
    assert tokenizer.decode(seen[-1]).endswith("ASSISTANT: yes")
    with pytest.raises(DataError, match="answer that is not empty"):
        in_subwords.explain(picture(), "is it red?", " ")
