import dataclasses
import json

import pytest
import torch
from safetensors.torch import save_file

from piip.convert import from_official
from piip.convert.checkpoint import convert_checkpoint, with_released_widths
from piip.errors import CheckpointError
from piip.network import PIIP
from piip.presets import get_config
from piip.tasks.classification import ImageClassifier
from piip.tasks.detection import DINO, RCNN, CascadeRCNNConfig, DINOConfig, RCNNConfig, new_detector
from piip.tasks.segmentation import Segmenter, SegmenterConfig
from tests.golden.make import TARGET
from tests.helpers import fill, official_dino, official_heads, pattern

PINNED = json.loads(TARGET.read_text())
CASE = PINNED["det3_vit"]
SMALL_HEADS = {"fpn_channels": 32, "representation_size": 32, "mask_channels": 32}


def official_backbone():
    return {name: pattern(name, torch.Size(shape)) for name, shape in CASE["tensors"].items()}


@pytest.fixture
def network():
    return from_official(CASE["config"], official_backbone())


@pytest.fixture
def detector(network):
    config = RCNNConfig(("cat", "dog"), network.out_channels, **SMALL_HEADS)
    detector = fill(RCNN(config, network))
    network.load_state_dict(from_official(CASE["config"], official_backbone()).state_dict())
    return detector.eval()


def release(path, detector, **further):
    """Write a file as the original's training does."""
    state = {f"backbone.{name}": value for name, value in official_backbone().items()}
    heads = {k: v for k, v in detector.state_dict().items() if not k.startswith("backbone.")}
    torch.save({"state_dict": state | official_heads(heads) | further, "meta": {"epoch": 12}}, path)


def test_a_released_dino_becomes_ours(tmp_path, network):
    """The three-branch class keeps the finest level, which DINO does not read, among its tensors."""
    config = network.config.replace(
        merging=dataclasses.replace(network.config.merging, pyramid_levels=(2, 3, 4))
    )
    network = PIIP(config)
    head = DINOConfig(("cat", "dog"), network.out_channels, embed_dim=32, encoder_depth=1, decoder_depth=1)
    dino = fill(DINO(head, network)).eval()
    heads = official_dino({k: v for k, v in dino.state_dict().items() if not k.startswith("backbone.")})
    state = {f"backbone.{name}": value for name, value in official_backbone().items()}
    torch.save({"state_dict": state | heads}, tmp_path / "released.pth")
    converted = convert_checkpoint(tmp_path / "released.pth", config, head)
    assert isinstance(converted, DINO)
    for name, theirs in converted.state_dict().items():
        if not name.startswith("backbone."):
            assert torch.equal(dino.state_dict()[name], theirs), name
    assert len(converted([torch.randn(3, 128, 160)])[0]) > 0


