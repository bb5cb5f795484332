"""Weights that are kept in parts: pruned with a mask, or normed by their length or their largest singular value.

`torch.nn.utils.prune`, `weight_norm` and `spectral_norm` leave the parts of a weight in a checkpoint where nobody calls
`remove` first, such as `fc.weight_orig` and `fc.weight_mask`. This module tells such parts from names and shapes
and says what they make; `flambeau.builder.parts` multiplies them out. Parts that are not understood stay as they are.
"""

import re
from collections.abc import Mapping
from typing import Literal

import msgspec

from flambeau.identify.index import Shape

How = Literal["pruned", "weight_norm", "spectral_norm"]


class Made(msgspec.Struct, frozen=True):
    """A weight that parts make. `parts` are their keys: (weight, mask), (length, direction) or (weight, u, v).

    `axis` is the one that is kept apart by a norm, or `None` where the norm is of the whole.
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


def fold(shapes: Mapping[str, Shape]) -> tuple[dict[str, Shape], dict[str, Made]]:
    """The tensors with each weight in the place of its parts, and how each of those weights is made."""
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


def unknown(keys: Mapping[str, Shape]) -> str:
    """A parametrisation that `fold` does not know: the path of its module; empty where there is none."""
    found = next((key for key in keys if ".parametrizations." in f".{key}"), "")
    return f".{found}".partition(".parametrizations.")[0].removeprefix(".") or ("its top" if found else "")


def _whole(made: Made) -> str:
    """The part that has the shape of the weight."""
    return made.parts[1] if made.how == "weight_norm" else made.parts[0]


def _fitting(how: How, parts: tuple[str, ...], shapes: Mapping[str, Shape]) -> Made | None:
    """What the parts make, if all of them are there and their shapes are those of such parts."""
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
    for axis, size in enumerate(weight):  # the first is that of linear layers and convolutions; transposed ones: 1
        rest = 1
        for place, each in enumerate(weight):
            rest *= each if place != axis else 1
        if len(weight) > 1 and (one, other) == ((size,), (rest,)):
            return Made(how, parts, axis)
    return None
