"""The files that are learnt from and asked about: images, LLaVA's conversations, TextVQA's questions."""

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.reader.language import QUESTION
from benchmarks.reader.rendering import TEST_FONTS, TEST_PHOTOS, TRAIN_FONTS, TRAIN_PHOTOS, Style, draw
from benchmarks.reader.settings import SIZES, Settings, Stage
from benchmarks.reader.words import Vocabulary
from piip.files import write_json

PEOPLE = 10
"""Answers of a question in TextVQA's form; all of them say what is written."""
_QUALITY = 95


def make_samples(folder: Path, settings: Settings) -> None:
    """Write images and json files, the same in every run; files that are there already stay as they are.

    ``train_N.json`` are conversations of stage N; ``val_N.json`` are conversations and ``asked_NAME.json``
    questions of sentences, photographs and fonts never trained on; single words are the same as in training.

    Args:
        folder: Where they go.
        settings: How many there are.
    """
    seen = Style(settings.side, TRAIN_PHOTOS, TRAIN_FONTS)
    unseen = Style(settings.side, TEST_PHOTOS, TEST_FONTS)
    for size, em in SIZES.items():
        asked = replace(settings.stages[-1], images=settings.asked, ems=(em, em))
        file = folder / f"asked_{size}.json"
        if not file.exists():
            drawn = _draw_all(file.with_suffix(""), asked, settings.words, unseen)
            write_json(file, {"data": [_question(*item) for item in drawn]}, indent=None)
    for number, stage in enumerate(settings.stages, start=1):
        measured = replace(stage, images=settings.asked)
        for kind, part, style in (("val", measured, unseen), ("train", stage, seen)):
            file = folder / f"{kind}_{number}.json"
            if not file.exists():
                drawn = _draw_all(file.with_suffix(""), part, settings.words, style)
                write_json(file, [_conversation(*item) for item in drawn], indent=None)


def _draw_all(folder: Path, stage: Stage, words: tuple[str, ...], style: Style) -> list[tuple[str, str]]:
    """Save the images of a stage and return the names of the files with what is written on them."""
    random_state = random.Random(folder.name)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for number in range(stage.images):
        count = 2 if stage.pairs and random_state.random() < stage.pairs else 1
        vocabulary = Vocabulary(words, count, count)
        sentence = vocabulary.draw(random_state, held_out=style.photos == TEST_PHOTOS)
        em = round(math.exp(random_state.uniform(*map(math.log, stage.ems))))
        file = f"{folder.name}/{number:05d}.jpg"
        image = draw(sentence, em, style, random_state, stage.spread)
        image.save(folder.parent / file, quality=_QUALITY, subsampling=0)
        drawn.append((file, sentence))
    return drawn


def _conversation(file: str, sentence: str) -> dict[str, Any]:
    said = (("human", f"<image>\n{QUESTION}"), ("gpt", sentence))
    return {
        "id": file,
        "image": file,
        "conversations": [{"from": who, "value": text} for who, text in said],
    }


def _question(file: str, sentence: str) -> dict[str, Any]:
    return {"question_id": file, "image": file, "question": QUESTION, "answers": [sentence] * PEOPLE}
