"""Files of questions, and what a model of random weights makes of them."""

import dataclasses
import json

import pytest

pytest.importorskip("transformers")

from piip.errors import ConfigError, DataError
from piip.llava import Answerer
from piip.llava.questions import Question, answer_questions, read_questions, record_of, score
from tests.llava.test_model import picture
from tests.llava.tiny import model, processor

POPE = [
    {"question_id": 5, "image": "a.png", "text": "Is there a cat?", "label": "yes"},
    {"image": "b.png", "text": "Is there a dog in this image?", "label": "No"},
]
TEN = ["cat"] * 3 + [{"answer": "a dog"}] * 7
TEXTVQA = {"data": [{"question_id": "x", "image_id": "c", "question": "what is written?", "answers": TEN}]}


def write(folder, content, name="questions.jsonl"):
    for image in ("a.png", "b.png", "c.jpg"):
        picture().save(folder / image)
    lines = "\n".join(json.dumps(line) for line in content) if name.endswith("l") else json.dumps(content)
    (folder / name).write_text(lines + "\n\n")
    return folder / name


def test_the_form_of_pope(tmp_path):
    form, questions = read_questions(write(tmp_path, POPE))
    assert form == "pope"
    assert questions == [
        Question(5, tmp_path / "a.png", "Is there a cat?", True),
        Question(2, tmp_path / "b.png", "Is there a dog in this image?", False),
    ]


def test_the_form_of_textvqa(tmp_path):
    path = write(tmp_path, TEXTVQA, "questions.json")
    form, [question] = read_questions(path)
    answers = ("cat",) * 3 + ("a dog",) * 7
    assert (form, question) == ("textvqa", Question("x", tmp_path / "c.jpg", "what is written?", answers))
    assert read_questions(path, str(tmp_path)) == (form, [question])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "maybe"}, r"Question 2 of .*questions\.jsonl is incomplete; it needs 'image'.*\(POPE\)"),
        ({"text": None}, r"Question 2 of .* \(None is no text\)"),
        ({"image": "x.png"}, r"x\.png, which does not exist \(1 of 2 images are missing\).*--images"),
        ({"image": 3}, "Question 2"),
    ],
)
def test_questions_that_are_incomplete(change, message, tmp_path):
    with pytest.raises(DataError, match=message):
        read_questions(write(tmp_path, [POPE[0], POPE[1] | change]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"data": []}, "holds no questions"),
        ({"data": ["what?"]}, "Question 1"),
        ([{"image": "a.png", "question": "?", "answers": ["x"] * 3}], "fewer than 4 answers"),
        ([{"image": "a.png", "question": "?", "answers": "a cat"}], "fewer than 4 answers"),
        ([{"image": "a.png", "question": "?"}], "ten as a rule"),
        ({"data": 7}, "holds no questions"),
        (7, "Question 1"),
    ],
)
def test_files_that_are_no_questions(content, message, tmp_path):
    with pytest.raises(DataError, match=message):
        read_questions(write(tmp_path, content, "questions.json"))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.jsonl cannot be read, as there is no such file; check"):
        read_questions(tmp_path / "nowhere.jsonl")
    (tmp_path / "a.jsonl").write_text('{"image": 1}\n{"image"')
    with pytest.raises(DataError, match=r"a\.jsonl is not a readable json list \(behind byte 13"):
        read_questions(tmp_path / "a.jsonl")
    (tmp_path / "empty.json").touch()
    with pytest.raises(DataError, match=r"empty\.json holds no questions"):
        read_questions(tmp_path / "empty.json")


@pytest.mark.parametrize("name", ["coco_pope_random.json", "pope.jsonl"])
@pytest.mark.parametrize("count", [1, 2])
def test_official_files_of_pope(tmp_path, name, count):
    """One object a line under .json, line separators of Unicode within a text, and a mark of the byte order."""
    expected = read_questions(write(tmp_path, POPE))[1][:count]
    odd = "Is there\u2028a\u0085cat?"
    lines = [json.dumps(line | {"text": odd}, ensure_ascii=False) for line in POPE[:count]]
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    form, questions = read_questions(tmp_path / name)
    assert (form, questions) == ("pope", [dataclasses.replace(question, text=odd) for question in expected])


