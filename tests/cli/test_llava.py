"""``piip predict``, ``piip eval`` and ``piip chat`` with a PIIP-LLaVA of random weights."""

import json

import pytest
from PIL import Image

pytest.importorskip("transformers")

from piip.cli import chat, main
from piip.llava import Answerer, Chat
from tests.cli.test_augmented import classes
from tests.data.test_conversations import sample
from tests.data.test_conversations import write as write_samples
from tests.llava.test_questions import POPE, TEXTVQA, write
from tests.llava.tiny import WORDY, save

INSTRUCTION = "Answer the question using a single word or phrase."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("llava"), WORDY)


@pytest.fixture(scope="module")
def answerer(folder):
    return Answerer.load(folder, "cpu")


@pytest.fixture
def images(tmp_path):
    write(tmp_path, POPE)
    return tmp_path


def fails(words, capsys):
    """Run a command line that has to fail and return what it complains about."""
    assert main([*map(str, words)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    return line.removeprefix("piip: error: ")


def test_predict_prints_and_writes_the_answers(folder, answerer, images, capsys):
    out, prompt = images / "out", "What: is it?"
    words = [
        "predict",
        images / "a.png",
        images / "b.png",
        "--model",
        folder,
        "--prompt",
        prompt,
        "--out",
        out,
    ]
    assert main([*map(str, words), "--max_new_tokens", "8", "--device", "cpu"]) == 0
    answer = answerer.answer(images / "a.png", prompt, 8)
    assert capsys.readouterr().out.splitlines() == [
        f"{images / name}: {answer}" for name in ("a.png", "b.png")
    ]
    first, second = json.loads((out / "predictions.json").read_text())["images"]
    expected = {"id": 0, "file_name": str(images / "a.png"), "height": 50, "width": 80, "prompt": prompt}
    assert first == expected | {"answer": answer}
    assert (second["id"], second["file_name"]) == (1, str(images / "b.png"))
    assert [path.name for path in out.iterdir()] == ["predictions.json"]


def test_predict_draws_where_answers_came_from(folder, images, tmp_path, capsys):
    words = [
        "predict",
        images / "a.png",
        images / "a.png",
        "--model",
        folder,
        "--prompt",
        "What?",
        "--explain",
        "true",
    ]
    assert main([*map(str, words), "--max_new_tokens", "4", "--device", "cpu", "--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" -> ")[2] for line in lines] == [
        str(tmp_path / f"a-{number}.png") for number in (0, 1)
    ]
    assert len({(tmp_path / f"a-{number}.png").read_bytes() for number in (0, 1)}) == 1
    with Image.open(tmp_path / "a-0.png") as drawn:
        assert drawn.width > 3 * drawn.height
    assert len(json.loads((tmp_path / "predictions.json").read_text())["images"]) == 2


def test_predict_says_where_there_is_nothing_to_draw(folder, images, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Answerer, "answer", lambda *_: "")
    words = ["predict", images / "a.png", "--model", folder, "--prompt", "?", "--explain", "true"]
    assert main([*map(str, words), "--out", str(tmp_path / "out")]) == 0
    shown = f"{images / 'a.png'}: (no answer, so that there is nothing to draw)"
    assert capsys.readouterr().out.splitlines() == [shown]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["predictions.json"]


def test_predict_leaves_no_half_of_its_drawings(folder, images, tmp_path, capsys):
    (tmp_path / "broken.png").write_bytes(b"no image")
    words = ["predict", images / "a.png", tmp_path / "broken.png", "--model", folder, "--prompt", "What?"]
    complaint = fails(
        [*words, "--explain", "true", "--max_new_tokens", "4", "--out", tmp_path / "out"], capsys
    )
    assert "broken.png" in complaint
    assert not list((tmp_path / "out").glob("*"))


def test_predict_without_what_it_needs(folder, images, tmp_path, capsys):
    words = ["predict", images / "a.png", "--model", folder]
    assert "which answers questions; add one: --prompt" in fails(words, capsys)
    assert "--flip means nothing" in fails([*words, "--prompt", "?", "--flip"], capsys)
    assert "max_new_tokens is 0" in fails([*words, "--prompt", "?", "--max_new_tokens", "0"], capsys)
    classes().save(tmp_path / "model")
    words = ["predict", images / "a.png", "--model", tmp_path / "model", "--prompt", "?"]
    assert "is no PIIP-LLaVA, for which --prompt means nothing" in fails(words, capsys)
    assert "--explain means nothing" in fails([*words[:4], "--explain", "true"], capsys)


def test_eval_in_the_form_of_pope(folder, answerer, images, capsys):
    data, out = images / "questions.jsonl", images / "results" / "pope.json"
    words = ["eval", folder, "--data", data, "--batch_size", "2", "--max_new_tokens", "6", "--out", out]
    assert main([*map(str, words)]) == 0
    shown = capsys.readouterr().out
    words = " ".join(shown.split())
    assert f"on {data} (pope)" in words
    assert "questions 2" in words
    assert "yes_ratio" in shown
    result = json.loads(out.read_text())
    settings = {"instruction": INSTRUCTION, "max_new_tokens": 6, "batch_size": 2}
    assert result == {"data": str(data), "form": "pope"} | settings | {
        "left_out": 0,
        "scores": result["scores"],
    }
    records = json.loads((out.parent / "pope_answers.json").read_text())
    assert [record["question_id"] for record in records] == [5, 2]
    assert records[0]["answer"] == answerer.answer(images / "a.png", f"Is there a cat?\n{INSTRUCTION}", 6)
    assert result["scores"]["accuracy"] == sum(record["score"] for record in records) / 2


def test_eval_leaves_out_what_cannot_be_asked(folder, images, capsys):
    data, out = images / "questions.jsonl", images / "out.json"
    (images / "b.png").write_bytes(b"no image")
    words = ["eval", folder, "--data", data, "--batch_size", "2", "--max_new_tokens", "6", "--out", out]
    assert main([*map(str, words)]) == 0
    assert "warning: 1 of 2 questions are left out of the scores: 2 (Image" in capsys.readouterr().err
    result = json.loads(out.read_text())
    assert (result["left_out"], result["scores"]["questions"]) == (1, 1)
    records = json.loads((images / "out_answers.json").read_text())
    assert ["left_out" in record for record in records] == [False, True]
    (images / "a.png").write_bytes(b"no image")
    assert main([*map(str, words)]) == 2
    assert "None of 2 questions can be asked. Image" in capsys.readouterr().err


def test_eval_of_conversations_leaves_out_what_cannot_be_used(folder, images, capsys):
    good, damaged = (sample("<image>\nWhat?", "A cat.", image=name) for name in ("a.png", "b.png"))
    for name, samples in (("all", [good, damaged, good]), ("good", [good, good])):
        write_samples(images / f"{name}.json", samples)
    (images / "b.png").write_bytes(b"no image")
    words = ["eval", str(folder), "--data", str(images / "all.json")]
    for option, value in (("instruction", ""), ("instruction", "Be brief."), ("max_new_tokens", "3")):
        complaint = fails([*words, f"--{option}", value], capsys)
        assert f"all.json is a file of conversations, for which --{option} means nothing" in complaint
    words = ["eval", str(folder), "--batch_size", "2", "--data"]
    assert main([*words, str(images / "all.json"), "--out", str(images / "1.json")]) == 0
    assert "all.json: of 3 samples seen, 1 left out, as an image cannot be read" in capsys.readouterr().err
    assert main([*words, str(images / "good.json"), "--out", str(images / "2.json")]) == 0
    one, two = (json.loads((images / f"{number}.json").read_text()) for number in (1, 2))
    assert (one["left_out"], two["left_out"]) == (1, 0)
    assert one["scores"] == pytest.approx(two["scores"], rel=1e-5)


def test_eval_in_the_form_of_textvqa_writes_into_the_models_folder(folder, images):
    (images / "elsewhere").mkdir()
    data = images / "elsewhere" / "text.json"
    data.write_text(json.dumps(TEXTVQA))
    words = ["eval", folder, "--data", data, "--images", images, "--instruction", "", "--max_new_tokens", "4"]
    assert main([*map(str, words)]) == 0
    result = json.loads((folder / "eval_text.json").read_text())
    assert result["scores"] == {"accuracy": 0, "exact_match": 0, "questions": 1}
    assert result["instruction"] == ""
    assert len(json.loads((folder / "eval_text_answers.json").read_text())) == 1


def test_eval_without_what_it_needs(folder, images, tmp_path, capsys):
    data = images / "questions.jsonl"
    assert "name a file of questions with --data" in fails(["eval", folder], capsys)
    assert "--split means nothing" in fails(["eval", folder, "--data", data, "--split", "val"], capsys)
    words = ["eval", folder, "--data", data, "--images", images / "x"]
    assert "2 of 2 images are missing" in fails(words, capsys)
    (images / "file").touch()
    words = ["eval", folder, "--data", data, "--out", images / "file" / "a.json"]
    assert "Cannot write" in fails(words, capsys)
    assert not (folder / "eval_questions.json").exists()
    classes().save(tmp_path / "model")
    words = ["eval", tmp_path / "model", "--data", data, "--instruction", "Be brief."]
    assert "for which --instruction means nothing" in fails(words, capsys)


def talk(monkeypatch, lines, *words):
    """Run ``piip chat`` on lines typed; an exception is raised in place of a line."""
    typed = iter([*lines, EOFError()])

    def read(prompt):
        line = next(typed)
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr("builtins.input", read)
    assert main(["chat", *map(str, words), "--max_new_tokens", "12", "--device", "cpu"]) == 0


def test_chat_answers_and_remembers(folder, answerer, images, monkeypatch, capsys):
    path = images / "a.png"
    lines = [
        f"/image {path}",
        "what?",
        "  ",
        "and now?",
        "/history",
        "/reset",
        "/history",
        "hi",
        "/quit",
        "never",
    ]
    talk(monkeypatch, lines, folder)
    chat = Chat(answerer, 12)
    chat.add_image(path)
    answers = [chat.ask("what?"), chat.ask("and now?")]
    chat.reset()
    shown = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert [line.strip() for line in shown[1:]] == [
        f"{path} is shown with your next question.",
        *answers,
        "user: [image] what?",
        f"assistant: {answers[0]}",
        "user: and now?",
        f"assistant: {answers[1]}",
        "Everything is forgotten.",
        chat.ask("hi"),
        "",
    ]


def test_chat_begins_with_an_image(folder, answerer, images, monkeypatch, capsys):
    talk(monkeypatch, ["what?"], folder, "--image", images / "a.png")
    assert answerer.answer(images / "a.png", "what?", 12) in capsys.readouterr().out
    assert "nowhere.png does not exist" in fails(["chat", folder, "--image", "nowhere.png"], capsys)
    assert "holds no PIIP-LLaVA" in fails(["chat", images], capsys)


def test_mistakes_do_not_end_the_chat(folder, monkeypatch, capsys):
    talk(monkeypatch, ["/image", "/image nowhere.png", "/imag a.png", "what is <image>?", "/help"], folder)
    shown = capsys.readouterr().out
    for part in (
        "/image PATH.",
        "nowhere.png does not exist",
        "Did you mean '/image'?",
        "contains '<image>'",
    ):
        assert part in shown
    assert chat.HELP in shown


def test_ctrl_c_stops_the_answer_and_then_the_chat(folder, monkeypatch, capsys):
    ask, said = Chat.ask, []

    def stopped(self, prompt, stream=None):
        def stop(piece):
            stream(piece)
            said.append(piece)
            raise KeyboardInterrupt

        return ask(self, prompt, stop if prompt == "what?" else stream)

    monkeypatch.setattr(Chat, "ask", stopped)
    talk(monkeypatch, ["what?", "/history", KeyboardInterrupt(), "never"], folder)
    shown = capsys.readouterr().out.splitlines()
    assert shown[1] == f"{said[0]} ... stopped; Ctrl-C once more leaves"
    assert shown[2:4] == ["user: what?", f"assistant: {said[0].strip()}"]
    assert "never" not in shown
