"""The class of a network in an archive's Python file, parsed and never run: can its weights say what it computes?

They can where the class is one of torchvision's networks with other sizes, which is what TorchServe's documentation
tells people to write. Whatever else stands in it may compute something that the weights do not show.
"""

import ast
from dataclasses import dataclass
from pathlib import Path

from flambeau.errors import SourceError

_SHOWN_BY_SHAPES = frozenset({
    "num_classes", "init_weights", "block", "layers", "features", "growth_rate", "block_config", "num_init_features",
    "groups", "width_per_group", "drop_rate", "dropout", "progress",
})  # fmt: skip
"""Arguments of torchvision's networks that change sizes, or nothing while they answer."""

_HARMLESS_METHODS = frozenset({"__init__", "load_state_dict"})


@dataclass(frozen=True, slots=True)
class NetworkClass:
    """The class's name, and why its weights do not show what it computes; empty where they do."""

    name: str
    hidden: str


def read(file: Path, archive: Path) -> NetworkClass:
    """The one class in a file. Raises `SourceError`."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise SourceError(f"{archive}: its {file.name} is not Python: {error}") from None
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    if len(classes) != 1:
        raise SourceError(f"{archive}: its {file.name} defines {len(classes)} classes where one belongs: the network")
    return NetworkClass(classes[0].name, _hidden(classes[0], _from_torchvision(tree)))


def _from_torchvision(tree: ast.Module) -> frozenset[str]:
    """The names in a file that are torchvision's, or lead there."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "torchvision":
            found |= {each.asname or each.name for each in node.names}
        elif isinstance(node, ast.Import):
            found |= {each.asname or "torchvision" for each in node.names if each.name.startswith("torchvision")}
    return frozenset(found)


def _hidden(node: ast.ClassDef, torchvision: frozenset[str]) -> str:
    bases = [_first_name(each) for each in node.bases]
    if len(bases) != 1 or bases[0] not in torchvision:
        return "it is no network of torchvision's"
    for each in node.body:
        if isinstance(each, ast.FunctionDef) and each.name in _HARMLESS_METHODS:
            if each.name == "__init__" and (why := _hidden_in(each)):
                return why
        elif isinstance(each, ast.FunctionDef):
            return f"it defines {each.name}"
        elif not _says_nothing(each):
            return f"its line {each.lineno} may change what it computes"
    return ""


def _hidden_in(function: ast.FunctionDef) -> str:
    for each in function.body:
        if _says_nothing(each):
            continue
        if isinstance(each, ast.Expr) and _calls_super(each.value):
            assert isinstance(each.value, ast.Call)
            odd = next((word.arg for word in each.value.keywords if word.arg not in _SHOWN_BY_SHAPES), "")
            if odd == "":
                continue
            return f"it sets {odd or '**'}"
        if isinstance(each, ast.Assign) and _is_linear(each.value):
            continue
        return f"its line {each.lineno} may change what it computes"
    return ""


def _says_nothing(node: ast.stmt) -> bool:
    return isinstance(node, ast.Pass) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))


def _calls_super(node: ast.expr) -> bool:
    """Whether it is `super().__init__(...)`, or `super(Net, self).__init__(...)`."""
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "__init__"
        and isinstance(node.func.value, ast.Call)
        and _first_name(node.func.value.func) == "super"
    )


def _is_linear(node: ast.expr) -> bool:
    """Whether it makes a linear layer, whose sizes its weights show."""
    called = node.func if isinstance(node, ast.Call) else None
    return (isinstance(called, ast.Attribute) and called.attr == "Linear") or (
        isinstance(called, ast.Name) and called.id == "Linear"
    )


def _first_name(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""
