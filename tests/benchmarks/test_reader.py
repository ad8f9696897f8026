import json
import random

import numpy as np
import pytest

pytest.importorskip("transformers")
pytest.importorskip("skimage")

from benchmarks.reader import rendering, samples
from benchmarks.reader.__main__ import main
from benchmarks.reader.language import CHAT_TEMPLATE, QUESTION, language_config, make_tokenizer
from benchmarks.reader.rendering import TEST_FONTS, TEST_PHOTOS, TRAIN_FONTS, TRAIN_PHOTOS, Style, draw
from benchmarks.reader.report import best_constant
from benchmarks.reader.settings import CONTENDERS, QUICK, SIZES, WHOLE
from benchmarks.reader.towers import costs
from benchmarks.reader.words import WORDS, Vocabulary, is_held_out
from piip.data.conversations import ConversationFile
from piip.llava.questions import read_questions
from piip.llava.scoring import normalize


def test_words_are_scored_as_they_are_written():
    assert len(set(WORDS)) == len(WORDS)
    assert [normalize(word) for word in WORDS] == list(WORDS)


def test_sentences_of_training_and_questions_differ():
    state = random.Random(0)
    trained = {Vocabulary().draw(state, held_out=False) for _ in range(400)}
    asked = {Vocabulary().draw(state, held_out=True) for _ in range(400)}
    assert all(is_held_out(text) for text in asked if " " in text)
    assert all(" " not in text for text in trained & asked)
    assert trained & asked  # single words


def test_photographs_and_fonts_of_training_and_questions_differ():
    assert not set(TRAIN_PHOTOS) & set(TEST_PHOTOS)
    assert not set(TRAIN_FONTS) & set(TEST_FONTS)


@pytest.mark.parametrize("em", SIZES.values())
def test_a_sentence_lies_within_its_image_and_is_brighter_than_what_is_behind_it(em):
    style = Style(WHOLE.side, TRAIN_PHOTOS, TRAIN_FONTS)
    for seed in range(5):
        drawn = (
            draw("horse park", em, style, random.Random(seed)),
            rendering._background(style, random.Random(seed)),
        )
        image, empty = (np.asarray(picture.convert("L"), int) for picture in drawn)
        rows, columns = np.nonzero(np.abs(image - empty) > 40)
        assert rows.size > 10
        assert min(rows.min(), columns.min()) > 0
        assert max(rows.max(), columns.max()) < WHOLE.side - 1
        assert image[rows, columns].mean() > empty[rows, columns].mean()


def test_samples_are_the_same_in_every_run(tmp_path):
    for name in ("a", "b"):
        samples.make_samples(tmp_path / name, QUICK)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.j*"))
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)
    conversations = ConversationFile(tmp_path / "a" / "train_2.json")
    assert len(conversations) == QUICK.stages[1].images
    form, questions = read_questions(tmp_path / "a" / "asked_small.json")
    assert form == "textvqa"
    assert len(questions[0].truth) == 10
    assert best_constant(tmp_path / "a" / "asked_small.json") >= 1 / QUICK.asked


def test_the_tokenizer_splits_into_characters_and_puts_them_together_again():
    tokenizer = make_tokenizer()
    tokens = tokenizer.encode(f"{QUESTION}\n", add_special_tokens=False)
    assert len(tokens) == len(QUESTION) + 1
    assert tokenizer.decode(tokens) == f"{QUESTION}\n"
    assert tokenizer.chat_template == CHAT_TEMPLATE


def test_towers_cost_the_same():
    text = language_config(len(make_tokenizer()), WHOLE.width, WHOLE.layers)
    macs = [costs(name, WHOLE, text)["macs"] for name in CONTENDERS]
    assert max(macs) < 1.01 * min(macs)


def test_everything_runs_in_one_command_and_again(tmp_path):
    main(["--quick", "--out", str(tmp_path)])
    page = (tmp_path / "reader.md").read_text()
    assert all(name in page for name in QUICK.contenders)
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["contenders"]["two branches"]["accuracy"]) == set(SIZES)
    assert (tmp_path / "images" / "reader_examples.png").exists()
    written = (tmp_path / "two_branches_0_stage_2" / "results.json").stat().st_mtime_ns
    main(["--quick", "--out", str(tmp_path)])
    assert (tmp_path / "two_branches_0_stage_2" / "results.json").stat().st_mtime_ns == written
