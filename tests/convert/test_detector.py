"""Names of the original's detector heads."""

import json

import pytest
import torch
from torch import nn

from piip.convert.detector import detector_state_dict
from piip.errors import CheckpointError
from piip.meta import on_meta
from piip.tasks.detection import RCNN, CascadeRCNNConfig, RCNNConfig, new_detector
from tests.helpers import official_heads


def released_shapes(shared):
    return json.loads((shared / "golden/heads/keys_released.json").read_text())["mask_rcnn_deit_sbl"]


def test_released_checkpoints_fit_one_to_one(shared):
    shapes = released_shapes(shared)
    official = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    config = RCNNConfig(classes=tuple(f"class {i}" for i in range(80)), in_channels=(1024,) * 4)
    with on_meta():
        model = RCNN(config, nn.Identity())
    ours = detector_state_dict(official)
    assert len(ours) == 42
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in model.state_dict().items()}
    assert {n: list(t.shape) for n, t in official_heads(ours).items()} == shapes


@pytest.mark.parametrize("kind", [RCNNConfig, CascadeRCNNConfig])
@pytest.mark.parametrize("masks", [True, False])
def test_round_trip(kind, masks):
    config = kind(
        classes=("a",),
        in_channels=(4,) * 4,
        masks=masks,
        fpn_channels=4,
        representation_size=8,
        mask_channels=4,
    )
    state = new_detector(config, nn.Identity()).state_dict()
    official = official_heads(state)
    assert all(name.startswith(("neck.", "rpn_head.", "roi_head.")) for name in official)
    again = detector_state_dict(official)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)


def test_every_unknown_and_missing_tensor_is_listed():
    config = RCNNConfig(classes=("a",), in_channels=(4,) * 4, fpn_channels=4, mask_channels=4)
    with on_meta():
        official = official_heads(RCNN(config, nn.Identity()).state_dict())
    del official["rpn_head.rpn_cls.bias"]
    official["roi_head.bbox_head.0.fc_cls.weight"] = torch.zeros(1)
    with pytest.raises(CheckpointError) as caught:
        detector_state_dict(official)
    assert "unknown tensors: roi_head.bbox_head.0.fc_cls.weight" in str(caught.value)
    assert "missing tensors: rpn_head.rpn_cls.bias" in str(caught.value)


def test_names_of_a_cascade():
    config = CascadeRCNNConfig(classes=("a", "b"), in_channels=(4,) * 4, fpn_channels=4, mask_channels=4)
    with on_meta():
        official = official_heads(new_detector(config, nn.Identity()).state_dict())
    assert len(official) == 22 + 3 * (8 + 12)
    assert official["roi_head.bbox_head.2.fc_reg.weight"].shape == (4, 1024)  # one box for all classes
    assert official["roi_head.bbox_head.0.shared_fcs.1.bias"].shape == (1024,)
    assert official["roi_head.mask_head.1.convs.3.conv.weight"].shape == (4, 4, 3, 3)
    assert official["roi_head.mask_head.2.conv_logits.weight"].shape == (2, 4, 1, 1)
    del official["roi_head.bbox_head.1.fc_cls.bias"]
    official["roi_head.mask_head.conv_logits.bias"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match="do not fit a Cascade R-CNN") as caught:
        detector_state_dict(official)
    assert "unknown tensors: roi_head.mask_head.conv_logits.bias;" in str(caught.value)
    assert "missing tensors: roi_head.bbox_head.1.fc_cls.bias." in str(caught.value)