def test_a_released_detector_becomes_ours(tmp_path, network, detector):
    release(tmp_path / "released.pth", detector)
    converted = convert_checkpoint(tmp_path / "released.pth", network.config, detector.config)
    assert isinstance(converted, RCNN)
    assert not converted.training
    for (name, ours), theirs in zip(
        detector.state_dict().items(), converted.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name
    image = torch.randn(3, 128, 160)
    assert torch.equal(detector([image])[0].boxes, converted([image])[0].boxes)


def test_a_cascade_becomes_ours(tmp_path, network, detector):
    config = CascadeRCNNConfig(("cat", "dog"), network.out_channels, **SMALL_HEADS)
    cascade = fill(new_detector(config, network))
    network.load_state_dict(from_official(CASE["config"], official_backbone()).state_dict())
    release(tmp_path / "released.pth", cascade)
    converted = convert_checkpoint(tmp_path / "released.pth", network.config, config)
    assert converted.config == config
    for (name, ours), theirs in zip(
        cascade.state_dict().items(), converted.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs), name
    with pytest.raises(CheckpointError, match=r"box_heads\.0\.cls_score"):
        convert_checkpoint(tmp_path / "released.pth", network.config, detector.config)


def test_the_network_alone_is_taken_from_bare_tensors(tmp_path, network):
    torch.save(
        {"module": {f"backbone.{k}": v for k, v in official_backbone().items()}}, tmp_path / "deepspeed.pth"
    )
    converted = convert_checkpoint(tmp_path / "deepspeed.pth", network.config)
    assert isinstance(converted, PIIP)
    assert all(torch.equal(a, b) for a, b in zip(converted.parameters(), network.parameters(), strict=True))


def test_a_segmenter_gives_its_network(tmp_path, network):
    heads = {"decode_head.conv_seg.weight": torch.ones(1), "auxiliary_head.conv_seg.weight": torch.ones(1)}
    inside = {f"backbone.{name}": value for name, value in official_backbone().items()}
    torch.save({"state_dict": inside | heads}, tmp_path / "segmenter.pth")
    assert isinstance(convert_checkpoint(tmp_path / "segmenter.pth", network.config), PIIP)
    torch.save({"state_dict": inside | {"tail.weight": torch.ones(1)}}, tmp_path / "strange.pth")
    with pytest.raises(CheckpointError, match=r"1 unknown: tail.weight"):
        convert_checkpoint(tmp_path / "strange.pth", network.config)


def test_a_released_segmenter_becomes_ours(tmp_path, network):
    pytest.importorskip("transformers")
    config = SegmenterConfig(("sky", "road", "car"), network.out_channels, channels=16, inference="whole")
    segmenter = fill(Segmenter(config, network)).eval()
    network.load_state_dict(from_official(CASE["config"], official_backbone()).state_dict())
    heads = {k: v for k, v in segmenter.state_dict().items() if not k.startswith("backbone.")}
    back = (("auxiliary.", "auxiliary_head."), ("head.", "decode_head."))
    named = {}
    for name, tensor in heads.items():
        old, new = next(pair for pair in back if name.startswith(pair[0]))
        inner = name.removeprefix(old).replace("classifier.", "conv_seg.").replace("batch_norm.", "bn.")
        named[new + inner] = tensor
    inside = {f"backbone.{name}": value for name, value in official_backbone().items()}
    torch.save({"state_dict": inside | named}, tmp_path / "released.pth")
    converted = convert_checkpoint(tmp_path / "released.pth", network.config, config)
    assert isinstance(converted, Segmenter)
    image = torch.randn(1, 3, 128, 160)
    with torch.no_grad():
        assert torch.equal(converted(image), segmenter(image))
    del named["decode_head.conv_seg.bias"]
    torch.save({"state_dict": inside | named}, tmp_path / "short.pth")
    with pytest.raises(CheckpointError, match=r"head\.classifier\.bias"):
        convert_checkpoint(tmp_path / "short.pth", network.config, config)


@pytest.mark.parametrize("name", ["cls3_tokens", "cls3_merge"])
def test_a_released_classifier_keeps_its_heads(tmp_path, name):
    case = PINNED[name]
    tensors = {key: pattern(key, torch.Size(shape)) for key, shape in case["tensors"].items()}
    expected = from_official(case["config"], tensors)
    torch.save({"model": tensors, "model_ema": {}}, tmp_path / "classifier.pth")
    converted = convert_checkpoint(tmp_path / "classifier.pth", expected.network.config)
    assert isinstance(converted, ImageClassifier)
    image = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        assert torch.equal(converted(image), expected(image))
    with pytest.raises(CheckpointError, match="heads do not fit the network"):
        convert_checkpoint(tmp_path / "classifier.pth", get_config("piip_nano"))


@pytest.mark.parametrize("sharded", [False, True])
def test_the_vision_tower_of_a_llava(tmp_path, sharded):
    case = PINNED["llava2_mix"]
    tensors = {key: pattern(key, torch.Size(shape)) for key, shape in case["tensors"].items()}
    expected = from_official(case["config"], tensors)
    tower = {f"model.vision_tower.vision_tower.{key}": value for key, value in tensors.items()}
    language = {"model.layers.0.mlp.weight": torch.ones(2), "model.mm_projector.0.weight": torch.ones(2)}
    language["lm_head.weight"] = torch.ones(2)
    if sharded:
        save_file(tower, tmp_path / "model-00001-of-00002.safetensors")
        save_file(language, tmp_path / "model-00002-of-00002.safetensors")
    else:
        torch.save(tower | language, tmp_path / "llava.bin")
    source = tmp_path if sharded else tmp_path / "llava.bin"
    converted = convert_checkpoint(source, expected.config)
    assert isinstance(converted, PIIP)
    assert all(torch.equal(a, b) for a, b in zip(converted.parameters(), expected.parameters(), strict=True))


@pytest.mark.parametrize(
    ("further", "message"),
    [
        ({"backbone.branch1.surprise": torch.ones(1)}, r"1 unknown: .*surprise"),
        ({"neck.surprise": torch.ones(1)}, "surprise"),
    ],
)
def test_unknown_tensors_are_listed(tmp_path, network, detector, further, message):
    release(tmp_path / "released.pth", detector, **further)
    with pytest.raises(CheckpointError, match=message):
        convert_checkpoint(tmp_path / "released.pth", network.config, detector.config)


def test_a_network_is_no_detector(tmp_path, network, detector):
    torch.save(official_backbone(), tmp_path / "backbone.pth")
    with pytest.raises(CheckpointError, match="a network without a head"):
        convert_checkpoint(tmp_path / "backbone.pth", network.config, detector.config)


def test_branch_four_keeps_the_width_that_was_trained():
    config = get_config("piip_tsbl_1344_896_672_448")
    small = {f"branch{number}.patch_embed.proj.weight": torch.empty(384, 3, 16, 16) for number in (3, 4)}
    trained = with_released_widths(config, small)
    assert trained.branches[:3] == config.branches[:3]
    assert trained.branches[3] == dataclasses.replace(
        config.branches[2],
        image_size=config.branches[3].image_size,
        interaction_indexes=config.branches[3].interaction_indexes,
    )
    intended = small | {"branch4.patch_embed.proj.weight": torch.empty(192, 3, 16, 16)}
    assert with_released_widths(config, intended) == config
