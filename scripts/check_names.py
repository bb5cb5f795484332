"""Part of `make lint`: no class or type of Flambeau has a name that another one has."""

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "flambeau"


def defined(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Classes at any depth, and the aliases that a module gives to types, as (name, line)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield node.name, node.lineno
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and is_type(node.value):
            yield node.targets[0].id, node.lineno


def is_type(value: ast.expr) -> bool:
    """Whether an expression is a type: `dict[str, int]`, `Literal["a"]`, `bytes | None`."""
    if isinstance(value, ast.BinOp) and isinstance(value.op, ast.BitOr):
        return is_type(value.left) or is_type(value.right)
    if not isinstance(value, ast.Subscript) or not isinstance(value.value, ast.Name):
        return False
    return value.value.id in ("Annotated", "Callable", "Literal", "dict", "list", "tuple", "type")


def main() -> int:
    """Print each name that stands twice, with its places."""
    places: dict[str, list[str]] = defaultdict(list)
    for file in sorted(SOURCE.rglob("*.py")):
        for name, line in defined(ast.parse(file.read_text(encoding="utf-8"))):
            places[name.lstrip("_")].append(f"{file.relative_to(SOURCE.parent)}:{line}")
    twice = {name: found for name, found in places.items() if len(found) > 1}
    for name, found in twice.items():
        print(f"{name} is defined {len(found)} times: {', '.join(found)}")
    return 1 if twice else 0


if __name__ == "__main__":
    sys.exit(main())
