"""docs/architecture.md leads to what is there: its files exist, and its walks name what is defined in them."""

import ast
import re
from pathlib import Path

import pytest

from tests.support import ROOT

PACKAGE = ROOT / "src" / "flambeau"
TEXT = (ROOT / "docs" / "architecture.md").read_text()
[SECTION] = re.findall(r"^## Some walks\n\n(.*?)\n\n##", TEXT, flags=re.DOTALL | re.MULTILINE)
WALKS = SECTION.removeprefix("* ").split("\n* ")


def defined(file: Path) -> set[str]:
    """The names of classes, functions and constants in a module, at any depth."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


def test_every_file_that_is_named_is_there() -> None:
    folders = [ROOT / each for each in ("src", "tests", "scripts")]
    there = [f"/{file.relative_to(ROOT)}" for folder in folders for file in folder.rglob("*.py")]
    named = set(re.findall(r"`([\w/.-]+\.py)`", TEXT)) - {"file.py"}
    templates = {name for name in named if name.endswith("NAME.py")}
    gone = {name for name in named - templates if not any(each.endswith(f"/{name}") for each in there)}
    assert len(named) > 200
    assert not gone


@pytest.mark.parametrize("walk", WALKS, ids=lambda walk: walk.partition("?")[0].lstrip("*"))
def test_a_walk_ends_at_what_it_names(walk: str) -> None:
    """In a walk, what stands behind a file in parentheses, or before `in` a file, is defined there."""
    ends = [
        (file, name)
        for file, names in re.findall(r"`([\w/]+\.py)`[^`()]*\(([^)]*)\)", walk)
        for name in re.findall(r"`(\w+)`", names)
    ]
    ends += [(file, name) for name, file in re.findall(r"`(\w+)` in `([\w/]+\.py)`", walk)]
    assert ends
    assert [end for end in ends if end[1] not in defined(PACKAGE / end[0])] == []
