"""The converted families against outputs recorded while they matched the original; needs no ../shared."""

import json

import pytest
import torch

from tests.golden.make import CASES, TARGET, outputs
from tests.helpers import relative_error

PINNED = json.loads(TARGET.read_text())


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_as_recorded(name):
    case = PINNED[name]
    for actual, expected in zip(outputs(case), case["outputs"], strict=True):
        assert relative_error(actual, torch.tensor(expected)) < 1e-5
