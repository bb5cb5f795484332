"""Cleans the names of a file's tensors: removes what training tools add to them, and sets aside what only training
needs.

It knows the habits of tools (DataParallel, Lightning, FSDP, torch.compile, EMA), and no architecture.
"""

import re
from collections.abc import Iterable, Mapping
from functools import cached_property, lru_cache
from typing import Literal

import msgspec

from flambeau.identify.index import Shape

_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_PROFILED = ("total_ops", "total_params")  # thop leaves its counts in every module
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.")
_TRAINING = re.compile(
    r"criterion\w*|\w*loss\w*|(\w*_)?metrics?|(\w*_)?(acc|accuracy|auroc|auc|f1|f1_score|confmat|precision|recall)\d*"
    r"|n_averaged|num_updates|decay|initted|step|epoch|global_step",
    re.IGNORECASE,
)
_AVERAGED = re.compile(r"(\w*_)?(ema|averaged|shadow|teacher|momentum|target)(_\w*)?", re.IGNORECASE)
_HEAD = re.compile(
    r"\d+|(\w*_)?(fc|heads?|classifier|classification|clf|cls|linear|lin|dense|out|output|logits?|predictor|final|last)"
    r"(_\w*|\d*)",
    re.IGNORECASE,
)
_SHARE = 0.2  # a prefix is tried if at least this share of the tensors lies below it
_MOST = 6_000  # most tensors below a prefix that is tried; the largest network of the index has 2,683
_MOST_IN_ALL = 40_000  # over all prefixes; plain and averaged weights in four nested wrappers make 22,000
_DEPTH = 8


class Names(msgspec.Struct, frozen=True, dict=True):
    """The tensors under their cleaned names: `shapes` by name, and `keys`, the file's key for each name.

    `aside` are the file's keys that belong to no weights.
    """

    shapes: dict[str, Shape]
    keys: dict[str, str]
    aside: tuple[str, ...] = ()

    def within(self, prefix: str) -> dict[str, Shape]:
        """The tensors whose name begins with `prefix`, without it."""
        return {name[len(prefix) :]: shape for name, shape in self.shapes.items() if name.startswith(prefix)}

    def outside(self, prefix: str) -> dict[str, Shape]:
        """The tensors whose name does not begin with `prefix`."""
        return {name: shape for name, shape in self.shapes.items() if not name.startswith(prefix)}

    @cached_property
    def prefixes(self) -> list[str]:
        """The dotted prefixes under which a network may lie, the shortest first.

        A prefix with more than twice the tensors of the largest known network is skipped. The limit over all prefixes
        keeps a hostile file from having its tensors searched again and again below `module.module.module.`.
        """
        found: list[str] = []
        tried = 0
        level = {"": list(self.shapes)}
        least = max(1, int(len(self.shapes) * _SHARE))
        for _ in range(_DEPTH + 1):
            for prefix, inside in level.items():
                if len(inside) <= _MOST and (tried := tried + len(inside)) <= _MOST_IN_ALL:
                    found.append(prefix)
            below: dict[str, list[str]] = {}
            for prefix, inside in level.items():
                for rest in inside:
                    part, dot, following = rest.partition(".")
                    if dot:
                        below.setdefault(f"{prefix}{part}.", []).append(following)
            level = {prefix: inside for prefix, inside in below.items() if len(inside) >= least}
        return found


def unwrap(shapes: Mapping[str, Shape]) -> Names:
    """Remove what compilers and wrappers put into names; rename DenseNets from before torchvision 0.3."""
    keys: dict[str, str] = {}
    aside = []
    for key in shapes:
        *path, last = key.split(".")
        if last in _PROFILED:
            aside.append(key)
            continue
        name = ".".join([*(part for part in path if part not in _WRAPPERS), last])
        keys[_OLD_DENSENET.sub(r"\1\2.", name)] = key
    if len(keys) + len(aside) != len(shapes):  # two keys got one name: then the wrappers mean something
        keys = {key: key for key in shapes if key not in aside}
    return Names({name: shapes[key] for name, key in keys.items()}, keys, tuple(aside))


def serves_training(name: str) -> bool:
    """Whether a tensor of this name is for training only: losses, metrics, counters."""
    return any(map(_is_of_training, name.split(".")))


@lru_cache(maxsize=4096)
def _is_of_training(part: str) -> bool:
    return _TRAINING.fullmatch(part) is not None


def is_averaged(prefix: str) -> bool:
    """Whether a prefix says that the weights under it are a moving average."""
    return any(_AVERAGED.fullmatch(part) for part in prefix.split("."))


