import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from piip.config import InteractionConfig, MergingConfig, PIIPConfig
from piip.cost import executed_cost, run_detector
from piip.cost.executed import SAMPLE_MACS
from piip.errors import ConfigError, DataError
from piip.network import PIIP, build_on_meta
from piip.presets import get_config
from piip.tasks.classification import ClassifierConfig, ImageClassifier
from piip.tasks.detection import DINO, RCNN, CascadeRCNN, CascadeRCNNConfig, DINOConfig, RCNNConfig
from tests.helpers import hierarchical_config, tiny_branch, tiny_config, tiny_network


@pytest.fixture(scope="module")
def tiny():
    return executed_cost(tiny_network(), 128, 128)


def counted_by_torch(model, image):
    """Linear layers, convolutions and attention only, the last as the matrix products that torch always counts."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(image)
    return counter.get_total_flops() // 2


def test_a_branch_by_hand(tiny):
    tokens, dim = 16, 64
    per_token = 3 * 256 + 16  # the patch, and its position resized from 4 x 4, also to 4 x 4
    assert tiny["branch1.embed"].macs == tokens * per_token * dim
    assert tiny["branch1.blocks"].macs == 2 * (12 * tokens * dim**2 + 2 * tokens**2 * dim)
    # Branch 2 has 36 tokens in four windows of 3 x 3, which fill its grid.
    windows = 4 * 2 * 9**2 * 48
    assert tiny["branch2.blocks"].macs == 2 * (12 * 36 * 48**2 + windows)
    assert tiny["branch2.embed"].macs == 36 * per_token * 48


def test_interactions_merging_and_pyramid_by_hand():
    branches = (tiny_branch(64, 64), tiny_branch(32, 128))
    config = PIIPConfig(branches, InteractionConfig(num_heads=4, num_points=3, links=((2, 1),)))
    table = executed_cost(PIIP(config), 128, 128)
    query, source, dim, values = 16, 64, 64, 32
    one = (
        source * 32 * dim  # projection
        + query * dim * 4 * 3 * 3  # offsets and weights
        + source * dim * values
        + query * values * dim
        + 5 * query * 3 * values  # sampling
        + query * (2 * dim * 16 + 9 * 16)  # feed-forward
    )
    assert table["interaction"].macs == 2 * one
    convs = 9 * 64 * 64 * query + 9 * 64 * 64 * query + 9 * 32 * 64 * source + 9 * 64 * 64 * source
    assert table["merge"].macs == convs + 4 * 64 * source  # branch 1 is resized to 8 x 8
    up = 4 * 64 * 64
    assert table["pyramid"].macs == source * up + 4 * source * up + source * up
    assert table["image"].macs == 4 * 3 * 64 * 64


@pytest.mark.parametrize("config", [tiny_config(), hierarchical_config()], ids=["vit", "convnext"])
def test_the_parts_are_the_whole(config):
    model = PIIP(config).eval()
    table = executed_cost(model, 128, 96)
    sampled = table.macs - counted_by_torch(model, torch.randn(1, 3, 128, 96))
    assert 0 < sampled < 0.02 * table.macs
    assert table.params == table.trainable == sum(p.numel() for p in model.parameters())
    assert sum(part.macs for part in table.parts) == table.macs


def test_memory_is_what_autograd_keeps():
    model = tiny_network().train()
    image = torch.randn(2, 3, 128, 128)
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), image]}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        maps = model(image)
    kept |= {feature.untyped_storage().data_ptr(): feature.untyped_storage().nbytes() for feature in maps}
    table = executed_cost(model, 128, 128, batch=2)
    assert table.train_bytes == pytest.approx(sum(kept.values()), rel=0.005)
    assert 0 < table.peak_bytes < table.train_bytes


def test_memory_follows_settings(tiny):
    model = tiny_network()
    half = executed_cost(model, 128, 128, dtype=torch.bfloat16)
    assert half.macs == tiny.macs
    assert 0.5 < half.train_bytes / tiny.train_bytes < 0.8  # sampling stays in float32
    model.set_grad_checkpointing()
    recomputed = executed_cost(model, 128, 128)
    assert recomputed["branch1.blocks"].train_bytes < 0.3 * tiny["branch1.blocks"].train_bytes
    frozen = executed_cost(tiny_network().freeze([1]), 128, 128)
    assert frozen["branch1.blocks"].trainable == 0 < frozen["branch1.blocks"].params
    assert frozen["branch1.blocks"].train_bytes < tiny["branch1.blocks"].train_bytes


def test_the_model_is_left_as_it_was():
    model = tiny_network()
    model.branches[0].train()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    executed_cost(model, 128, 128)
    assert model.branches[0].training
    assert not model.branches[1].training
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    assert "embed" not in vars(model.branches[0])
    assert "forward" not in vars(model.interactions[0])


def test_padding_is_executed_too():
    model = tiny_network()
    whole = executed_cost(model, 128, 128)
    padded = executed_cost(model, 100, 70)
    assert padded.macs == whole.macs
    assert executed_cost(model, 128, 128, batch=3)["branch3.blocks"].macs == 3 * whole["branch3.blocks"].macs


def test_shared_weights_are_one_part():
    config = PIIPConfig((tiny_branch(32, 64), tiny_branch(32, 128)), None, shared_weights=True)
    table = executed_cost(PIIP(config), 128, 128)
    assert table["branches.embed"].macs == (16 + 64) * (3 * 256 + 16) * 32
    assert table.params == sum(p.numel() for p in PIIP(config).parameters())


def test_a_classifier_around_the_network():
    config = tiny_config(merging=MergingConfig("none", ()))
    model = ImageClassifier(ClassifierConfig(num_classes=10), PIIP(config))
    table = executed_cost(model, 128, 128)
    assert table["heads"].macs == (64 + 48 + 32) * 10
    assert table["norms"].params == 2 * (64 + 48 + 32)


def test_a_detector_around_the_network():
    network = PIIP(tiny_config())
    config = RCNNConfig(classes=("a", "b"), in_channels=network.out_channels, fpn_channels=32)
    table = executed_cost(RCNN(config, network), 128, 128, run=run_detector)
    width = 1024
    per_box = 32 * 49 * width + width**2 + width * (3 + 2 * 4)
    assert table["box_head"].macs == 1000 * per_box
    assert table["rpn"].macs > 0
    assert table["fpn"].macs > 0
    assert table["mask_head"].macs > 0
    assert table["branch1.blocks"].macs == executed_cost(network, 128, 128)["branch1.blocks"].macs


def test_every_stage_of_a_cascade_costs():
    network = PIIP(tiny_config())
    small = {"fpn_channels": 16, "representation_size": 32, "mask_channels": 16}
    config = CascadeRCNNConfig(("a", "b"), network.out_channels, rpn_post_nms=50, **small)
    detector = CascadeRCNN(config, network)
    table = executed_cost(detector, 128, 128, run=run_detector)
    per_box = 16 * 49 * 32 + 32**2 + 32 * (3 + 4)
    assert table["box_heads"].macs == 3 * 50 * per_box
    rcnn = RCNN(RCNNConfig(("a", "b"), network.out_channels, **small), network)
    single = executed_cost(rcnn, 128, 128, run=run_detector)
    assert table["mask_heads"].macs == 3 * single["mask_head"].macs > 0
    assert table.params == sum(p.numel() for p in detector.parameters())


def test_a_dino_around_the_network():
    network = PIIP(tiny_config(merging=MergingConfig(pyramid_levels=(2, 3, 4))))
    config = DINOConfig(("a", "b"), network.out_channels, encoder_depth=2, decoder_depth=3)
    table = executed_cost(DINO(config, network), 128, 128, run=run_detector)
    with torch.no_grad():
        grids = [x.shape[-2] * x.shape[-1] for x in network(torch.zeros(1, 3, 128, 128))]
    last = 2 * 2
    tokens, width, points, ffn = sum(grids) + last, 256, 8 * 4 * 4, 2048
    inputs = [
        *(c * n for c, n in zip(network.out_channels, grids, strict=True)),
        9 * network.out_channels[-1] * last,
    ]
    assert table["neck"].macs == width * sum(inputs)
    per_token = width * (3 * points + 2 * width + 2 * ffn) + SAMPLE_MACS * points * width // 8
    assert table["encoder"].macs == 2 * tokens * per_token
    queries = min(900, tokens)
    own = 4 * width**2 + 2 * width * queries
    values = tokens * width**2
    assert table["decoder"].macs == 3 * (queries * (per_token - width**2 + own) + values)


def test_the_released_network_as_the_original_was_measured():
    """SPEED.md, section 1: 375.2 G without sampling and resizing."""
    table = executed_cost(build_on_meta(get_config("piip_tsb_1120_896_448")), 1120, 1120)
    giga = {
        name: sum(part.macs for part in table.parts if part.name.endswith(name)) / 1e9
        for name in (".blocks", ".embed", "interaction", "merge", "pyramid")
    }
    assert giga[".blocks"] == pytest.approx(172.1, abs=0.05)
    assert giga[".embed"] == pytest.approx(2.1, abs=0.06)
    assert giga["interaction"] == pytest.approx(65.8 + 0.47, abs=0.05)
    assert giga["merge"] == pytest.approx(65.8, abs=0.05)
    assert giga["pyramid"] == pytest.approx(69.4, abs=0.05)
    assert table.macs / 1e9 == pytest.approx(375.2 + 0.6, abs=0.1)
    assert round(table.params / 1e6, 1) == 175.0


def test_what_cannot_be_measured():
    with pytest.raises(ConfigError, match="Linear contains no PIIP"):
        executed_cost(nn.Linear(2, 2), 32, 32)
    model = PIIP(tiny_config(size_divisor=1))
    with pytest.raises(DataError, match="needs at least"):
        executed_cost(model, 16, 16)
    assert "embed" not in vars(model.branches[0])


def test_tables_show_the_memory(tiny):
    lines = tiny.to_text().splitlines()
    assert "kept for backward (MiB)" in lines[0]
    assert lines[-2].startswith("Peak of activations in inference")
    assert tiny.to_dict()["total"]["peak_bytes"] == tiny.peak_bytes
