"""Names of the original's DINO heads, at released sizes."""

import json

import pytest
from torch import nn

from piip.convert.dino import dino_name
from piip.errors import CheckpointError
from piip.meta import on_meta
from piip.tasks.detection import DINO, DINOConfig
from tests.helpers import official_dino


def test_every_released_key_has_its_place(shared):
    tables = json.loads((shared / "golden" / "heads" / "keys_released.json").read_text())
    table = next(table for name, table in tables.items() if "dino" in name.lower())
    table = {key: shape for key, shape in table.items() if not key.startswith("backbone.")}
    channels = table["neck.convs.0.conv.weight"][1]
    config = DINOConfig(tuple(f"class {i}" for i in range(80)), (channels,) * 3)
    with on_meta():
        model = DINO(config, nn.Identity())
    ours = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert {dino_name(key): shape for key, shape in table.items()} == ours


def test_all_of_ours_have_a_name_of_theirs():
    with on_meta():
        state = DINO(DINOConfig(("cat",), (8,) * 3), nn.Identity()).state_dict()
    assert len(official_dino(state)) == len(state) == 309


def test_foreign_tensors_are_refused():
    with pytest.raises(CheckpointError, match=r"neck\.lateral_convs\.0\.conv\.weight belongs to no DINO"):
        dino_name("neck.lateral_convs.0.conv.weight")
