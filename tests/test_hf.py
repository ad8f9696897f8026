"""PIIP inside transformers: heads learn on it, and what is saved comes back."""

import subprocess
import sys

import pytest
import torch

from piip.errors import ConfigError
from piip.network import PIIP
from tests.helpers import relative_error, tiny_config, tiny_network

transformers = pytest.importorskip("transformers")
hf = pytest.importorskip("piip.hf")

SIZE = 128
LABELS = {"id2label": {0: "cat", 1: "dog", 2: "cow"}, "label2id": {"cat": 0, "dog": 1, "cow": 2}}


def config(**options):
    return hf.PiipConfig.of(tiny_config(), **options)


def pixels():
    return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def boxes():
    entry = {
        "class_labels": torch.tensor([0, 2]),
        "boxes": torch.tensor([[0.4, 0.5, 0.3, 0.4], [0.7, 0.3, 0.2, 0.2]]),
    }
    return [entry, entry]


def upernet():
    settings = transformers.UperNetConfig(
        backbone_config=config(), hidden_size=32, auxiliary_channels=16, **LABELS
    )
    labels = torch.randint(0, 3, (2, SIZE, SIZE))
    return transformers.UperNetForSemanticSegmentation(settings), {"labels": labels}


def masks():
    shapes = torch.zeros(2, SIZE, SIZE)
    shapes[0, 20:60, 20:60] = 1
    shapes[1, 70:110, 40:90] = 1
    return {"mask_labels": [shapes, shapes], "class_labels": [torch.tensor([0, 2])] * 2}


def mask2former():
    settings = transformers.Mask2FormerConfig(
        backbone_config=config(), hidden_dim=32, feature_size=32, mask_feature_size=32, encoder_layers=2,
        encoder_feedforward_dim=32, decoder_layers=2, dim_feedforward=32, num_attention_heads=4, num_queries=10,
        train_num_points=64, **LABELS,
    )  # fmt: skip
    return transformers.Mask2FormerForUniversalSegmentation(settings), masks()


def maskformer():
    decoder = transformers.DetrConfig(
        d_model=32, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=32, decoder_ffn_dim=32, num_queries=10,
        encoder_attention_heads=4, decoder_attention_heads=4,
    )  # fmt: skip
    settings = transformers.MaskFormerConfig(
        backbone_config=config(), decoder_config=decoder, fpn_feature_size=32, mask_feature_size=32, **LABELS
    )
    return transformers.MaskFormerForInstanceSegmentation(settings), masks()


def detr():
    settings = transformers.DetrConfig(
        backbone_config=config(out_features=["level4"]), d_model=32, encoder_layers=1, decoder_layers=1,
        encoder_ffn_dim=32, decoder_ffn_dim=32, encoder_attention_heads=4, decoder_attention_heads=4,
        num_queries=10, use_timm_backbone=False, **LABELS,
    )  # fmt: skip
    return transformers.DetrForObjectDetection(settings), {"labels": boxes()}


def deformable_detr():
    settings = transformers.DeformableDetrConfig(
        backbone_config=config(out_features=["level2", "level3", "level4"]), d_model=32, encoder_layers=1,
        decoder_layers=2, encoder_ffn_dim=32, decoder_ffn_dim=32, encoder_attention_heads=4,
        decoder_attention_heads=4, num_queries=10, two_stage=True, two_stage_num_proposals=10,
        with_box_refine=True, use_timm_backbone=False, **LABELS,
    )  # fmt: skip
    return transformers.DeformableDetrForObjectDetection(settings), {"labels": boxes()}


def real_time(kind):
    settings = getattr(transformers, f"{kind}Config")(
        backbone_config=config(out_features=["level2", "level3", "level4"]),
        encoder_in_channels=list(tiny_network().out_channels[1:]), encoder_hidden_dim=32, feat_strides=[8, 16, 32],
        encoder_ffn_dim=32, encoder_attention_heads=4, decoder_in_channels=[32, 32, 32], decoder_ffn_dim=32,
        decoder_attention_heads=4, d_model=32, decoder_layers=2, num_queries=20, num_denoising=4, **LABELS,
    )  # fmt: skip
    return getattr(transformers, f"{kind}ForObjectDetection")(settings), {"labels": boxes()}


