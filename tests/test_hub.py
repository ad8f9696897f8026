import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from piip.config import MergingConfig
from piip.errors import CheckpointError, ConfigError, PiipError
from piip.hub import from_pretrained, save_pretrained
from piip.network import PIIP
from piip.tasks.classification import ClassifierConfig, ImageClassifier
from piip.tasks.detection import DINO, RCNN, Detector, DINOConfig, RCNNConfig
from tests.helpers import fill, hierarchical_config, rotary_config, tiny_config


def network():
    return fill(PIIP(tiny_config())).eval()


def rotary():
    return fill(PIIP(rotary_config())).eval()


def classifier():
    config = tiny_config(merging=MergingConfig("none", pyramid_levels=()))
    return fill(ImageClassifier(ClassifierConfig(3), PIIP(config))).eval()


def detector():
    backbone = PIIP(hierarchical_config())
    config = RCNNConfig(("cat", "dog"), backbone.out_channels, fpn_channels=32, representation_size=32)
    return fill(RCNN(config, backbone)).eval()


def dino():
    backbone = PIIP(tiny_config(merging=MergingConfig(pyramid_levels=(2, 3, 4))))
    size = {"embed_dim": 32, "encoder_depth": 1, "decoder_depth": 1, "ffn_dim": 32, "num_queries": 20}
    return fill(DINO(DINOConfig(("cat", "dog"), backbone.out_channels, **size), backbone)).eval()


@pytest.mark.parametrize("build", [network, rotary, classifier, detector, dino])
def test_round_trip_keeps_class_description_and_outputs(tmp_path, build):
    model = build()
    save_pretrained(model, tmp_path / "model", {"note": [1, 2]})
    loaded = from_pretrained(tmp_path / "model")
    assert type(loaded) is type(model)
    assert loaded.config == model.config
    assert not loaded.training
    assert {p.name for p in (tmp_path / "model").iterdir()} == {"config.json", "model.safetensors"}
    for (name, value), other in zip(model.state_dict().items(), loaded.state_dict().values(), strict=True):
        assert torch.equal(value, other), name
    image = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        outputs = [torch.cat([x.flatten() for x in outputs_of(m, image)]) for m in (model, loaded)]
    assert torch.equal(*outputs)


def outputs_of(model, image):
    if not isinstance(model, Detector):
        return model(image)
    found = model(image)[0]
    return [*model.pyramid(model.backbone(image)), found.boxes, found.scores, found.labels]


def test_a_second_save_replaces_the_first(tmp_path):
    save_pretrained(network(), tmp_path)
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"old shard")
    save_pretrained(classifier(), tmp_path)
    assert isinstance(from_pretrained(tmp_path), ImageClassifier)


def test_a_failing_save_leaves_the_earlier_model(tmp_path, monkeypatch):
    save_pretrained(network(), tmp_path)

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("piip.hub.save_torch_state_dict", full)
    with pytest.raises(PiipError, match=r"No space left on device\. Free some space"):
        save_pretrained(classifier(), tmp_path)
    assert isinstance(from_pretrained(tmp_path), PIIP)
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", "model.safetensors"}


def poison(path):
    state = load_file(path)
    state["mergings.0.weights.0"].fill_(float("nan"))
    save_file(state, path)


def change(folder, **values):
    description = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(description | values))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "config.json is missing"),
        (lambda f: (f / "config.json").write_text("{"), "is damaged"),
        (lambda f: (f / "config.json").write_text("[]"), "does not describe a piip model"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 20), "damaged or no safetensors file"),
        (lambda f: (f / "model.safetensors").unlink(), "missing: branches"),
        (lambda f: poison(f / "model.safetensors"), "holds NaN or infinity"),
        (lambda f: change(f, kind="tracker"), "describes a 'tracker'"),
        (lambda f: change(f, network={"branches": []}), "describes no possible model: branches is empty"),
    ],
)
def test_damaged_models_are_named(tmp_path, damage, message):
    save_pretrained(network(), tmp_path)
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        from_pretrained(tmp_path)


def test_metadata_that_is_no_json_is_refused_before_anything_is_touched(tmp_path):
    save_pretrained(network(), tmp_path)
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(ConfigError, match=r"The metadata cannot be saved \(.*Tensor"):
        save_pretrained(network(), tmp_path, {"mean": torch.zeros(3)})
    assert (tmp_path / "config.json").read_text() == before


def test_a_run_is_loaded_through_its_model(tmp_path):
    save_pretrained(network(), tmp_path / "model")
    assert isinstance(from_pretrained(tmp_path), PIIP)


def test_a_revision_can_be_chosen(tmp_path, monkeypatch):
    asked = {}

    def snapshot(repo, **options):
        asked.update(options, repo=repo)
        return str(tmp_path)

    save_pretrained(network(), tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert isinstance(from_pretrained("owner/name", revision="v1"), PIIP)
    assert (asked["repo"], asked["revision"]) == ("owner/name", "v1")


def test_missing_folders_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="There is no model folder"):
        from_pretrained(tmp_path / "nothing" / "here")


def test_failing_downloads_are_one_sentence(monkeypatch):
    def offline(*args, **options):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(CheckpointError, match="nobody/nothing is no path here and could not be downloaded"):
        from_pretrained("nobody/nothing")


def test_other_models_cannot_be_saved(tmp_path):
    with pytest.raises(ConfigError, match="Linear cannot be saved"):
        save_pretrained(nn.Linear(2, 2), tmp_path)
