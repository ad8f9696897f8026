"""The description of a detector."""

import json

import pytest

from piip.errors import ConfigError
from piip.tasks.detection import RCNNConfig

BASE = {"classes": ["cat", "dog"], "in_channels": [8, 8, 8, 8]}


def test_round_trip_through_json():
    config = RCNNConfig.from_dict(BASE | {"pad_divisor": None, "masks": False})
    assert config.classes == ("cat", "dog")
    assert RCNNConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clases": ["a"]}, "no key 'clases'. Did you mean 'classes'"),
        ({"classes": []}, "classes is empty"),
        ({"classes": "cat"}, "classes is 'cat'; give a list"),
        ({"classes": ["cat", 3]}, "give a list with a text each"),
        ({"classes": ["cat", "cat"]}, "names 'cat' more than once"),
        ({"in_channels": [8, 8, 8]}, "in_channels has 3 entries and strides 4"),
        ({"in_channels": [8, 8, 8, 0]}, "in_channels is .*give a number from 1"),
        ({"strides": [4, 8, 16, 30]}, "each is twice the one before"),
        ({"pad_divisor": 0}, "pad_divisor is 0; give a number from 1"),
        ({"rpn_samples": True}, "rpn_samples is True"),
        ({"rpn_nms": 1.5}, "rpn_nms is 1.5; give a number from 0 to 1"),
        ({"score_threshold": float("nan")}, "score_threshold is nan"),
        ({"anchor_scale": 0.0}, "anchor_scale is 0.0; give a number above 0"),
        ({"rpn_negative_iou": 0.9}, "rpn_negative_iou .0.9. is above rpn_positive_iou"),
        ({"box_stds": [0.1, 0.1]}, "box_stds has 2 entries"),
        ({"anchor_ratios": []}, "anchor_ratios is empty"),
    ],
)
def test_impossible_settings_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        RCNNConfig.from_dict(BASE | changes)


def test_classes_are_needed():
    with pytest.raises(ConfigError, match="needs the key 'classes'"):
        RCNNConfig.from_dict({"in_channels": [8] * 4})
