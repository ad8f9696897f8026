"""What the page on other libraries shows can be run from top to bottom."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "bridges.md"


def test_every_snippet_runs():
    smp = pytest.importorskip("segmentation_models_pytorch")
    names = {}
    try:
        for snippet in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
            exec(snippet, names)
    finally:
        smp.encoders.encoders.pop("piip_nano", None)
    assert [feature.shape[2:] for feature in names["maps"]] == [(16, 20), (8, 10)]
