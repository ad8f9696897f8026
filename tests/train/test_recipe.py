import dataclasses
from pathlib import Path

import pytest
import yaml

from piip.errors import ConfigError
from piip.train.recipe import (
    DataRecipe,
    ModelRecipe,
    TrainerRecipe,
    TrainRecipe,
    load_recipe,
    recipe_from_dict,
)


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_defaults_round_trip(tmp_path):
    path = write(tmp_path, "plain.yaml", TrainRecipe(name="plain").to_yaml())
    assert load_recipe(path) == TrainRecipe(name="plain")


def test_a_changed_recipe_round_trips(tmp_path):
    recipe = TrainRecipe(
        name="mine",
        model=ModelRecipe(name="piip_nano", weights={1: "deit.safetensors"}, changes={"size_divisor": 64}),
        data=DataRecipe(folder="x", classes=("cat", "dog")),
        detector={"masks": False, "anchor_ratios": [0.5, 1.0]},
        trainer=TrainerRecipe(clip_norm=0.1, ema_decay=0.999, devices=2),
    )
    assert load_recipe(write(tmp_path, "a.yaml", recipe.to_yaml())) == recipe
    assert not recipe.masks


def test_base_files_are_merged_key_by_key(tmp_path):
    write(tmp_path, "root.yaml", "optimizer: {lr: 1.0e-3, weight_decay: 0.1}\ntrainer: {epochs: 3}")
    write(tmp_path, "middle.yaml", "base: root.yaml\noptimizer: {lr: 2.0e-3}\ndetector: {masks: true}")
    recipe = load_recipe(write(tmp_path, "leaf.yaml", "base: middle.yaml\ndetector: {pad_divisor: 64}"))
    assert (recipe.optimizer.lr, recipe.optimizer.weight_decay) == (2e-3, 0.1)
    assert recipe.trainer.epochs == 3
    assert recipe.detector == {"masks": True, "pad_divisor": 64}
    assert recipe.name == "leaf"


def test_overrides_have_dotted_names(tmp_path):
    path = write(tmp_path, "a.yaml", "optimizer: {lr: 1.0e-3}")
    recipe = load_recipe(path, {"optimizer.lr": 1e-5, "detector.masks": False})
    assert recipe.optimizer.lr == 1e-5
    assert not recipe.masks


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimiser: {lr: 1}", "unknown key optimiser. Did you mean 'optimizer'"),
        ("optimizer: {learning_rate: 1}", r"unknown key optimizer\.learning_rate"),
        ("optimizer: {lr: fast}", "optimizer.lr is 'fast'; expected float"),
        ("optimizer: {lr: -1}", "lr is .*give a number above 0"),
        ("optimizer: {betas: [2, 3]}", r"optimizer.betas is \(2.0, 3.0\); give a number from 0 to below 1"),
        ("schedule: {gamma: -1}", "schedule.gamma is -1.0; give a number above 0 to 1"),
        ("trainer: {clip_norm: -1}", "trainer.clip_norm is -1.0; give a number above 0"),
        ("trainer: {seed: -1}", "trainer.seed is -1; give a number from 0"),
        ("trainer: {devices: abc}", "trainer.devices is 'abc'; give a number from 1, or auto"),
        ("trainer: {devices: 0}", "trainer.devices is 0; give a number from 1, or auto"),
        ("base: 5", "has the base 5; give the name of another recipe"),
        ("trainer: {epochs: 0}", r"trainer\.epochs is 0"),
        ("trainer: {strategy: dpp}", "strategy"),
        ("trainer: {ema_decay: 0.9, strategy: fsdp}", "ema_decay does not work with strategy fsdp"),
        ("model: {name: a, start: b}", "model has name and start"),
        ("model: piip_nano", "model is 'piip_nano'; it has keys of its own"),
        ("- a", "must hold keys"),
        ("a: [", "cannot be read"),
        ("base: self.yaml", "its own base"),
        ("base: nowhere.yaml", "nowhere.yaml does not exist"),
    ],
)
def test_bad_recipes(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        load_recipe(write(tmp_path, "self.yaml", text))
    with pytest.raises(ConfigError, match="does not exist"):
        load_recipe(tmp_path / "none.yaml")


def test_every_setting_is_described():
    """The command line's help comes from the docstrings: each field needs its line."""
    for kind in (TrainRecipe, ModelRecipe, DataRecipe, TrainerRecipe):
        for field in dataclasses.fields(kind):
            assert f"        {field.name}: " in kind.__doc__, f"{kind.__name__}.{field.name}"


def test_plain_values_stay_plain():
    values = recipe_from_dict({"model": {"sizes": [3, 2], "branches": ["a", "b"]}}).to_dict()
    assert yaml.safe_load(yaml.safe_dump(values)) == values
