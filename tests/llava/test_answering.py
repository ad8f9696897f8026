"""Asking a tiny PIIP-LLaVA of random weights: alone, in batches, in pieces, turn after turn."""

import json

import jinja2
import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("transformers")

import piip
from piip.errors import CheckpointError, ConfigError, DataError
from piip.llava import Answerer, Chat, Turn
from piip.llava.answering import _Streamer
from tests.llava.test_model import answer as generate
from tests.llava.test_model import ask, batch, picture
from tests.llava.tiny import WORDY, model, processor, save, tokenizer

QUESTIONS = ("what is it?", "how many cats are there in this picture?", "hi")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def answerer(folder):
    return Answerer.load(folder, "cpu")


@pytest.fixture(scope="module")
def wordy():
    return Answerer(model(WORDY), processor())


def test_a_loaded_folder_answers_as_the_model_does(answerer):
    expected = generate(model(), batch([ask("a?")], [picture()]))[0]
    expected = tokenizer().decode(expected, skip_special_tokens=True).strip()
    assert expected
    assert answerer.answer(picture(), "a?", max_new_tokens=6) == expected


def test_images_of_every_kind(answerer, tmp_path):
    picture().save(tmp_path / "a.png")
    values = np.asarray(picture())
    kinds = (
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        values,
        torch.from_numpy(values.copy()).movedim(-1, 0),
    )
    answers = {answerer.answer(kind, "a?", max_new_tokens=6) for kind in (picture(), *kinds)}
    assert len(answers) == 1


def test_several_images_are_seen_in_order(answerer):
    turns = [[Turn("user", "a?", images)] for images in ((picture(0), picture(1)), (picture(1), picture(0)))]
    inputs = [answerer._inputs([turn], 6) for turn in turns]
    assert inputs[0]["pixel_values"].shape[0] == 2
    assert torch.equal(inputs[0]["pixel_values"], inputs[1]["pixel_values"].flip(0))
    assert answerer.answer([picture(0), picture(1)], "a?", 6) == answerer.answer_all(turns, 6)[0]


def test_a_batch_answers_as_each_alone(answerer):
    shown = ((picture(0),), (picture(1, (90, 30)), picture(2)), ())
    conversations = [[Turn("user", text, images)] for text, images in zip(QUESTIONS, shown, strict=True)]
    together = answerer.answer_all(conversations, 12)
    assert together == [answerer.answer_all([conversation], 12)[0] for conversation in conversations]
    assert len(set(together)) > 1, "answers that are all alike would prove nothing"


def test_a_tokenizer_that_pads_on_the_right_without_a_token_is_put_right():
    other = processor()
    other.tokenizer.padding_side, other.tokenizer.pad_token = "right", None
    answerer = Answerer(model(), other)
    expected = Answerer(model(), processor())
    turns = [[Turn("user", text, (picture(),))] for text in QUESTIONS[:2]]
    assert answerer.answer_all(turns, 6) == expected.answer_all(turns, 6)


def test_pieces_of_a_stream_are_the_answer(wordy):
    pieces = []
    answer = wordy.answer(picture(), QUESTIONS[0], 40, stream=pieces.append)
    assert answer == wordy.answer(picture(), QUESTIONS[0], 40) == "".join(pieces).strip()
    assert len(pieces) > 1
    with pytest.raises(ConfigError, match="Only one answer"):
        wordy.answer_all([[Turn("user", "a")]] * 2, 6, stream=pieces.append)


def test_a_chat_remembers(answerer):
    chat = Chat(answerer, 6)
    chat.add_image(picture(0))
    answers = [chat.ask(QUESTIONS[0]), chat.ask(QUESTIONS[1])]
    assert [turn.role for turn in chat.turns] == ["user", "assistant"] * 2
    assert [len(turn.images) for turn in chat.turns] == [1, 0, 0, 0]
    asked = [*chat.turns, Turn("user", "and?")]
    assert answerer.render(asked) == ask(*QUESTIONS[:2], "and?", answers=answers)
    expected = generate(model(), batch([ask(*QUESTIONS[:2], answers=answers[:1])], [picture(0)]))[0]
    assert answers[1] == tokenizer().decode(expected, skip_special_tokens=True).strip()

    chat.reset()
    assert chat.turns == []
    assert chat.ask("hi") == answerer.answer((), "hi", 6)


