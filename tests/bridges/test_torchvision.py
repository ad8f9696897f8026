"""torchvision's detectors and segmenters learn on the network, find things with it, and come back."""

import pytest
import torch
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.segmentation import FCN, DeepLabV3
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.models.segmentation.fcn import FCNHead
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from piip.bridges.torchvision import BackboneWithFPN, NamedMaps
from piip.config import MergingConfig
from piip.errors import ConfigError, DataError
from piip.network import PIIP
from tests.helpers import fill, tiny_branch, tiny_config, tiny_network, without_drop_path

WIDTH = 32
THREE_LEVELS = MergingConfig("conv", (2, 3, 4))
SIDES = {"min_size": 96, "max_size": 128}


def network(**changes):
    return fill(PIIP(without_drop_path(tiny_config(**changes))))


def two_stage(model_class):
    return model_class(BackboneWithFPN(network(), WIDTH), 3, **SIDES, box_detections_per_img=5)


def one_stage(model_class):
    backbone = BackboneWithFPN(network(merging=THREE_LEVELS), WIDTH, extra_blocks=LastLevelP6P7(WIDTH, WIDTH))
    return model_class(backbone, 3, **SIDES, score_thresh=0.0, topk_candidates=20, detections_per_img=5)


DETECTORS = {FasterRCNN: two_stage, MaskRCNN: two_stage, RetinaNet: one_stage, FCOS: one_stage}


def photographs():
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(3, *size, generator=generator) for size in ((90, 130), (120, 100))]


def targets():
    boxes = torch.tensor([[10.0, 20.0, 60.0, 70.0], [30.0, 5.0, 90.0, 50.0]])
    labels = torch.tensor([1, 2])
    masks = [torch.ones(2, *image.shape[1:], dtype=torch.uint8) for image in photographs()]
    return [{"boxes": boxes, "labels": labels, "masks": mask} for mask in masks]


@pytest.mark.parametrize("model_class", DETECTORS, ids=lambda c: c.__name__)
def test_detectors_learn_on_it_and_come_back(model_class, tmp_path):
    model = DETECTORS[model_class](model_class).train()
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    loss = sum(model(photographs(), targets()).values())
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None for p in model.parameters())
    inside = dict(model.backbone.body.network.named_parameters())
    assert not [name for name, p in inside.items() if not p.grad.abs().sum() > 0]
    before = {name: p.detach().clone() for name, p in inside.items()}
    optimizer.step()
    assert any(not torch.equal(before[name], p) for name, p in inside.items())
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    other = DETECTORS[model_class](model_class)
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    with torch.no_grad():
        found, again = model.eval()(photographs()), other.eval()(photographs())
    for ours, theirs, photograph in zip(found, again, photographs(), strict=True):
        assert len(ours["boxes"]) == 5
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
        limits = torch.tensor(photograph.shape[1:]).flip(0).repeat(2)
        assert bool((ours["boxes"] >= 0).all() and (ours["boxes"] <= limits).all())


@pytest.mark.parametrize("levels", [None, (1, 2, 3), (2,)])
def test_detectors_get_maps_of_the_networks_strides(levels):
    backbone = BackboneWithFPN(tiny_network(), WIDTH, levels).eval()
    with torch.no_grad():
        image = torch.randn(1, 3, 96, 160)
        body, maps = backbone.body(image), backbone(image)
        expected = backbone.body.network(image)
    chosen = levels or (0, 1, 2, 3)
    assert list(body) == [str(index) for index in range(len(chosen))]
    assert all(torch.equal(body[str(name)], expected[index]) for name, index in enumerate(chosen))
    assert list(maps) == [*body, "pool"]
    assert all(maps[name].shape[2:] == body[name].shape[2:] for name in body)
    assert {feature.shape[1] for feature in maps.values()} == {WIDTH} == {backbone.out_channels}


def test_boxes_lie_where_the_maps_say():
    # torchvision takes the strides of anchors and of its pooling from the sizes of image and maps.
    model = two_stage(FasterRCNN).eval()
    images, _ = model.transform(photographs())
    with torch.no_grad():
        maps = list(model.backbone(images.tensors).values())
        model.roi_heads.box_roi_pool(
            dict(zip("0123", maps, strict=False)), [torch.ones(1, 4)] * 2, images.image_sizes
        )
    size = images.tensors.shape[-2:]
    assert [size[0] / feature.shape[2] for feature in maps[:4]] == [4, 8, 16, 32]
    assert model.roi_heads.box_roi_pool.scales == [1 / 4, 1 / 8, 1 / 16, 1 / 32]


@pytest.mark.parametrize(("model_class", "head"), [(DeepLabV3, DeepLabHead), (FCN, FCNHead)])
def test_segmenters_learn_on_it(model_class, head):
    backbone = NamedMaps(network(), {0: "out", 2: "aux"})
    channels = backbone.channels
    model = model_class(backbone, head(channels["out"], 4), FCNHead(channels["aux"], 4)).train()
    maps = model(torch.randn(2, 3, 90, 64))
    assert {name: feature.shape for name, feature in maps.items()} == dict.fromkeys(
        ("out", "aux"), (2, 4, 90, 64)
    )
    sum(feature.square().mean() for feature in maps.values()).backward()
    assert backbone.network.branches[0].patch_embed.proj.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("names", [{4: "out"}, {-1: "out"}, {}])
def test_wrong_maps_are_refused(names):
    with pytest.raises(ConfigError, match="choose some of 0 to 3"):
        NamedMaps(tiny_network(), names)


@pytest.mark.parametrize(
    ("merging", "patch_size", "levels"),
    [
        (MergingConfig(), 14, None),
        (MergingConfig(), 16, (0, 2)),
        (MergingConfig(), 16, (3, 2)),
        (MergingConfig("none", ()), 16, None),
    ],
)
def test_strides_that_detectors_would_take_wrongly_are_refused(merging, patch_size, levels):
    branches = [tiny_branch(32, size, patch_size=patch_size, options={"img_size": 112}) for size in (56, 112)]
    config = tiny_config(branches=tuple(branches), merging=merging)
    with pytest.raises(ConfigError, match="powers of two"):
        BackboneWithFPN(PIIP(config), WIDTH, levels)


def test_images_that_are_padded_too_little_are_refused():
    branch = tiny_branch(32, 128, patch_size=32)
    backbone = BackboneWithFPN(PIIP(tiny_config(branches=(branch,))), WIDTH)
    with pytest.raises(DataError, match="size_divisible=64"):
        backbone(torch.randn(1, 3, 96, 128))
    model = FasterRCNN(backbone, 3, **SIDES, size_divisible=64, box_detections_per_img=2).eval()
    with torch.no_grad():
        assert len(model(photographs())) == 2