HEADS = {
    "UperNet": upernet,
    "Mask2Former": mask2former,
    "MaskFormer": maskformer,
    "DETR": detr,
    "Deformable DETR": deformable_detr,
    "RT-DETR v2": lambda: real_time("RTDetrV2"),
    "D-FINE": lambda: real_time("DFine"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", HEADS)
def test_heads_learn_on_it_and_come_back(name, tmp_path):
    torch.manual_seed(0)
    model, labels = HEADS[name]()
    model.train()
    loss = model(pixel_values=pixels(), **labels).loss
    loss.backward()
    assert loss.isfinite()
    inside = {n: p for n, p in model.named_parameters() if ".network." in n}
    assert inside
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in inside.values())
    model.eval().save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    state = loaded.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    with torch.no_grad():
        expected, actual = (m(pixel_values=pixels())[0] for m in (model, loaded))
    assert relative_error(actual, expected) < 1e-6


def test_the_backbone_returns_the_networks_maps():
    network = tiny_network()
    backbone = hf.PiipBackbone.from_network(network)
    with torch.no_grad():
        maps, expected = backbone(pixels()).feature_maps, network(pixels())
    assert all(torch.equal(a, b) for a, b in zip(maps, expected, strict=True))
    assert backbone.channels == list(network.out_channels)
    two = hf.PiipBackbone.from_network(network, out_features=["level2", "level4"])
    with torch.no_grad():
        assert [m.shape[-1] for m in two(pixels()).feature_maps] == [SIZE // 8, SIZE // 32]


def test_saved_backbones_give_equal_outputs(tmp_path):
    backbone = hf.PiipBackbone.from_network(tiny_network(), out_indices=(1, 3)).eval()
    backbone.save_pretrained(tmp_path)
    settings = transformers.AutoConfig.from_pretrained(tmp_path)
    assert type(transformers.AutoBackbone.from_config(settings)) is hf.PiipBackbone
    for load in (hf.PiipBackbone.from_pretrained, transformers.AutoBackbone.from_pretrained):
        loaded = load(str(tmp_path)).eval()
        assert type(loaded) is hf.PiipBackbone
        assert loaded.out_features == ["level2", "level4"]
        with torch.no_grad():
            for a, b in zip(backbone(pixels()).feature_maps, loaded(pixels()).feature_maps, strict=True):
                assert torch.equal(a, b)


def test_other_backbones_go_the_way_of_transformers(tmp_path, monkeypatch):
    """What is no folder of ours is still asked of the Hub."""
    (tmp_path / "config.json").write_text('{"model_type": "resnet"}')
    asked = []

    class Hub:
        def repo_exists(self, name):
            asked.append(name)
            raise ConnectionError

    monkeypatch.setattr("transformers.models.auto.auto_factory.hf_api", Hub)
    for name in (str(tmp_path), "microsoft/resnet-50"):
        with pytest.raises(ConnectionError):
            transformers.AutoBackbone.from_pretrained(name)
    assert asked == [str(tmp_path), "microsoft/resnet-50"]


def test_models_give_features(tmp_path):
    settings = config()
    model = transformers.AutoModel.from_config(settings).eval()
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        cells = loaded(pixels()).last_hidden_state
        assert torch.equal(cells, model(pixels()).last_hidden_state)
    assert cells.shape == (2, (SIZE // 32) ** 2, loaded.network.out_channels[-1])


def test_building_does_not_reinitialise():
    torch.manual_seed(0)
    expected = PIIP(tiny_config()).state_dict()
    torch.manual_seed(0)
    backbone = hf.PiipBackbone(config())
    assert all(
        torch.equal(a, b)
        for a, b in zip(backbone.network.state_dict().values(), expected.values(), strict=True)
    )


def test_descriptions_survive_saving(tmp_path):
    settings = config(out_features=["level3"])
    settings.save_pretrained(tmp_path)
    loaded = transformers.AutoConfig.from_pretrained(tmp_path)
    assert loaded.network_config() == tiny_config()
    assert loaded.out_features == ["level3"]
    with pytest.raises(ConfigError):
        hf.PiipConfig(network={"branches": 3}, num_levels=1).network_config()


def test_piip_alone_does_not_import_transformers():
    program = "import sys, piip; piip.create_model('piip_nano'); assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
