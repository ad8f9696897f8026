"""Conversations in files: reading them lean, refusing what is none, checking them."""

import json
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import piip.data.json_stream
from piip.cli import main
from piip.data.check_conversations import check_multimodal
from piip.data.conversation_layout import find_conversations
from piip.data.conversations import ConversationFile, Turn, parse_conversation
from piip.data.json_stream import stream_entries
from piip.errors import DataError
from tests.data.builders import write_images


def sample(*texts, name="a", image=None):
    """Return a sample whose turns alternate, beginning with the question."""
    turns = [{"from": ("human", "gpt")[k % 2], "value": text} for k, text in enumerate(texts)]
    return {"id": name, "conversations": turns} | ({} if image is None else {"image": image})


GOOD = [
    sample("<image>\nWhat is it?", "A cat.", "And here?", "", name="x1", image="a.png"),
    sample("Is <image> as <image>?", "Yes, überall.", name=7, image=["a.png", "b.png"]),
    sample("How are you?", "Well.", name="x3"),
]


def write(path, samples):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(samples, ensure_ascii=False), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path):
    write_images(tmp_path / "images", {"a.png": (20, 30), "b.png": (30, 20)})
    write(tmp_path / "talk.json", GOOD)
    return tmp_path


def test_samples_are_read_as_written(folder):
    file = ConversationFile(folder / "talk.json")
    assert len(file) == 3
    assert file[0].turns[0] == Turn("user", "<image>\nWhat is it?")
    assert file[1].images == ("a.png", "b.png")
    assert [file[k].name for k in range(3)] == ["x1", "7", "x3"]
    assert file.words.tolist() == [7, 5, 4]
    assert file.image_counts.tolist() == [1, 2, 0]
    assert file.folder == folder / "images"
    assert pickle.loads(pickle.dumps(file))[2] == file[2]
    with pytest.raises(IndexError):
        file[3]


def test_lines_of_json_are_read_too(folder):
    lines = folder / "talk.jsonl"
    lines.write_text("\ufeff" + "\n\n".join(json.dumps(one) for one in GOOD) + "\n", encoding="utf-8")
    file, same = ConversationFile(lines), ConversationFile(folder / "talk.json")
    assert [file[k] for k in range(3)] == [same[k] for k in range(3)]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda v: st.lists(v) | st.dictionaries(st.text(), v),
)


@settings(max_examples=40)
@given(st.lists(VALUES, max_size=6), st.integers(1, 40), st.booleans(), st.sampled_from([None, 1]))
def test_streams_say_what_json_says(tmp_path_factory, values, chunk, escaped, indent):
    path = tmp_path_factory.getbasetemp() / "stream.json"
    path.write_text(
        json.dumps(values, ensure_ascii=escaped, indent=indent), encoding="utf-8", errors="replace"
    )
    expected, content = json.loads(path.read_text(encoding="utf-8")), path.read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(piip.data.json_stream, "_CHUNK", chunk)
        entries = list(stream_entries(path))
    assert [entry.value for entry in entries] == expected
    assert [json.loads(content[e.start : e.start + e.length]) for e in entries] == expected


def read_all(path):
    list(stream_entries(path))
    return ConversationFile(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"id": 1}, {"id"', "not a readable json list"),
        (b'[{"id": 1}', "has no end"),
        (b"[1, } " + b" " * 100, "Expecting value"),
        (b'["\xff"]', "utf-8"),
        (b"[]", "has no sample"),
        (b"", "has no sample"),
        (b"3", "sample 0: it has no list of conversations"),
        (None, "does not exist"),
    ],
)
def test_files_that_are_no_lists(tmp_path, content, message):
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_all(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "no list of conversations"),
        (sample("a", "b", image={"file": 3}), "neither a file name nor a list"),
        ({"conversations": [{"from": "human"}]}, "no text in 'value'"),
        ({"conversations": [{"from": "system", "value": "a"}]}, "from 'system'"),
        ({"conversations": [{"from": ["gpt"], "value": "a"}]}, "neither human nor gpt"),
        (sample("<image>", "b", "<image>", "d", image="a.png"), "2 <image> for 1 images"),
        (sample("a", "b", image="a.png"), "0 <image> for 1 images"),
        (sample("a", "<image>"), "an answer of it contains <image>"),
        (sample(), "no question with an answer"),
        (sample("a"), "no question with an answer"),
        ({"conversations": [*sample("a", "b")["conversations"], *sample("a", "b", "c")["conversations"][1:]]},
         "out of order at 'b'"),
    ],
)  # fmt: skip
def test_samples_that_are_none(value, message):
    with pytest.raises(DataError, match=message):
        parse_conversation(value)


def test_errors_name_file_and_sample(folder):
    path = write(folder / "bad.json", [GOOD[0], sample("<image>", "b", name="x9")])
    with pytest.raises(
        DataError, match=r"bad\.json, sample 1 \(id x9\): it has 1 <image> for 0 images; mend"
    ):
        ConversationFile(path)


