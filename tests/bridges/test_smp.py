"""The decoders of segmentation_models_pytorch learn on the network, alone and from smp's list of encoders."""

import pytest
import torch

from piip.bridges import smp as bridge
from piip.config import MergingConfig
from piip.errors import ConfigError
from piip.network import PIIP
from tests.helpers import fill, tiny_config, tiny_network, without_drop_path

smp = pytest.importorskip("segmentation_models_pytorch")

NAME = "piip_tiny"
# What a decoder leaves unused of the network: levels that it does not look at.
DECODERS = {
    "Unet": (),
    "UnetPlusPlus": (),
    "MAnet": (),
    "Linknet": (),
    "FPN": (),
    "UPerNet": (),
    "Segformer": (),
    "PAN": (),
    "DeepLabV3Plus": ("levels.1.",),
    "DeepLabV3": ("levels.0.",),
    "PSPNet": ("levels.0.",),
}


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.delitem(smp.encoders.encoders, NAME, raising=False)
    bridge.register(NAME, fill(PIIP(without_drop_path(tiny_config()))))
    yield
    del smp.encoders.encoders[NAME]


def model_of(decoder, **options):
    return getattr(smp, decoder)(NAME, encoder_weights=None, classes=4, **options)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("decoder", DECODERS)
def test_decoders_learn_on_it_and_come_back(decoder, tmp_path):
    model = model_of(decoder).train()
    image = torch.randn(2, 3, 128, 160)
    loss = torch.nn.functional.cross_entropy(model(image), torch.randint(0, 4, (2, 128, 160)))
    loss.backward()
    assert loss.isfinite()
    inside = dict(model.encoder.network.named_parameters())
    unused = {name for name, p in inside.items() if p.grad is None}
    assert unused == {name for name in inside if name.startswith(DECODERS[decoder])}
    assert all(p.grad.abs().sum() > 0 for name, p in inside.items() if "pos_embed" in name)
    model.eval().save_pretrained(tmp_path)
    loaded = smp.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        masks = model(image)
        assert masks.shape == (2, 4, 128, 160)
        assert masks.std() > 0
        assert torch.equal(loaded(image), masks)


@pytest.mark.parametrize("depth", [2, 3, 5])
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_features_are_the_maps(depth, output_stride):
    network = tiny_network()
    encoder = bridge.PiipEncoder(network, depth, output_stride)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        features, maps = encoder(image), dict(zip((4, 8, 16, 32), network(image), strict=True))
    assert features[0] is image
    assert features[1].shape == (1, 0, 32, 48)
    strides = [min(stride, output_stride) for stride in (4, 8, 16, 32)][: depth - 1]
    assert len(features) == depth + 1 == len(encoder.out_channels)
    assert all(torch.equal(a, maps[s]) for a, s in zip(features[2:], strides, strict=True))
    assert encoder.out_channels == [feature.shape[1] for feature in features]
    assert encoder.output_stride == strides[-1]


def test_every_model_has_its_own_copy_of_the_weights():
    network = tiny_network()
    bridge.register(NAME, network)
    first, second = model_of("Unet"), model_of("Unet")
    state = network.state_dict()
    for model in (first, second):
        assert all(torch.equal(tensor, state[k]) for k, tensor in model.encoder.network.state_dict().items())
    next(first.encoder.network.parameters()).data.zero_()
    assert torch.equal(next(second.encoder.network.parameters()), next(network.parameters()))
    shared = bridge.PiipEncoder(network)
    assert next(shared.network.parameters()) is next(network.parameters())


def test_what_cannot_be_is_refused():
    network = tiny_network()
    with pytest.raises(ConfigError, match=r"strides \(8.0, 16.0, 32.0\)"):
        bridge.register("other", PIIP(tiny_config(merging=MergingConfig("conv", (2, 3, 4)))))
    assert "other" not in smp.encoders.encoders
    for name in ("resnet18", "tu-resnet18"):
        with pytest.raises(ConfigError, match="encoder of smp"):
            bridge.register(name, network)
    with pytest.raises(ConfigError, match="encoder_depth is 6"):
        bridge.PiipEncoder(network, depth=6)
    with pytest.raises(ConfigError, match="encoder_output_stride is 4"):
        bridge.PiipEncoder(network, output_stride=4)
    with pytest.raises(ConfigError, match="in_channels is 1"):
        model_of("Unet", in_channels=1)
    with pytest.raises(KeyError, match="imagenet"):
        smp.Unet(NAME)
