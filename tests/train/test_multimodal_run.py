"""Whole runs of a PIIP-LLaVA on made-up pictures: both stages, LoRA, resuming, evaluation, answers, report."""

import json
import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

from piip.cli import main
from piip.errors import ConfigError, DataError
from piip.llava import Answerer
from piip.llava.loading import load_model
from piip.train.building import build_model
from piip.train.checkpoints import AtomicCheckpointIO
from piip.train.folder import RunFolder
from piip.train.multimodal import MultimodalModule
from piip.train.recipe import recipe_from_dict
from piip.train.run import run_training
from piip.train.task import task_of
from tests.llava.language import save_language_model, write_colours
from tests.train.resuming import assert_resumes_exactly

ROOT = Path(__file__).parents[2]
RECIPES, SHARED = ROOT / "recipes", ROOT.parent / "shared/data/coco_tiny/vqa"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Pictures with conversations, and a language model."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("world")
    write_colours(root / "data")
    save_language_model(root / "language")
    return root


def small(world, **changes):
    values = {
        "name": "colours",
        "task": "multimodal",
        "model": {"branches": ["test_vit", "test_vit2"], "sizes": [64, 32], "changes": {"num_interactions": 2}},
        "data": {"folder": str(world / "data"), "batch_size": 6, "eval_batch_size": 3, "workers": 0},
        "language": {"model": str(world / "language"), "instruction": "", "max_length": 400, "max_new_tokens": 6},
        "optimizer": {"lr": 3e-3, "weight_decay": 0.0},
        "schedule": {"kind": "cosine", "warmup_steps": 2},
        "trainer": {"epochs": 2, "accelerator": "cpu", "devices": 1, "samples": 2, "log_every": 1},
    }  # fmt: skip
    for name, change in changes.items():
        values[name] = values.get(name, {}) | change if isinstance(change, dict) else change
    return recipe_from_dict(values)


FROM = {"branches": [], "sizes": [], "changes": {}}


@pytest.fixture(scope="module")
def first(world, tmp_path_factory) -> RunFolder:
    """A first stage: projectors alone, captions, evaluated on conversations."""
    recipe = small(world, language={"learn": ["projectors"], "captions": True})
    return run_training(recipe, tmp_path_factory.mktemp("runs") / "first")


@pytest.fixture(scope="module")
def second(world, first, tmp_path_factory) -> RunFolder:
    """A second stage: everything, evaluated on questions."""
    recipe = small(world, model=FROM | {"start": str(first.path)}, data={"val": "pope_val"})
    return run_training(recipe, tmp_path_factory.mktemp("runs") / "second")


def weights(folder):
    return load_model(folder, {"dtype": torch.float32}).state_dict()


def test_a_first_stage_learns_projectors_and_keeps_nothing_else(world, first):
    state = AtomicCheckpointIO().load_checkpoint(first.last)["state_dict"]
    assert state
    assert all(name.startswith("model.model.multi_modal_projector.") for name in state)
    scores = first.read_results()["answers"]
    assert scores["tokens"] == 30  # 2 x (red, green, blue), each with a newline
    assert 0 < scores["loss"] < 5
    saved, language = weights(first.model), load_language(world)
    for name, value in language.items():
        assert torch.equal(saved[f"model.language_model.{name}"][: len(value)], value), name


def load_language(world):
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(world / "language").model.state_dict()


def test_a_whole_model_keeps_its_form(world, first, tmp_path):
    recipe = small(world, model=FROM | {"start": str(first.path)}, language={"projector_norm": "layer"})
    with pytest.raises(ConfigError, match="is a whole PIIP-LLaVA with 'group'; remove"):
        run_training(recipe, tmp_path / "run")
    alone = small(
        world, model=FROM | {"start": str(first.path), "new_head": True}, language={"out_grid": [3, 3]}
    )
    run = run_training(alone, tmp_path / "run")
    assert json.loads((run.model / "config.json").read_text())["out_grid"] == [3, 3]


def test_a_second_stage_goes_on_from_the_first_and_moves_everything(first, second):
    one, two = weights(first.model), weights(second.model)
    assert one.keys() == two.keys()
    still = [name for name in one if torch.equal(one[name], two[name])]
    assert not [name for name in still if "norm" not in name and "gamma" not in name and "bias" not in name]
    scores = second.read_results()["answers"]
    assert scores["questions"] == 6
    assert {"precision", "recall", "f1", "yes_ratio"} <= scores.keys()