def is_head(name: str) -> bool:
    """Whether a tensor beside a backbone is named like a head's.

    Others may be anything: ArcFace's centres, for one, are one vector of features per class, but no layer.
    """
    return any(_HEAD.fullmatch(part) for part in name.split(".")[:-1])


def common_path(names: Iterable[str]) -> str:
    """The longest dotted path shared by the modules of all these tensors, without a dot at its end."""
    paths = [name.split(".")[:-1] for name in names]
    shared = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


# Weights kept in parts: `torch.nn.utils.prune`, `weight_norm` and `spectral_norm` leave parts of a weight, such as
# `fc.weight_orig` and `fc.weight_mask`, in a checkpoint unless `remove` is called first. Names and shapes identify the
# parts; `flambeau.builder.parts` multiplies them out. Parts that are not understood stay as they are.


How = Literal["pruned", "weight_norm", "spectral_norm"]


class Made(msgspec.Struct, frozen=True):
    """A weight made from parts. `parts` are their keys: (weight, mask), (length, direction) or (weight, u, v).

    `axis` is the axis along which the norm is taken separately; `None` if there is one norm of the whole, or none.
    """

    how: How
    parts: tuple[str, ...]
    axis: int | None = 0


_PARTS: tuple[tuple[How, tuple[str, ...]], ...] = (
    ("pruned", ("{path}{name}_orig", "{path}{name}_mask")),
    ("spectral_norm", ("{path}{name}_orig", "{path}{name}_u", "{path}{name}_v")),
    ("weight_norm", ("{path}{name}_g", "{path}{name}_v")),
    (
        "spectral_norm",
        (
            "{path}parametrizations.{name}.original",
            "{path}parametrizations.{name}.0._u",
            "{path}parametrizations.{name}.0._v",
        ),
    ),
    ("weight_norm", ("{path}parametrizations.{name}.original0", "{path}parametrizations.{name}.original1")),
)
_FIRST = re.compile(r"((?:.*\.)?)(?:(\w+)_(?:orig|g)|parametrizations\.(\w+)\.original0?)", re.DOTALL)


def fold_parts(shapes: Mapping[str, Shape]) -> tuple[dict[str, Shape], dict[str, Made]]:
    """The tensors with the parts of each weight replaced by the weight, and how each of those weights is made."""
    made: dict[str, Made] = {}
    places: dict[str, str] = {}
    for key in shapes:
        found = _FIRST.fullmatch(key)
        if found is None:
            continue
        path, name = found[1], found[2] or found[3]
        for how, forms in _PARTS:
            parts = tuple(form.format(path=path, name=name) for form in forms)
            if parts[0] == key and path + name not in shapes and (weight := _fitting(how, parts, shapes)):
                made[path + name] = weight
                places[key] = path + name
                break
    gone = {part for weight in made.values() for part in weight.parts}
    if not made:
        return dict(shapes), {}
    folded: dict[str, Shape] = {}
    for key, shape in shapes.items():
        if key in places:
            folded[places[key]] = shapes[_whole(made[places[key]])]
        elif key not in gone:
            folded[key] = shape
    return folded, made


def unknown_parametrisation(keys: Mapping[str, Shape]) -> str:
    """The path of a module with a parametrisation that `fold_parts` does not know; empty if there is none."""
    found = next((key for key in keys if ".parametrizations." in f".{key}"), "")
    return f".{found}".partition(".parametrizations.")[0].removeprefix(".") or ("its top" if found else "")


def _whole(made: Made) -> str:
    """The part that has the shape of the weight."""
    return made.parts[1] if made.how == "weight_norm" else made.parts[0]


def _fitting(how: How, parts: tuple[str, ...], shapes: Mapping[str, Shape]) -> Made | None:
    """The weight that the parts make, if all of them are there and their shapes fit together."""
    if not all(part in shapes for part in parts):
        return None
    sizes = [shapes[part] for part in parts]
    if how == "pruned":
        return Made(how, parts, None) if sizes[0] == sizes[1] else None
    if how == "weight_norm":
        length, direction = sizes
        if not length:
            return Made(how, parts, None)
        axes = [
            axis
            for axis, size in enumerate(direction)
            if length == tuple(size if place == axis else 1 for place in range(len(direction)))
        ]
        return Made(how, parts, axes[0]) if axes else None
    weight, one, other = sizes
    for axis, size in enumerate(weight):  # axis 0 for linear layers and convolutions, 1 for transposed ones
        rest = 1
        for place, each in enumerate(weight):
            rest *= each if place != axis else 1
        if len(weight) > 1 and (one, other) == ((size,), (rest,)):
            return Made(how, parts, axis)
    return None
