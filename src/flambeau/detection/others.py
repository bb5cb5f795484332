"""Networks of torchvision's that have no task here yet: detectors, segmenters, and those over videos.

They are known by name, so that their files are called what they are, with a Python model that serves them. The list is
shipped beside the index of architectures, and written by the same script.
"""

from functools import cache
from typing import Literal

import msgspec

from flambeau.detection import index, naming
from flambeau.detection.naming import Names
from flambeau.detection.signature import Signature

Task = Literal[
    "object detection", "instance segmentation", "keypoint detection", "semantic segmentation", "video classification",
    "optical flow",
]  # fmt: skip


class Other(msgspec.Struct, frozen=True, array_like=True):
    """One of them. `body` is the signature without `heads`, which depend on the number of classes, and `aux`.

    `classes` names a tensor whose first size is the number of classes times `each`; empty where nothing depends on it.
    """

    name: str
    task: Task
    body: int
    heads: tuple[str, ...] = ()
    aux: tuple[str, ...] = ()
    classes: str = ""
    each: int = 1


class Known(msgspec.Struct, frozen=True):
    """What a file holds: `names` are all that have such weights; `classes` is `None` where they have no such number.

    `aux`: the file has the heads that serve training only.
    """

    names: tuple[str, ...]
    task: Task
    prefix: str
    classes: int | None
    aux: bool


@cache
def known() -> tuple[Other, ...]:
    """All of them."""
    return msgspec.json.decode(index.read("torchvision_others.json.gz"), type=tuple[Other, ...])


def find(names: Names) -> Known | None:
    """The networks that these tensors are, whatever their number of classes."""
    for prefix in naming.prefixes(names):
        inside = names.within(prefix)
        marks = Signature(inside)
        found = [other for other in known() if marks.without((*other.heads, *other.aux)) == other.body]
        counts = {other.name: _classes(other, inside) for other in found}
        if fitting := [other for other in found if counts[other.name] != 0]:
            [first, *_] = fitting
            aux = any(name.startswith(f"{path}.") for path in first.aux for name in inside)
            return Known(tuple(other.name for other in fitting), first.task, prefix, counts[first.name], aux)
    return None


def _classes(other: Other, inside: dict[str, tuple[int, ...]]) -> int | None:
    """The number of classes; 0 where the file's head is none of this network's."""
    if not other.classes:
        return None
    shape = inside.get(other.classes, ())
    return shape[0] // other.each if len(shape) and shape[0] % other.each == 0 else 0