def test_the_folder_answers(second, world, tmp_path, capsys):
    image = str(world / "data/images/val_red_0.png")
    answer = Answerer.load(second.path, "cpu").answer(image, "Which?", 6)
    assert main(["predict", image, "--model", str(second.path), "--prompt", "Which?", "--max_new_tokens", "6",
                 "--device", "cpu", "--out", str(tmp_path)]) == 0  # fmt: skip
    assert json.loads((tmp_path / "predictions.json").read_text())["images"][0]["answer"] == answer
    assert main(["report", str(second.path)]) == 0
    page = (second.path / "report.html").read_text()
    assert "questions answered rightly" in page
    assert "--prompt" in page
    assert main(["info", str(second.path)]) == 0
    assert {path.name for path in second.curves.iterdir()} == {"loss.png", "learning_rate.png", "answers.png"}
    assert len(list(second.samples.iterdir())) == 2


def test_eval_repeats_the_scores_of_training(first, second, capsys):
    for run, metric, name in ((first, "loss", "val"), (second, "accuracy", "pope_val")):
        assert main(["eval", str(run.path), "--device", "cpu"]) == 0
        scores = json.loads((run.path / f"eval_{name}.json").read_text())["scores"]
        assert scores[metric] == pytest.approx(run.read_results()["answers"][metric], rel=1e-4)


def test_lora_learns_beside_the_language_model_and_is_merged_at_the_end(world, tmp_path):
    pytest.importorskip("peft")
    recipe = small(world, language={"lora_rank": 4, "learn": ["projectors", "language"]})
    run = run_training(recipe, tmp_path / "run")
    state = AtomicCheckpointIO().load_checkpoint(run.last)["state_dict"]
    assert {("lora_" in name, "projector" in name) for name in state} == {(True, False), (False, True)}
    saved, language = weights(run.model), load_language(world)
    moved = [name for name, value in language.items()
             if not torch.equal(saved[f"model.language_model.{name}"][: len(value)], value)]  # fmt: skip
    assert len(moved) == 2 * 7  # the linear layers of two layers
    assert all("proj" in name for name in moved)
    assert main(["eval", str(run.path), "--device", "cpu"]) == 0  # what was merged is what was measured
    again = json.loads((run.path / "eval_val.json").read_text())["scores"]
    assert again["loss"] == pytest.approx(run.read_results()["answers"]["loss"], rel=1e-4)


def test_an_interrupted_run_repeats_the_uninterrupted_one(world, second, first, tmp_path, monkeypatch):
    recipe = small(world, model=FROM | {"start": str(first.path)}, data={"val": "pope_val"})
    assert_resumes_exactly(second, recipe, MultimodalModule, 4, tmp_path / "run", monkeypatch)


def copied(world, folder):
    """Return a copy of the data whose images may be damaged."""
    return Path(shutil.copytree(world / "data", folder / "data"))


def test_questions_that_cannot_be_asked_are_left_out(world, first, tmp_path):
    data = copied(world, tmp_path)
    (data / "images/val_red_0.png").write_bytes(b"no image")
    recipe = small(
        world, model=FROM | {"start": str(first.path)}, data={"folder": str(data), "val": "pope_val"}
    )
    recipe = recipe.replace(trainer=recipe.trainer.replace(epochs=1, samples=6))
    with pytest.warns(UserWarning, match=r"1 of 6 questions are left out of the scores: 1 \(Image") as told:
        run = run_training(recipe, tmp_path / "run")
    said = [str(warning.message) for warning in told]
    assert sum("A sample is not drawn, question 1: Image" in line for line in said) == 1
    assert run.read_results()["answers"]["questions"] == 5
    assert len(list(run.samples.iterdir())) == 5


def test_conversations_that_cannot_be_used_are_left_out(world, tmp_path):
    data = copied(world, tmp_path)
    (data / "images/val_red_0.png").write_bytes(b"no image")
    samples = json.loads((data / "val.json").read_text())
    samples[-1]["conversations"][0]["value"] = "word " * 500 + "<image>"
    (data / "val.json").write_text(json.dumps(samples))
    recipe = small(world, data={"folder": str(data)}, language={"learn": ["projectors"]})
    words = "of 6 samples seen, 1 left out, as a cut would leave no answer or half an image; 1 left out, as"
    with pytest.warns(UserWarning, match=words):
        run = run_training(recipe, tmp_path / "run")
    # A space, the letters and an end: one of two red ones and one of two blue ones are gone.
    assert run.read_results()["answers"]["tokens"] == 2 * (5 + 7 + 6) - 5 - 6


def test_the_language_model_is_halved_where_it_is_not_learnt(world, tmp_path):
    recipe = small(world, language={"learn": ["projectors"]}, trainer={"precision": "bf16", "epochs": 1})
    run = run_training(recipe, tmp_path / "run")
    assert json.loads((run.model / "config.json").read_text())["dtype"] == "bfloat16"
    assert run.read_results()["answers"]["loss"] < 6


def test_images_keep_their_aspect_ratio(world, tmp_path):
    recipe = small(
        world, language={"keep_aspect_ratio": True}, trainer={"epochs": 1}, data={"val": "vqa_val"}
    )
    run = run_training(recipe, tmp_path / "run")
    assert json.loads((run.model / "config.json").read_text())["keep_aspect_ratio"]
    assert main(["eval", str(run.path), "--device", "cpu"]) == 0
    scores = json.loads((run.path / "eval_vqa_val.json").read_text())["scores"]
    assert scores == run.read_results()["answers"]


