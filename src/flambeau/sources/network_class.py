"""The class of a network in an archive's Python file, parsed and never run: can its weights say what it computes?

They can where the class is one of torchvision's networks with other sizes, which is what TorchServe's documentation
tells people to write. Whatever else stands in the file may compute something that the weights do not show: a line
beside the class that changes torchvision, a file of the author's that is imported, a block of the author's own.
"""

import ast
import sys
from dataclasses import dataclass
from pathlib import Path

from flambeau.errors import SourceError

_SHOWN_BY_SHAPES = frozenset({
    "num_classes", "init_weights", "block", "layers", "features", "growth_rate", "block_config", "num_init_features",
    "groups", "width_per_group", "drop_rate", "dropout", "progress",
    "backbone", "backbone_name", "pretrained", "weights", "trainable_layers", "batch_norm",
})  # fmt: skip
"""Arguments of torchvision's networks and their parts that change sizes, or nothing while they answer."""

_SHOWN_IN_ORDER = {"ResNet": 3, "DenseNet": 3}
"""How many arguments without a name shapes show, by network; of any other two. Later ones may be a stride."""

_UNSHOWN = {"GoogLeNet": "transform_input", "Inception3": "transform_input"}
"""Arguments that change what a network computes, and that its class leaves as torchvision's own weights do not."""

_FAMILIES = frozenset({"torch", "torchvision"})
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
    return NetworkClass(classes[0].name, _hidden_beside(tree) or _hidden(classes[0], _imported(tree)))


def _hidden_beside(tree: ast.Module) -> str:
    """Why a line beside the class may change what it computes."""
    for each in tree.body:
        if isinstance(each, ast.Import):
            roots = {name.name.partition(".")[0] for name in each.names}
        elif isinstance(each, ast.ImportFrom):
            roots = {"." if each.level or any(name.name == "*" for name in each.names)
                     else (each.module or "").partition(".")[0]}  # fmt: skip
        elif isinstance(each, ast.ClassDef) or _says_nothing(each):
            continue
        else:
            return _line(each)
        if foreign := sorted(roots - _FAMILIES - sys.stdlib_module_names):
            what = "names that it does not show" if foreign[0] == "." else foreign[0]
            return f"its line {each.lineno} imports {what}"
    return ""


def _imported(tree: ast.Module) -> dict[str, str]:
    """The names that a file imports, and of which package each is: the last one counts, as for Python."""
    found: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            found |= {each.asname or each.name: (node.module or "").partition(".")[0] for each in node.names}
        elif isinstance(node, ast.Import):
            tops = [(each, each.name.partition(".")[0]) for each in node.names]
            found |= {each.asname or top: top for each, top in tops}
    return found


def _hidden(node: ast.ClassDef, imported: dict[str, str]) -> str:
    bases = [each for each in node.bases if imported.get(_first_name(each)) == "torchvision"]
    if len(bases) != 1 or len(node.bases) != 1 or node.name in imported:
        return "it is no network of torchvision's"
    if node.keywords or node.decorator_list:
        return _line(node)
    base = bases[0].attr if isinstance(bases[0], ast.Attribute) else _first_name(bases[0])
    if base in _UNSHOWN:
        return f"its weights do not show {_UNSHOWN[base]}"
    for each in node.body:
        if isinstance(each, ast.FunctionDef) and each.name in _HARMLESS_METHODS and not each.decorator_list:
            if each.name == "__init__" and (why := _Constructor(each, imported, base).hidden()):
                return why
        elif isinstance(each, ast.FunctionDef) and not each.decorator_list:
            return f"it defines {each.name}"
        elif not _says_nothing(each):
            return _line(each)
    return ""