def test_what_cannot_be_learnt_is_left_out():
    turns = [{"from": "gpt", "value": "Hello."}, *sample("a", "b", "c")["conversations"]]
    assert [turn.text for turn in parse_conversation({"conversations": turns}).turns] == ["a", "b"]


def test_where_images_are(folder):
    inside = write(folder / "texts/talk.json", GOOD)
    assert ConversationFile(inside).folder.resolve() == (folder / "images").resolve()
    assert ConversationFile(inside, folder / "images")[0].images == ("a.png",)
    with pytest.raises(DataError, match="nowhere does not exist"):
        ConversationFile(inside, folder / "nowhere")
    with pytest.raises(DataError, match=r"gone\.png of .* is not beside it; give the folder"):
        ConversationFile(write(folder / "c.json", [sample("<image>", "b", image="gone.png")]))


def found(report):
    return {(problem.severity, problem.what): problem for problem in report.problems}


def test_check_of_good_conversations(folder):
    report = check_multimodal(folder)
    numbers = report.splits["talk"]
    assert report.ok
    assert (numbers.samples, numbers.text_only, numbers.several_images) == (3, 1, 1)
    assert (numbers.images, numbers.answers) == (2, 4)
    assert numbers.quantiles["longest"] == 7
    assert numbers.lengths == {"4 to 7 words": 3}
    assert set(found(report)) == {("warning", "empty answers are learnt as silence")}
    json.dumps(report.to_dict())
    assert all("\n" not in line for line in report.lines())


def test_check_finds_everything(folder):
    bad = [
        *GOOD,
        GOOD[0],
        sample("a <image>", "b", name="no image"),
        {"conversations": [{"from": "human", "value": "a"}, {"from": "human", "value": "a"}]},
        sample("<image>", " ", image="gone.png"),
        sample("<image>", "b", "c", name="half", image="cut.jpg"),
        sample(" ", "word " * 2000, name="long"),
    ]
    write(folder / "talk.json", bad)
    Image.effect_noise((50, 80), 90).save(folder / "whole.jpg")
    (folder / "images/cut.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:2000])
    report = check_multimodal(folder / "talk.json")
    problems = found(report)
    assert not report.ok
    unusable = problems["error", "samples that cannot be used"]
    assert unusable.where[0] == "sample 4 (id no image): it has 1 <image> for 0 images"
    assert unusable.count == 2
    assert problems["error", "missing or unreadable images"].count == 2
    assert problems["warning", "ids used more than once"].where == ("x1",)
    assert problems["warning", "empty answers are learnt as silence"].count == 3
    assert problems["warning", "empty questions"].where == ("sample 8 (id long)",)
    left_out = problems["warning", "answers without a question and questions without one are left out"]
    assert left_out.where == ("sample 7 (id half)",)
    assert problems["note", "more than 1500 words may be cut"].count == 1
    headers_only = found(check_multimodal(folder / "talk.json", read_images=False))
    assert headers_only["error", "missing or unreadable images"].count == 1


def test_check_compares_files(folder):
    write(folder / "more/val.json", GOOD[:1])
    (folder / "more/a.png").write_bytes((folder / "images/a.png").read_bytes())
    (folder / "other.json").write_text('{"images": []}')
    report = check_multimodal(folder)
    assert list(report.splits) == ["more/val", "talk"]
    assert ("warning", "the same image in two splits") in found(report)


def test_check_of_no_conversations(folder):
    with pytest.raises(DataError, match="No conversations were found"):
        find_conversations(folder / "images")
    (folder / "talk.json").write_text('[{"conversations": ')
    report = check_multimodal(folder)
    assert set(found(report)) == {("error", "files that cannot be used")}


def test_the_verb(folder, capsys):
    assert main(["check-data", str(folder), "--task", "multimodal"]) == 0
    assert "Ready to train: 1 warning." in capsys.readouterr().out
    far = write(folder / "far/away/talk.json", GOOD)
    assert main(["check-data", str(far), "--task", "multimodal"]) == 2
    assert main(["check-data", str(far), "--task", "multimodal", "--images", str(folder / "images")]) == 0
    assert main(["check-data", str(far), "--task", "multimodal", "--images", str(folder / "gone")]) == 2
    capsys.readouterr()
    assert main(["check-data", str(folder), "--task", "detection", "--images", str(folder)]) == 2
    assert "--images is for --task multimodal" in capsys.readouterr().err


def test_real_conversations(shared):
    folder = shared / "data/coco_tiny"
    report = check_multimodal(folder)
    assert not report.problems
    assert [report.splits[f"vqa/llava_{split}"].samples for split in ("train", "val")] == [50, 50]
    assert report.splits["vqa/pope_val"].questions == 212
    assert ConversationFile(folder / "vqa/llava_val.json").folder.resolve() == folder.resolve()
