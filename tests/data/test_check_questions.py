"""``piip check-data`` of questions about images."""

import json

import pytest

from piip.cli import main
from piip.data.check_conversations import check_multimodal
from tests.data.builders import write_images
from tests.data.test_conversations import found, sample, write

POPE = [{"question_id": k, "image": "a.png", "text": "Is it a cat?", "label": "yes"} for k in (7, 8)]
TEXTVQA = {"image_id": "b", "question": "What?", "answers": ["a cat"] * 9 + ["cat"]}


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path / "images", {"a.png": (20, 30), "b.jpg": (30, 20)})
    write(tmp_path / "train.json", [sample("<image>", "b", image="a.png")])
    return tmp_path


def write_lines(path, records):
    path.write_text("\n".join(map(json.dumps, records)))


def test_good_questions_are_counted(folder):
    write_lines(folder / "val.jsonl", POPE)
    write(folder / "more/text.json", {"data": [TEXTVQA]})
    (folder / "instances.json").write_text('{"images": [], "annotations": []}')
    report = check_multimodal(folder)
    assert not report.problems
    assert list(report.splits) == ["train", "more/text", "val"]
    assert "val: 2 questions (pope) about 1 images" in report.lines()
    assert report.splits["more/text"].form == "textvqa"
    assert list(check_multimodal(folder / "val.jsonl").splits) == ["val"]


def test_bad_questions_are_found(folder, capsys):
    (folder / "images/broken.png").write_bytes(b"no image")
    bad = [
        *POPE,
        POPE[0] | {"label": "maybe"},
        POPE[0] | {"text": " "},
        POPE[0] | {"image": "gone.png"},
        POPE[0] | {"image": "broken.png"},
    ]
    write_lines(folder / "val.jsonl", bad)
    write(folder / "text.json", [TEXTVQA | {"answers": [""] * 10}])
    problems = found(check_multimodal(folder))
    assert len(problems) == 4
    [unusable] = problems["error", "questions that cannot be asked"].where
    assert unusable.startswith("question 3 is incomplete; it needs 'image'")
    images = problems["error", "missing or unreadable images"]
    assert (images.split, images.count) == ("val", 2)
    assert problems["warning", "empty questions"].where == ("question 7",)
    assert problems["warning", "empty answers"].split == "text"
    (folder / "text.json").unlink()
    assert main(["check-data", str(folder / "val.jsonl"), "--task", "multimodal"]) == 2
    assert "question 3 is incomplete" in capsys.readouterr().out


def test_a_file_that_is_cut_off(folder):
    (folder / "val.json").write_text(json.dumps(POPE)[:-1])
    assert set(found(check_multimodal(folder))) == {("error", "files that cannot be used")}
