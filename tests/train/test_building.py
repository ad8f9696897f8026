import pytest
import torch

from piip.errors import CheckpointError, ConfigError
from piip.factory import create_model
from piip.hub import save_pretrained
from piip.meta import on_meta
from piip.tasks.detection import RCNN
from piip.train.building import build_model, build_network
from piip.train.recipe import DataRecipe, ModelRecipe, TrainerRecipe, TrainRecipe
from piip.train.run import run_training

HEAD = {"fpn_channels": 16, "representation_size": 32, "mask_channels": 16}


def recipe(model: ModelRecipe, **trainer) -> TrainRecipe:
    return TrainRecipe(model=model, detector=HEAD, trainer=TrainerRecipe(**trainer))


def test_a_published_model_and_timm_names_build():
    detector = build_model(recipe(ModelRecipe(name="piip_nano")), ("cat",))
    assert isinstance(detector, RCNN)
    assert detector.training
    names = ("test_vit", "test_vit")
    changes = {"num_interactions": 2, "patch_size": 16}
    with on_meta():
        network = build_network(ModelRecipe(branches=names, sizes=(128, 64), changes=changes))
    assert network.config.num_interactions == 2


def test_frozen_branches_and_checkpointing_are_set():
    model = ModelRecipe(name="piip_nano", freeze=(1,))
    network = build_model(recipe(model, grad_checkpointing=True), ("cat",)).backbone
    assert not any(p.requires_grad for p in network.branches[0].parameters())
    assert not network.branches[0].training
    assert all(branch.grad_checkpointing for branch in network.branches)


def test_light_checkpointing_is_set():
    network = build_model(
        recipe(ModelRecipe(name="piip_nano"), grad_checkpointing="light"), ("cat",)
    ).backbone
    assert any(module._forward_hooks for module in network.modules())
    assert not any(branch.grad_checkpointing for branch in network.branches)


def test_start_from_a_network_gets_a_new_head(tmp_path):
    network = create_model("piip_nano")
    save_pretrained(network, tmp_path)
    detector = build_model(recipe(ModelRecipe(start=str(tmp_path))), ("cat",))
    for key, value in network.state_dict().items():
        assert torch.equal(detector.backbone.state_dict()[key], value)


def test_weights_of_one_branch(tmp_path):
    branch = create_model("piip_nano").branches[2]
    torch.save(branch.state_dict(), tmp_path / "branch.pth")
    model = ModelRecipe(name="piip_nano", weights={3: str(tmp_path / "branch.pth")})
    loaded = build_network(model).branches[2].state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in branch.state_dict().items())


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (ModelRecipe(), ConfigError, "names no model"),
        (ModelRecipe(name="piip_nono"), ConfigError, "Did you mean 'piip_nano'"),
        (ModelRecipe(name="piip_nano", weights={4: "x"}), ConfigError, "branch 4; branches go from 1 to 3"),
        (ModelRecipe(name="piip_nano", weights={1: "no.pth"}), CheckpointError, "no.pth"),
        (ModelRecipe(name="piip_nano", pretrained=True), ConfigError, "no pretrained weights by name"),
        (ModelRecipe(name="piip_nano", freeze=(9,)), ConfigError, "no branch 9"),
        (ModelRecipe(start="nowhere"), CheckpointError, "nowhere"),
        (ModelRecipe(name="piip_tsb_368_192_128_cls"), ConfigError, "needs a network with four maps"),
    ],
)
def test_what_cannot_be_built(model, error, message):
    with pytest.raises(error, match=message):
        build_model(recipe(model), ("cat",))


def test_settings_of_the_head_are_checked():
    bad = TrainRecipe(model=ModelRecipe(name="piip_nano"), detector={"mask": False})
    with pytest.raises(ConfigError, match="Did you mean 'masks'"):
        build_model(bad, ("cat",))


HEADS = [
    ({"detector": {"mask": False}}, "Did you mean 'masks'"),
    ({"detector": {"num_heads": 4}}, "num_heads is a setting of the detector kind dino, this one is rcnn"),
    ({"detector": {"kind": "dino"}}, "kind dino needs a network with three maps"),
    ({"task": "segmentation", "segmenter": {"chanels": 64}}, "Did you mean 'channels'"),
    ({"task": "segmentation", "segmenter": {"stride": 900}}, "windows would leave gaps"),
    ({"task": "classification", "classifier": {"tokens": "mean"}}, "Did you mean 'token'"),
    ({"model": ModelRecipe(name="piip_nono")}, "Did you mean 'piip_nano'"),
]


@pytest.mark.parametrize(("changes", "message"), HEADS)
def test_settings_of_the_model_are_checked_before_the_data_are_read(changes, message, tmp_path):
    parts = {"model": ModelRecipe(name="piip_nano"), "data": DataRecipe(folder="nowhere")} | changes
    with pytest.raises(ConfigError, match=message):
        run_training(TrainRecipe(**parts), tmp_path / "run")


def test_a_new_head_on_a_saved_model_is_checked_before_the_data_are_read(tmp_path):
    save_pretrained(create_model("piip_nano"), tmp_path / "saved")
    start = ModelRecipe(start=str(tmp_path / "saved"), new_head=True)
    bad = TrainRecipe(model=start, detector={"mask": False}, data=DataRecipe(folder="nowhere"))
    with pytest.raises(ConfigError, match="Did you mean 'masks'"):
        run_training(bad, tmp_path / "run")
