"""The whole detector: it learns, takes images of any size, and refuses damaged input."""

import math
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from piip.data.geometry import ImageMeta
from piip.errors import ConfigError, DataError
from piip.meta import on_meta
from piip.tasks.detection import RCNN, RCNNConfig
from tests.tasks.detection.toy import CHANNELS, SMALL, TinyBackbone, assert_sees_the_scene, learn, scene

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def config(**changes):
    return RCNNConfig(**(SMALL | changes))


def test_learns_one_scene_with_masks():
    torch.manual_seed(0)
    model = RCNN(config(rpn_post_nms=100, box_samples=64), TinyBackbone())
    history = learn(model, 80)
    assert history[-1] < history[0] / 2
    assert_sees_the_scene(model)


@pytest.mark.parametrize("with_objects", [True, False])
def test_every_parameter_gets_a_gradient(with_objects):
    detector = RCNN(config(), TinyBackbone()).train()
    image, target = scene()
    if not with_objects:
        target = {name: values[:0] for name, values in target.items()}
    sum(detector([image], [target]).values()).backward()
    assert [name for name, parameter in detector.named_parameters() if parameter.grad is None] == []


def test_faster_rcnn_has_no_masks_anywhere():
    image, target = scene()
    model = RCNN(config(masks=False), TinyBackbone())
    del target["masks"]
    assert set(model([image], [target])) == {"loss_rpn_cls", "loss_rpn_box", "loss_cls", "loss_box"}
    assert model.eval()([image])[0].masks is None
    assert not [name for name in model.state_dict() if "mask" in name]


