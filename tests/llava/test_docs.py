"""What the page on PIIP-LLaVA shows can be run from top to bottom."""

import re
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from tests.llava.test_model import picture

PAGE = Path(__file__).parents[2] / "docs" / "llava.md"


def test_every_snippet_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    picture().save("street.jpg")
    names = {}
    for snippet in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(snippet, names)
    assert names["config"].image_seq_length == 1024
    assert len(names["chat"].turns) == 4
