"""What recipes will train and need, of the published PIIP-LLaVAs and of a tiny one."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

from piip.cli import main
from piip.cost.training import LEVELS
from piip.errors import ConfigError
from piip.llava.languages import KNOWN, language_sizes
from piip.presets import get_config
from piip.train.planning import origin, plan_llava, planned_llava, planned_network
from piip.train.recipe import load_recipe, recipe_from_dict
from tests.llava.language import save_language_model

ROOT = Path(__file__).parents[2] / "recipes" / "llava"
RUNS = sorted(path for path in ROOT.glob("*.yaml") if not path.stem.startswith("llava_stage"))
SAMPLES = {"1": 558_128, "2": 665_298}
LANGUAGE_PARAMS = {"7b": 6_738_939_904, "13b": 13_016_519_680}
GIB = 2**30


def stage_of(path):
    return path.stem.removesuffix("_lora")[-1]


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_a_published_recipe_builds_and_learns_what_it_should(path):
    model = planned_llava(load_recipe(path), ROOT)
    size = "13b" if "13b" in path.stem else "7b"
    text, head = model.model.language_model, model.lm_head
    language = (
        sum(p.numel() for name, p in text.named_parameters() if "lora" not in name) + head.weight.numel()
    )
    assert language == LANGUAGE_PARAMS[size]
    tower, projector = model.model.vision_tower, model.model.multi_modal_projector
    seen = sum(p.numel() for p in tower.parameters())
    assert 3e8 < seen < 7e8
    learnt = {p for p in model.parameters() if p.requires_grad}
    if stage_of(path) == "1":
        assert learnt == set(projector.parameters())
        assert text.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    elif "lora" in path.stem:
        names = {name for name, p in model.named_parameters() if p.requires_grad}
        assert all("lora" in name or "multi_modal_projector" in name for name in names)
    else:
        whole = set(model.parameters())
        assert learnt == (whole - set(tower.parameters()) if path.stem.startswith("clip_l") else whole)
        assert text.layers[0].mlp.up_proj.weight.dtype == torch.float32


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_a_published_recipe_has_the_published_settings(path):
    recipe, stage = load_recipe(path), stage_of(path)
    total = recipe.data.batch_size * recipe.trainer.devices * recipe.trainer.accumulate
    assert total == {"1": 256, "2": 128}[stage]
    rate = 2e-4 if "lora" in path.stem else {"1": 1e-3, "2": 2e-5}[stage]
    assert (recipe.optimizer.lr, recipe.optimizer.weight_decay, recipe.trainer.epochs) == (rate, 0, 1)
    assert (recipe.schedule.kind, recipe.trainer.precision, recipe.language.max_length) == (
        "cosine",
        "bf16",
        2048,
    )
    samples = 2_140_000 if "plus" in path.stem else SAMPLES[stage]
    steps = -(-samples // total)
    assert recipe.schedule.warmup_steps == -(-3 * steps // 100)
    assert recipe.language.captions == (stage == "1")
    if stage == "2":
        first = origin(recipe, ROOT)
        assert (ROOT / f"{first.name}.yaml").is_file()
        assert Path(recipe.model.start) == Path("runs") / first.name
        assert first.model.name.startswith(first.name.rsplit("_", 2)[0])


def test_every_published_row_has_both_recipes_with_its_scores(shared):
    rows = json.loads((shared / "paper/figures.json").read_text())["rows"]
    rows = [row["published"] for row in rows if row["task"] == "multimodal understanding"]
    texts = {path.stem: path.read_text() for path in RUNS}
    assert len(rows) == 9
    for row in rows:
        figures = (f"TextVQA {row['TextVQA']}", f"(average {row['Avg']})", "not by us")
        found = [stem for stem, text in texts.items() if all(figure in text for figure in figures)]
        assert {stem[-1] for stem in found} == ({"1", "2"} if row["data"] == "1.2M" else {"2"})
        assert all(row["llm"].removeprefix("Vicuna-").lower() in stem for stem in found)


@pytest.mark.slow
def test_memory_of_a_published_second_stage():
    recipe = load_recipe(ROOT / "piip_clip_bl_512_256_llava_7b_2.yaml")
    plan = plan_llava(recipe, ROOT, samples=2)
    memory = plan.copied
    params = 6_738_939_904 + 398_000_000
    assert memory.fixed == 0
    assert memory.learnt == pytest.approx(4 * params, rel=0.01)
    assert 16 * params < plan.per_gpu("ddp", 64) < 16 * params + 60 * GIB
    for level in LEVELS:
        needs = [plan.per_gpu(level, gpus) for gpus in (1, 8, 64)]
        assert needs == sorted(needs, reverse=True)
    assert plan.per_gpu("ddp", 64) > 80 * GIB
    assert plan.per_gpu("fsdp", 64) < 0.9 * 80 * GIB


def tiny(folder, **changes):
    values = {
        "task": "multimodal",
        "model": {"branches": ["test_vit", "test_vit2"], "sizes": [64, 32], "changes": {"num_interactions": 1}},
        "data": {"batch_size": 3},
        "language": {"model": str(folder), "max_length": 96, "learn": ["projectors"]},
        "trainer": {"precision": "bf16"},
    }  # fmt: skip
    return recipe_from_dict(values | changes)


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    return save_language_model(tmp_path_factory.mktemp("language"))


def test_fixed_weights_are_halved_but_for_fsdp(language):
    plan = plan_llava(tiny(language), Path())
    model = planned_llava(tiny(language), Path())
    halves = sum(p.nbytes for p in (*model.model.language_model.parameters(), *model.lm_head.parameters()))
    assert plan.sharded.fixed - plan.copied.fixed == halves
    assert (
        plan.copied.learnt
        == plan.sharded.learnt
        == 4 * sum(p.numel() for p in model.model.multi_modal_projector.parameters())
    )


def test_recomputing_takes_less(language):
    full = tiny(language, language={"model": str(language), "max_length": 96}, trainer={})
    again = full.replace(trainer=full.trainer.replace(grad_checkpointing=True))
    plain, less = (plan_llava(recipe, Path()).copied for recipe in (full, again))
    assert less.activations < 0.7 * plain.activations
    assert (less.fixed, less.learnt) == (plain.fixed, plain.learnt) == (0, less.gradients)


def test_info_shows_recipes(language, tmp_path, capsys):
    (tmp_path / "one.yaml").write_text(tiny(language, trainer={}).to_yaml())
    second = tiny(language, model={"start": "runs/one"}, trainer={})
    (tmp_path / "two.yaml").write_text(second.to_yaml())
    assert main(["info", str(tmp_path / "two.yaml"), "--tokens", "48", "--batch_size", "2"]) == 0
    shown = capsys.readouterr().out
    assert "branch2.blocks" in shown
    assert "2 samples of 48 tokens" in shown
    assert "Fits into 24 GB: DDP (ZeRO-0) on 1 GPU or more, ZeRO-1 on 1 GPU or more" in shown


def test_a_recipe_of_another_task_is_its_network(capsys):
    path = ROOT.parent / "coco_tiny.yaml"
    recipe = load_recipe(path)
    assert planned_network(recipe, path.parent) == get_config(recipe.model.name, **recipe.model.changes)
    assert main(["info", str(path), "--tokens", "48"]) == 2
    assert "--tokens are for the recipe of a PIIP-LLaVA" in capsys.readouterr().err


def test_what_cannot_be_planned_is_one_sentence(tmp_path):
    recipe = recipe_from_dict({"task": "multimodal", "model": {"name": "piip_nano"}})
    with pytest.raises(ConfigError, match="names no language model"):
        planned_llava(recipe, tmp_path)
    with pytest.raises(ConfigError, match="sizes of the language model /nowhere cannot be read"):
        language_sizes("/nowhere")
    nothing = replace(recipe, model=replace(recipe.model, name=None))
    with pytest.raises(ConfigError, match="names no model"):
        planned_network(nothing, tmp_path)


def test_published_language_models_are_known_without_a_network():
    assert [language_sizes(name).num_hidden_layers for name in KNOWN] == [32, 40]