def test_pyramid_is_torchvisions():
    model = RCNN(config(), TinyBackbone())
    reference = FeaturePyramidNetwork(list(CHANNELS), 16, LastLevelMaxPool())
    reference.load_state_dict(model.fpn.state_dict())
    maps = model.backbone(torch.randn(1, 3, 100, 132))
    expected = reference(OrderedDict((str(i), m) for i, m in enumerate(maps)))
    for ours, theirs in zip(model.pyramid(maps), expected.values(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("divisor", "shape"), [(32, (96, 160)), (None, (70, 130)), (224, (224, 224))])
def test_images_are_padded_at_the_bottom_and_the_right(divisor, shape):
    model = RCNN(config(pad_divisor=divisor), TinyBackbone())
    batch = model.batch([torch.ones(3, 70, 50), torch.ones(3, 33, 130)])
    assert batch.shape == (2, 3, *shape)
    assert batch[0].sum() == 3 * 70 * 50
    assert batch[1, :, :33, :130].min() == 1


@pytest.mark.parametrize("divisor", [32, None])
def test_any_sizes_in_one_batch(divisor):
    torch.manual_seed(1)
    model = RCNN(config(pad_divisor=divisor, score_threshold=0.0), TinyBackbone()).eval()
    images = [torch.randn(3, 65, 140), torch.randn(3, 131, 47)]
    for found, image in zip(model(images), images, strict=True):
        assert found.original_size == image.shape[1:]
        assert 0 < len(found) <= 100
        assert found.boxes.min() >= 0
        assert (found.boxes <= torch.tensor([image.shape[2], image.shape[1]] * 2)).all()
        assert (found.scores.diff() <= 0).all()


def test_results_are_in_pixels_of_the_original():
    torch.manual_seed(1)
    model = RCNN(config(score_threshold=0.0), TinyBackbone()).eval()
    image = torch.randn(3, 64, 96)
    meta = ImageMeta.of(7, "x.jpg", (128, 48), (64, 96))
    plain, scaled = model([image])[0], model([image], metas=[meta])[0]
    torch.testing.assert_close(scaled.boxes, plain.boxes * torch.tensor([0.5, 2.0, 0.5, 2.0]))
    assert scaled.masks[0]["size"] == [128, 48]


def test_heads_run_in_float32_under_autocast():
    image, target = scene()
    model = RCNN(config(), TinyBackbone())
    with torch.autocast("cpu", torch.bfloat16):
        losses = model([image], [target])
        assert model.backbone(image[None])[0].dtype == torch.bfloat16
    assert {loss.dtype for loss in losses.values()} == {torch.float32}


def test_same_seed_same_losses():
    image, target = scene()
    model = RCNN(config(), TinyBackbone())
    torch.manual_seed(5)
    first = model([image], [target])
    torch.manual_seed(5)
    assert first == model([image], [target])


def test_initial_values():
    model = RCNN(config(fpn_channels=64, representation_size=256, mask_channels=64), TinyBackbone())
    heads = {n: p for n, p in model.named_parameters() if not n.startswith("backbone.")}
    assert not any(p.abs().max() for n, p in heads.items() if n.endswith("bias"))

    def close(name, std):
        assert heads[name].std().item() == pytest.approx(std, rel=0.1), name

    def xavier(fan_in, fan_out):
        return math.sqrt(2 / (fan_in + fan_out))

    close("fpn.inner_blocks.3.0.weight", xavier(20, 64))
    close("fpn.layer_blocks.0.0.weight", xavier(64 * 9, 64 * 9))
    close("rpn.head.conv.0.0.weight", 0.01)
    close("box_head.layers.fc6.weight", xavier(64 * 49, 256))
    close("box_head.cls_score.weight", 0.01)
    close("box_head.bbox_pred.weight", 0.001)
    close("mask_head.layers.0.0.weight", math.sqrt(2 / (64 * 9)))


def test_builds_on_the_meta_device():
    with on_meta():
        model = RCNN(config(), TinyBackbone())
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert not list(model.buffers())
    model = model.to_empty(device="cpu")
    model.load_state_dict(RCNN(config(), TinyBackbone()).state_dict())
    model.eval()([torch.zeros(3, 64, 64)])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "no image"),
        ([torch.zeros(64, 64)], r"image 0 has the shape \(64, 64\)"),
        ([torch.zeros(3, 64, 64), torch.zeros(1, 64, 64)], r"image 1 has the shape \(1, 64, 64\)"),
        ([torch.zeros(3, 64, 64, dtype=torch.uint8)], "normalise it to float32"),
        ([torch.zeros(3, 64, 64), torch.full((3, 64, 64), math.nan)], "image 1 holds NaN"),
    ],
)
def test_damaged_images_are_named(images, message):
    with pytest.raises(DataError, match=message):
        RCNN(config(), TinyBackbone()).eval()(images)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": torch.tensor([[0.0, 0, 10, 10], [0, 0, 121, 10]])}, "Box 1 of a.jpg.*120 x 96 pixels"),
        ({"boxes": torch.tensor([[0.0, 0, 10, 10], [5, 5, 5, 10]])}, "Box 1 of a.jpg.*has no area"),
        ({"boxes": torch.tensor([[0.0, 0, 10, math.nan], [5, 5, 8, 10]])}, "Box 0 of a.jpg"),
        ({"boxes": torch.zeros(2, 5)}, r"boxes of a.jpg have the shape \(2, 5\)"),
        ({"labels": torch.tensor([0, 2])}, "a.jpg has the label 2, but the detector has the 2 classes 0..1"),
        ({"labels": torch.tensor([0, -1])}, "label -1"),
        ({"labels": torch.tensor([0.0, 1.0])}, "labels of a.jpg are torch.float32"),
        ({"labels": torch.tensor([0])}, r"labels of a.jpg have the shape \(1,\)"),
        ({"masks": torch.zeros(2, 10, 10)}, r"masks of a.jpg have the shape \(2, 10, 10\)"),
        ({"masks": None}, "The target of a.jpg has no 'masks'"),
    ],
)
def test_damaged_targets_are_named(changes, message):
    image, target = scene()
    target = {key: value for key, value in (target | changes).items() if value is not None}
    meta = ImageMeta.of(1, "a.jpg", (96, 120), (96, 120))
    with pytest.raises(DataError, match=message):
        RCNN(config(), TinyBackbone())([image], [target], [meta])


def test_targets_and_images_are_as_many():
    with pytest.raises(DataError, match="0 targets for 1 images"):
        RCNN(config(), TinyBackbone())([scene()[0]], [])


def test_a_loss_that_is_no_number_stops_the_training():
    image, target = scene()
    model = RCNN(config(), TinyBackbone())
    nn.init.constant_(model.box_head.cls_score.bias, math.inf)
    with pytest.raises(DataError, match="loss_cls is nan: the training has diverged"):
        model([image], [target])


def test_a_backbone_of_other_channels_is_refused():
    model = RCNN(config(), TinyBackbone((8, 8, 8, 8)))
    with pytest.raises(ConfigError, match=r"\(8, 8, 8, 8\) channels, but in_channels is \(8, 12, 16, 20\)"):
        model([torch.zeros(3, 64, 64)])