def test_a_stopped_answer_is_kept_as_far_as_it_came(wordy):
    chat, whole = Chat(wordy, 40), wordy.answer(picture(), QUESTIONS[0], 40)
    chat.add_image(picture())

    def stop(piece):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        chat.ask(QUESTIONS[0], stream=stop)
    assert len(chat.turns) == 2
    assert whole.startswith(chat.turns[1].text)
    assert chat.turns[1].text != whole


def test_what_cannot_be_asked_changes_nothing(answerer, tmp_path):
    chat = Chat(answerer, 6)
    with pytest.raises(DataError, match=r"a\.png does not exist"):
        chat.add_image(tmp_path / "a.png")
    chat.add_image(picture())
    with pytest.raises(DataError, match="contains '<image>'"):
        chat.ask("what is in <image>?")
    with pytest.raises(ConfigError, match="reads 1024; show fewer images"):
        chat.ask("a" * 1000)
    assert chat.turns == []
    chat.ask("a?")
    assert len(chat.turns[0].images) == 1, "the image still waited for its question"
    with pytest.raises(DataError, match="RGB array"):
        answerer.answer(np.zeros((4, 4), np.uint8), "a?")
    with pytest.raises(DataError, match="got NoneType"):
        answerer.answer(None, "a?")


def test_folders_that_hold_no_llava(tmp_path):
    with pytest.raises(CheckpointError, match="no model folder"):
        Answerer.load(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="holds no PIIP-LLaVA"):
        Answerer.load(tmp_path)


def test_folders_that_are_not_whole(folder, tmp_path):
    model().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"no processor.*processor\.save_pretrained"):
        Answerer.load(tmp_path, "cpu")
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"missing tensors, such as .*layers\.2"):
        Answerer.load(tmp_path, "cpu")
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        Answerer.load(tmp_path, "cpu")
    with pytest.raises(ConfigError, match="'nowhere' is not there"):
        Answerer.load(folder, "nowhere")


def test_predictors_send_to_the_answerer(folder):
    with pytest.raises(CheckpointError, match="holds a PIIP-LLaVA"):
        piip.load(folder)


def test_pictures_are_turned_as_cameras_say(answerer, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture().save(tmp_path / "turned.png", exif=exif)
    upright = picture().transpose(Image.Transpose.ROTATE_270)
    turns = [
        [Turn("user", "a?", piip.llava.answering.as_pictures(kind))]
        for kind in (tmp_path / "turned.png", upright)
    ]
    pixels = [answerer._inputs([turn], 6)["pixel_values"] for turn in turns]
    assert torch.equal(*pixels)


def test_answers_end_before_given_texts(answerer):
    turns = [[Turn("user", text, (picture(number),))] for number, text in enumerate(QUESTIONS[:2])]
    whole = answerer.answer_all(turns, 12)
    ends = (whole[0][5], whole[1][3:5])
    cut = answerer.answer_all(turns, 12, stop=ends)
    assert cut == [min((text.partition(end)[0] for end in ends), key=len).strip() for text in whole]
    assert all(len(short) < len(text) for short, text in zip(cut, whole, strict=True))
    assert answerer.answer_all(turns, 12, stop=["never said"]) == whole


def test_streams_end_before_given_texts(wordy):
    turns = [[Turn("user", QUESTIONS[0], (picture(),))]]
    [whole] = wordy.answer_all(turns, 40)
    for ends in (whole[20], whole[9:14], whole[3:30], whole[-1] + "never said", whole):
        pieces = []
        [answer] = wordy.answer_all(turns, 40, stream=pieces.append, stop=[ends])
        assert "".join(pieces).strip() == answer == whole.partition(ends)[0].strip()
        assert all(pieces)


def test_streams_keep_back_no_more_than_may_end_them():
    pieces = []
    streamer = _Streamer(tokenizer(), pieces.append, ["bcd", "xy"])
    for text in ("ab", "bc", "x", "d bc", "d f"):
        streamer.on_finalized_text(text)
    assert pieces == ["a", "b", "bc", "xd "]
    streamer.on_finalized_text("", stream_end=True)
    assert pieces == ["a", "b", "bc", "xd "]


USER = Turn("user", "a?")


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([], "has no turn; end it with a turn of the user"),
        ([USER, Turn("assistant", "b")], "ends with a turn of the assistant"),
        ([Turn("human", "a"), USER], "from 'human'; make it one of user, assistant, system"),
        ([Turn("user", None)], "is of type NoneType"),
        ([Turn("user", "<image> and <image>", (picture(),))], "contains '<image>'"),
        ([Turn("user", "<image>", (picture(),) * 2)], "contains '<image>'"),
    ],
)
def test_what_is_no_conversation(answerer, turns, message):
    with pytest.raises(DataError, match=message):
        answerer.answer_all([turns], 6)
    with pytest.raises(DataError, match=message):
        answerer.losses([turns], ["b"])