def test_checkpoints_within_an_epoch(world, tmp_path, monkeypatch):
    original, seen = MultimodalModule.losses, []

    def watching(self, batch):
        seen.append((tmp_path / "run/checkpoints/last.ckpt").exists())
        return original(self, batch)

    monkeypatch.setattr(MultimodalModule, "losses", watching)
    run_training(small(world, trainer={"save_every": 2, "epochs": 1}), tmp_path / "run")
    assert seen == [False, False, True]


def test_the_language_models_layers_are_recomputed(world, tmp_path):
    plain = run_training(small(world, trainer={"epochs": 1}), tmp_path / "plain")
    again = run_training(small(world, trainer={"epochs": 1, "grad_checkpointing": True}), tmp_path / "again")
    assert again.read_metrics()[-1]["train/loss"] == pytest.approx(
        plain.read_metrics()[-1]["train/loss"], rel=1e-4
    )


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/data/coco_tiny")
def test_the_small_recipes_go_from_captions_to_answers(world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ["--data.folder", str(SHARED), "--trainer.epochs", "1", "--trainer.samples", "1"]
    language = ["--language.model", str(world / "language")]
    assert main(["check-data", str(SHARED), "--task", "multimodal"]) == 0
    assert main(["train", str(RECIPES / "coco_tiny_llava_1.yaml"), *small, *language]) == 0
    second = ["train", str(RECIPES / "coco_tiny_llava_2.yaml"), *small]
    assert main(second) == 0
    assert main([*second, "--language.lora_rank", "4", "--out", "runs/lora"]) == 0
    assert main(["eval", "runs/lora", "--batch_size", "4"]) == 0
    assert json.loads((tmp_path / "runs/lora/eval_pope_val.json").read_text())["scores"]["questions"] == 212


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"language": {"model": ""}}, ConfigError, "names no language model; give language.model"),
        ({"language": {"model": "/nowhere"}}, ConfigError, "The tokenizer of /nowhere cannot be loaded"),
        ({"language": {"chat": "own"}}, ConfigError, "no chat template of its own; set chat to vicuna"),
        ({"language": {"learn": []}}, ConfigError, "language.learn is empty; name some of projectors"),
        ({"language": {"lora_rank": 2, "learn": ["projectors"]}}, ConfigError, "add language to language.learn"),
        ({"language": {"max_length": 20}}, DataError, "raise max_length"),
        ({"data": {"train": "missing"}}, DataError, "no file missing.json or missing.jsonl; it has pope_train"),
        ({"data": {"images": "/nowhere"}}, DataError, "The folder of images /nowhere does not exist"),
        ({"data": {"folder": "/nowhere"}}, DataError, "The folder /nowhere does not exist; check data.folder"),
        ({"task": "detection"}, ConfigError, "no effect in the task detection; it is for multimodal"),
        ({"image": {"scale": [64, 64]}}, ConfigError, "image has settings, which have no effect"),
        ({"augment": {"flip": 0.0}}, ConfigError, "augment has settings, which have no effect"),
        ({"trainer": {"ema_decay": 0.9}}, ConfigError, "trainer.ema_decay"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_one_sentence(world, tmp_path, changes, error, words):
    with pytest.raises(error, match=words):
        run_training(small(world, **changes), tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize(
    ("tied", "rank", "again"), [(False, 0, False), (True, 0, "light"), (False, 2, "light"), (True, 2, True)]
)
def test_a_process_that_gets_shards_needs_no_weights(world, tmp_path, tied, rank, again):
    save_language_model(tmp_path, tie_word_embeddings=tied)
    recipe = small(world, language={"model": str(tmp_path), "lora_rank": rank})
    recipe = recipe.replace(trainer=recipe.trainer.replace(strategy="fsdp", grad_checkpointing=again))
    task = task_of(recipe)
    data = task.data(recipe)
    whole = build_model(recipe, ())
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ConfigError):
        build_model(recipe, ())
    empty = task.without_weights(recipe, data)
    assert kinds(empty.named_parameters()) == kinds(whole.named_parameters())  # the tied head is in neither
    assert kinds(empty.named_buffers()) == kinds(whole.named_buffers())
    assert [type(module) for module in empty.modules()] == [type(module) for module in whole.modules()]
    modes = ([(name, module.training) for name, module in model.named_modules()] for model in (empty, whole))
    assert next(modes) == next(modes)
    leftovers = [name for module in empty.modules() for name, value in vars(module).items() if on_meta(value)]
    assert not leftovers


def kinds(named):
    return [(name, value.shape, value.dtype, value.device, value.requires_grad) for name, value in named]


def on_meta(value):
    return isinstance(value, torch.Tensor) and value.is_meta