class _Constructor:
    """The lines of `__init__`. `_local`: names that stand for numbers, or for parts of torchvision's."""

    def __init__(self, function: ast.FunctionDef, imported: dict[str, str], base: str) -> None:
        self._function = function
        self._imported = imported
        self._order = _SHOWN_IN_ORDER.get(base, 2)
        self._local: set[str] = set()

    def hidden(self) -> str:
        """Why what it does may change what the network computes; empty where it does not."""
        parameters = self._function.args
        named = [*parameters.posonlyargs, *parameters.args, *parameters.kwonlyargs]
        defaults = [each for each in (*parameters.defaults, *parameters.kw_defaults) if each is not None]
        if not all(self._is_plain(each) for each in defaults):
            return _line(self._function)
        self._local = {each.arg for each in named}  # it is called without any, as TorchServe calls it
        for each in self._function.body:
            if not _says_nothing(each) and (why := self._hidden_in(each)):
                return why
        return ""

    def _hidden_in(self, line: ast.stmt) -> str:
        if isinstance(line, ast.Expr) and _calls_super(line.value):
            assert isinstance(line.value, ast.Call)
            return self._hidden_in_call(line.value, line) or self._hidden_in_order(line.value, line)
        if not isinstance(line, ast.Assign) or len(line.targets) != 1:
            return _line(line)
        target, value = line.targets[0], line.value
        if isinstance(target, ast.Name):  # a number, or a backbone
            if not self._is_plain(value) and (why := self._hidden_in_part(value, line)):
                return why
            self._local.add(target.id)
            return ""
        return "" if isinstance(target, ast.Attribute) and self._is_linear(value) else _line(line)

    def _hidden_in_order(self, call: ast.Call, line: ast.stmt) -> str:
        return _line(line) if len(call.args) > self._order else ""

    def _hidden_in_part(self, value: ast.expr, line: ast.stmt) -> str:
        """Of a part of a network, which a function or a class of torchvision makes."""
        if isinstance(value, ast.Call) and self._family(value.func) == "torchvision" and len(value.args) <= 2:
            return self._hidden_in_call(value, line)
        return _line(line)

    def _hidden_in_call(self, call: ast.Call, line: ast.stmt) -> str:
        none = self._function.args.kwarg
        for word in _spread(call.keywords):
            # its own **kwargs are empty
            if word.arg is None and none is not None and isinstance(word.value, ast.Name) and word.value.id == none.arg:
                continue
            if word.arg not in _SHOWN_BY_SHAPES:
                return f"it sets {word.arg or '**'}"
        for given in (*call.args, *(word.value for word in _spread(call.keywords) if word.arg is not None)):
            if not self._is_plain(given) and (why := self._hidden_in_part(given, line)):
                return why
        return ""

    def _is_plain(self, node: ast.expr) -> bool:
        """Whether it is a number, a text, a row of numbers, a name for one, or something in torchvision by its name."""
        if isinstance(node, ast.List | ast.Tuple):
            return all(isinstance(each, ast.Constant) and isinstance(each.value, int) for each in node.elts)
        if isinstance(node, ast.Subscript):
            return isinstance(node.slice, ast.Constant) and self._family(node.value) == "torchvision"
        first = _first_name(node)
        return isinstance(node, ast.Constant) or first in self._local or self._imported.get(first) == "torchvision"

    def _is_linear(self, node: ast.expr) -> bool:
        """Whether it makes a linear layer, whose sizes its weights show."""
        if not isinstance(node, ast.Call) or self._family(node.func) != "torch":
            return False
        called = node.func.attr if isinstance(node.func, ast.Attribute) else None
        sizes = (*node.args, *(word.value for word in node.keywords))
        return (called or _first_name(node.func)) == "Linear" and all(
            self._is_plain(each) or _first_name(each) == "self" for each in sizes
        )

    def _family(self, node: ast.expr) -> str | None:
        return self._imported.get(_first_name(node))


def _spread(words: list[ast.keyword]) -> list[ast.keyword]:
    """Keywords with those of a table that is written out, `**{"init_weights": False}`, in its place."""
    found: list[ast.keyword] = []
    for word in words:
        table = word.value
        keys = table.keys if word.arg is None and isinstance(table, ast.Dict) else []
        named = [key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str)]
        if isinstance(table, ast.Dict) and named and len(named) == len(keys):
            found += [ast.keyword(name, value) for name, value in zip(named, table.values, strict=True)]
        else:
            found.append(word)
    return found


def _line(node: ast.stmt) -> str:
    return f"its line {node.lineno} may change what it computes"


def _says_nothing(node: ast.stmt) -> bool:
    return isinstance(node, ast.Pass) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))


def _calls_super(node: ast.expr) -> bool:
    """Whether it is `super().__init__(...)`, or `super(Net, self).__init__(...)`."""
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "__init__"
        and isinstance(node.func.value, ast.Call)
        and isinstance(node.func.value.func, ast.Name)
        and node.func.value.func.id == "super"
    )


def _first_name(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""
