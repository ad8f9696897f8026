"""What the pages show."""

import ast
import re
from pathlib import Path

import pytest

PAGES = sorted((Path(__file__).parents[1] / "docs").glob("*.md"))
MODULES = {"piip", "torch", "timm", "transformers", "torchvision"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_snippets_import_what_they_use(page):
    """A page is read from top to bottom: what one snippet imports, those after it may use."""
    known: set[str] = set()
    for snippet in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        tree = list(ast.walk(ast.parse(snippet)))
        imports = [
            name for node in tree if isinstance(node, ast.Import | ast.ImportFrom) for name in node.names
        ]
        known |= {(name.asname or name.name).partition(".")[0] for name in imports}
        used = {node.id for node in tree if isinstance(node, ast.Name)} & MODULES
        assert used <= known, snippet