def test_batches_change_no_answer_and_the_instruction_is_seen(tmp_path):
    answerer = Answerer(model(), processor())
    _, questions = read_questions(write(tmp_path, POPE * 2))
    one = list(answer_questions(answerer, questions, "Answer.", 8))
    assert one == list(answer_questions(answerer, questions, "Answer.", 8, batch_size=3))
    assert one[0] == answerer.answer(tmp_path / "a.png", "Is there a cat?\nAnswer.", 8)
    with pytest.raises(ConfigError, match="batch_size is 0"):
        next(answer_questions(answerer, questions, batch_size=0))
    with pytest.raises(ConfigError, match="max_new_tokens is 0"):
        next(answer_questions(answerer, questions, max_new_tokens=0))


@pytest.mark.parametrize("batch_size", [1, 3])
def test_what_cannot_be_asked_is_left_out(tmp_path, batch_size):
    long = POPE[0] | {"question_id": "long", "text": "Is there? " * 200}
    _, questions = read_questions(write(tmp_path, [*POPE, long, POPE[0]]))
    (tmp_path / "b.png").write_bytes(b"no image")
    answerer = Answerer(model(), processor())
    first, damaged, endless, last = answer_questions(answerer, questions, "", 8, batch_size)
    assert first == last == answerer.answer(tmp_path / "a.png", "Is there a cat?", 8)
    assert "b.png cannot be read" in damaged.reason
    assert "the language model reads 1024" in endless.reason
    answers = [first, damaged, endless, last]
    words = (
        r"2 of 4 questions are left out of the scores: 2 \(Image .*b\.png .*\), long \(The conv.*tokens\)\.$"
    )
    with pytest.warns(UserWarning, match=words):
        assert score("pope", questions, answers) == score("pope", questions[::3], [first, last])
    with pytest.warns(UserWarning, match=r"4 of 5 .* and 1 more\.$"):
        score("pope", questions[:1] + questions[1:2] * 4, answers[:1] + answers[1:2] * 4)
    with pytest.raises(DataError, match=r"None of 2 questions can be asked\. Image .*b\.png cannot be read"):
        score("pope", questions[1:3], answers[1:3])
    left_out = record_of(questions[1], damaged)
    assert left_out["left_out"] == damaged.reason
    assert not {"answer", "score"} & left_out.keys()


def test_scores_and_records(tmp_path):
    form, questions = read_questions(write(tmp_path, POPE))
    assert score(form, questions, ["yes", "yes"])["accuracy"] == 0.5
    assert [record_of(question, "yes")["score"] for question in questions] == [1, 0]
    form, [question] = read_questions(write(tmp_path, TEXTVQA, "questions.json"))
    assert score(form, [question], ["the cat"])["accuracy"] == pytest.approx(0.9)
    expected = {"question_id": "x", "image": str(tmp_path / "c.jpg"), "question": "what is written?"}
    assert record_of(question, "Dog") == expected | {"answer": "Dog", "score": 1.0}


def test_questions_about_real_pictures(shared):
    data = shared / "data" / "coco_tiny"
    form, questions = read_questions(data / "vqa" / "pope_val.jsonl", data)
    assert (form, len(questions)) == ("pope", 212)
    assert sum(question.truth is True for question in questions) == 105
    answers = list(
        answer_questions(Answerer(model(), processor()), questions[:4], max_new_tokens=4, batch_size=2)
    )
    assert len(answers) == 4
    scores = score(form, questions[:4], answers)
    assert (
        scores["accuracy"]
        == sum(record_of(q, a)["score"] for q, a in zip(questions, answers, strict=False)) / 4
    )