@pytest.mark.parametrize("length", ["8", None, 1.5, 0, -1])
def test_lengths_that_are_none(answerer, length):
    with pytest.raises(ConfigError, match="give a whole number above 0"):
        answerer.answer_all([[USER]], length)
    with pytest.raises(ConfigError, match="give a whole number above 0"):
        answerer.explain(picture(), "a?", max_new_tokens=length)


def test_nobody_asks_nothing(answerer):
    assert answerer.answer_all([]) == []
    assert answerer.losses([], []) == []


def test_losses_of_given_answers(answerer):
    """The definition: cross entropy of the answer's tokens after the prompt, each conversation alone."""
    shown = ((picture(0),), (picture(1, (90, 30)), picture(2)), ())
    conversations = [[Turn("user", text, images)] for text, images in zip(QUESTIONS, shown, strict=True)]
    answers = [" a cat", " 3", " hello"]
    found = answerer.losses(conversations, answers)
    for turns, answer, (loss, _) in zip(conversations, answers, found, strict=True):
        images = list(turns[0].images) or None
        inputs = batch([answerer.render(turns) + answer], images)
        labels = inputs["input_ids"].clone()
        labels[:, : -len(answer)] = -100
        with torch.no_grad():
            expected = answerer.model(**inputs, labels=labels).loss
        assert loss == pytest.approx(float(expected), abs=1e-5)
    with pytest.raises(DataError, match="answer is empty"):
        answerer.losses(conversations[:1], [""])


def test_the_likeliest_answer_is_known_as_such(answerer):
    turns = [Turn("user", QUESTIONS[0], (picture(),))]
    inputs = answerer._inputs([turns], 6)
    said = generate(answerer.model, inputs)[0]
    likeliest = tokenizer().decode(said)
    other = likeliest[:-1] + ("a" if likeliest[-1] != "a" else "b")
    (_, first), (_, second) = answerer.losses([turns, turns], [likeliest, other])
    assert (first, second) == (True, False)


def test_the_system_speaks_first(answerer):
    question = Turn("user", "a?")
    assert answerer.render([question]).startswith("A chat between a curious user")
    assert answerer.render([Turn("system", "Be brief."), question]) == "Be brief. USER: a? ASSISTANT:"
    plain = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a?"}]
    template = answerer.processor.apply_chat_template
    assert template(plain, add_generation_prompt=True) == "Be brief. USER: a? ASSISTANT:"
    with pytest.raises(DataError, match="only be the first"):
        answerer.render([question, Turn("system", "Be brief.")])
    with pytest.raises(jinja2.TemplateError, match="only be the first"):
        template(plain[::-1])
