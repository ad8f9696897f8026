"""Tasks of lmms-eval on local data: its own prompts and scores, asked of a tiny PIIP-LLaVA."""

import importlib.metadata
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("lmms_eval")
pytest.importorskip("datasets")

import datasets
import lmms_eval
from lmms_eval import evaluator
from lmms_eval.models import MODEL_REGISTRY_V2
from lmms_eval.tasks import TaskManager

from piip.bridges.lmms_eval import MODEL_NAME, PiipLlavaChat, PiipLlavaSimple, manifest
from piip.errors import ConfigError, DataError
from piip.llava import Answerer, Turn
from piip.llava.questions import Question, answer_questions, score
from tests.llava.tiny import save

TASKS = Path(lmms_eval.__file__).parent / "tasks"
INSTRUCTION = "Answer the question using a single word or phrase."
QUESTIONS = ("What is it?", "What is the colour of the second bus from the left?", "Who?", "How many cats?")
LENGTH = 8


def picture(seed, size=(50, 80)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8))


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory):
    """Keep lmms-eval from the network and from the user's caches, and let it know the model."""
    MODEL_REGISTRY_V2.register_manifest(manifest(), overwrite=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def answerer(folder):
    return Answerer.load(folder, "cpu")


def write_task(folder, name, base, split, rows, extra=""):
    """Write a task that is one of lmms-eval's but for its data, ``rows`` of columns."""
    kind = datasets.Image() if isinstance(rows["image"][0], Image.Image) else datasets.List(datasets.Image())
    datasets.Dataset.from_dict(rows).cast_column("image", kind).to_parquet(folder / f"{name}.parquet")
    (folder / f"{name}.yaml").write_text(
        f"task: {name}\ninclude: {TASKS / base}\ndataset_path: parquet\n"
        f"dataset_kwargs: {{data_files: {{{split}: {folder / name}.parquet}}}}\ntest_split: {split}\n{extra}"
    )


def evaluate(folder, name, model, batch_size=1, **options):
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = evaluator.simple_evaluate(
        model=MODEL_NAME,
        model_args=f"pretrained={model},max_new_tokens={LENGTH}",
        tasks=[name],
        task_manager=manager,
        batch_size=batch_size,
        device="cpu",
        log_samples=True,
        bootstrap_iters=0,
        **options,
    )
    samples = sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
    return found["results"][name], samples


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("force_simple", [False, True])
def test_textvqa_scores_as_piip_does(batch_size, force_simple, folder, answerer, tmp_path):
    pictures = [picture(seed) for seed in range(len(QUESTIONS))]
    for number, shown in enumerate(pictures):
        shown.save(tmp_path / f"{number}.png")
    asked = [Question(n, tmp_path / f"{n}.png", q.capitalize(), ()) for n, q in enumerate(QUESTIONS)]
    answers = list(answer_questions(answerer, asked, INSTRUCTION, LENGTH))
    assert len(set(answers)) > 1, "answers that are all alike would prove nothing"
    truths = [[answer] * count + ["other"] * (10 - count) for answer, count in zip(answers, (0, 1, 2, 10))]  # noqa: B905
    write_task(
        tmp_path,
        "local_textvqa",
        "textvqa/_default_template_textvqa_yaml",
        "validation",
        {
            "image": pictures,
            "question": list(QUESTIONS),
            "question_id": list(range(len(QUESTIONS))),
            "answers": truths,
        },
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n",
    )
    results, samples = evaluate(tmp_path, "local_textvqa", folder, batch_size, force_simple=force_simple)
    assert [sample["filtered_resps"][0] for sample in samples] == answers
    truthful = [Question(q.id, q.image, q.text, tuple(truth)) for q, truth in zip(asked, truths, strict=True)]
    expected = score("textvqa", truthful, answers)["accuracy"]
    assert 0 < expected < 1
    assert results["exact_match,none"] == pytest.approx(expected)


def seed_rows():
    return {
        "image": [[picture(0), picture(1)], [picture(2)]],
        "question": ["What changed?", "What is it?"],
        **{f"choice_{letter}": [letter * 3, letter + "?"] for letter in "abcd"},
        "answer": ["A", "C"],
        "data_type": ["image", "image"],
        "question_id": [1, 2],
    }


def test_several_images_and_ends(folder, answerer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the task writes its answers there
    rows = seed_rows()
    turns = [
        [
            Turn(
                "user",
                f"{rows['question'][n]}\n"
                + "".join(f"{letter.upper()}. {rows[f'choice_{letter}'][n]}\n" for letter in "abcd")
                + "Answer with the option's letter from the given choices directly.",
                tuple(rows["image"][n]),
            )
        ]
        for n in range(2)
    ]
    whole = answerer.answer_all(turns, LENGTH)
    end = whole[0][3]
    write_task(tmp_path, "local_seed", "seedbench/seedbench.yaml", "test", rows)
    _, samples = evaluate(tmp_path, "local_seed", folder, 2, gen_kwargs=f"until={end}")
    assert [sample["filtered_resps"][0] for sample in samples] == [
        answer.partition(end)[0].strip() for answer in whole
    ]


def test_choices_are_compared_by_their_loss(folder, answerer, tmp_path):
    rows = seed_rows()
    write_task(tmp_path, "local_ppl", "seedbench/seedbench_ppl.yaml", "test", rows)
    results, samples = evaluate(tmp_path, "local_ppl", folder, 3, force_simple=True)
    right = 0
    for n, sample in enumerate(samples):
        turn = Turn("user", f"{rows['question'][n]} Answer :", tuple(rows["image"][n]))
        losses = [answerer.losses([[turn]], [f" {rows[f'choice_{letter}'][n]}"])[0][0] for letter in "abcd"]
        assert [loss for loss, _ in sample["filtered_resps"]] == pytest.approx(losses, abs=1e-4)
        right += "ABCD"[int(np.argmin(losses))] == rows["answer"][n]
    assert results["acc,none"] == right / 2


def request(*args):
    return type("Request", (), {"args": args})


def test_conversations_and_the_prompt_of_the_system(folder):
    model = PiipLlavaChat(str(folder), device="cpu", system_prompt="Be brief.", max_new_tokens="6")
    shown = picture(0)
    messages = [
        {
            "role": "user",
            "content": [{"type": "image", "url": shown}, {"type": "text", "text": "<image>a?"}],
        }
    ]
    model.task_dict = {"task": {"test": [messages, [{"role": "system", "content": "No."}, *messages]]}}
    said = model.generate_until(
        [request("a?", lambda doc: doc, {"until": ["\n\n"]}, number, "task", "test") for number in (0, 1)]
    )
    expected = [
        model.answerer.answer_all([[Turn("system", tone), Turn("user", "a?", (shown,))]], 6)[0]
        for tone in ("Be brief.", "No.")
    ]
    assert said == expected
    assert model.chat_template == model.answerer.processor.chat_template


def test_what_it_cannot_do(folder):
    with pytest.raises(ConfigError, match="batch_size is auto"):
        PiipLlavaSimple(str(folder), batch_size="auto")
    model = PiipLlavaSimple(str(folder), device="cpu")
    model.task_dict = {"task": {"test": [{"array": np.zeros(3)}]}}
    sound = request("a?", {}, lambda doc: [doc], 0, "task", "test")
    with pytest.raises(DataError, match="no dict"):
        model.generate_until([sound])
    with pytest.raises(ConfigError, match="one round"):
        model.generate_until_multi_round([])
    text = request("a?", {"do_sample": True, "max_new_tokens": 2}, lambda doc: None, 0, "task", "test")
    with pytest.warns(UserWarning, match="asks for samples"):
        assert len(model.generate_until([text])) == 1
    model.clean()
    assert model._answerer is None


def test_the_entry_point_leads_to_the_model():
    settings = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    [(name, value)] = settings["project"]["entry-points"]["lmms_eval.models"].items()
    point = importlib.metadata.EntryPoint(name, value, "lmms_eval.models")
    assert point.load()() == manifest()
    assert MODEL_REGISTRY_V2.get_model_class(MODEL_NAME) is PiipLlavaChat
    assert MODEL_REGISTRY_V2.get_model_class(MODEL_NAME, force_simple=True) is PiipLlavaSimple
