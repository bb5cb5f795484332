"""Compares names and shapes with the index: which networks they fill completely, and which only lack a clear head.

Candidates come from signatures. For each, every tensor outside the body must be accounted for: the head, heads for
training only, and what lies beside the network. A tensor left over refuses the candidate.
"""

import math
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import msgspec

from flambeau.bundle.storage import Head, HeadLayer
from flambeau.identify import index, layers, naming
from flambeau.identify.index import CLASSES, COUNTER, Network, Positions, Registry, Shape, Signature
from flambeau.identify.layers import Unclear
from flambeau.identify.naming import Names


class Candidate(msgspec.Struct, frozen=True):
    """A network of the index whose body lies under `prefix`. `whole`: its whole block of last layers was replaced."""

    registry: Registry
    number: int
    prefix: str
    whole: bool

    @property
    def network(self) -> Network:
        """Its entry in the index."""
        return index.facts(self.registry).networks[self.number]

    @property
    def heads(self) -> tuple[str, ...]:
        """The paths that belong to the head."""
        block = self.network.block
        return (block.path,) if self.whole and block else self.network.heads


class ArchitectureMatch(msgspec.Struct, frozen=True):
    """A network that the file fills. `size`: the side of its images in pixels, if it is not the architecture's own."""

    candidate: Candidate
    classes: int
    keys: dict[str, str]
    aside: tuple[str, ...]
    args: dict[str, Any]
    head: Head | None
    size: int | None
    notes: tuple[str, ...]
    features: bool = False


class Mismatch(msgspec.Struct, frozen=True):
    """A network whose body is in the file, and why it does not fit. `gap`: naming an activation would settle it."""

    candidate: Candidate
    why: str
    gap: bool


def candidates(names: Names, registries: tuple[Registry, ...]) -> Iterator[Candidate]:
    """Every network whose body the file has. For each prefix, networks that keep their own last block come first."""
    for prefix in names.prefixes:
        marks = Signature(names.within(prefix))
        for whole in (False, True):
            for registry in registries:
                for paths, numbers in _tables(registry, whole).items():
                    for number in numbers.get(marks.without(paths), ()):
                        yield Candidate(registry, number, prefix, whole)


@cache
def _tables(registry: Registry, whole: bool) -> dict[tuple[str, ...], dict[int, list[int]]]:
    """For each set of paths to leave out, the networks by the signature of the rest."""
    tables: dict[tuple[str, ...], dict[int, list[int]]] = {}
    for number, network in enumerate(index.facts(registry).networks):
        if whole and not network.block:
            continue
        heads = (network.block.path,) if whole and network.block else network.heads
        signature = network.trunk if whole else network.body
        tables.setdefault((*heads, *network.apart), {}).setdefault(signature, []).append(number)
    return tables


def match(candidate: Candidate, names: Names, *, activation: str | None) -> ArchitectureMatch | Mismatch:
    """Account for every tensor of the file outside the body."""
    try:
        return _match(candidate, names, activation)
    except Unclear as unclear:
        return Mismatch(candidate, str(unclear), unclear.gap)


class _Found(msgspec.Struct, frozen=True):
    """A head: its number of classes, the replacement of the architecture's own if any, and its keys by name.

    `bare`: there is no head, and `classes` counts features.
    """

    classes: int
    keys: dict[str, str]
    head: Head | None = None
    note: str = ""
    bare: bool = False


def _match(candidate: Candidate, names: Names, activation: str | None) -> ArchitectureMatch:
    network, prefix = candidate.network, candidate.prefix
    inside = names.within(prefix)
    unused = [prefix + name for name in inside if _under(name, network.aux)]
    body = [name for name in inside if not _under(name, (*network.aux, *candidate.heads))]
    for name in body:
        if name.endswith(COUNTER) and name.removesuffix(COUNTER) + "running_mean" not in inside:
            raise Unclear(f"{name} belongs to no norm")
    aside, left = beside(names, prefix, inside)
    group = {name: shape for name, shape in inside.items() if _under(name, candidate.heads)}
    found = _head(candidate, group, left, activation)
    if foreign := left.keys() - found.keys.keys():
        raise Unclear(f"the file has {len(foreign)} more tensors: {', '.join(sorted(foreign)[:3])}, …")
    args: dict[str, Any] = {} if found.head else {"num_classes": found.classes}
    notes = [found.note] if found.note else []
    size = None
    if network.positions:
        size = _size(network.positions, inside.get(network.positions.key, ()))
        args |= {network.positions.argument: size} if size else {}
    if network.aux:
        args["aux_logits"] = False
        if candidate.registry == "torchvision":
            notes.append("its input is taken as torchvision's own weights take it (transform_input)")
    if unused:
        notes.append(f"{', '.join(network.aux)} serve training only and are set aside")
    keys = {prefix + name: name for name in body} | found.keys
    return ArchitectureMatch(
        candidate,
        found.classes,
        keys={names.keys[name]: key for name, key in keys.items()},
        aside=(*names.aside, *(names.keys[name] for name in (*unused, *aside))),
        args=args,
        head=found.head,
        size=size,
        notes=tuple(notes),
        features=found.bare,
    )


def _under(name: str, paths: tuple[str, ...]) -> bool:
    return any(name.startswith(f"{path}.") for path in paths)


def beside(names: Names, prefix: str, inside: Mapping[str, Shape]) -> tuple[list[str], dict[str, Shape]]:
    """The tensors outside the prefix: those for training only (and copies of the weights), and the rest."""
    outside = names.outside(prefix)
    copies: set[str] = set()
    for other in names.prefixes:
        if other and not prefix.startswith(other) and naming.is_averaged(prefix) != naming.is_averaged(other):
            copy = names.within(other)
            if copy.keys() >= inside.keys() and all(copy[name] == shape for name, shape in inside.items()):
                copies |= {other + name for name in copy}
    aside = {name: None for name in outside if naming.serves_training(name) or name in copies}
    return list(aside), {name: shape for name, shape in outside.items() if name not in aside}


def _size(positions: Positions, shape: Shape) -> int | None:
    """The image size that a table of positions is for, or `None` for the architecture's own. Raises `Unclear`."""
    if shape == positions.shape:
        return None
    if len(shape) == 3 and (shape[0], shape[2]) == (positions.shape[0], positions.shape[2]):
        side = math.isqrt(max(shape[1] - positions.extra, 0))
        if side and side * side == shape[1] - positions.extra:
            return side * positions.patch
    raise Unclear(f"{positions.key} is {list(shape)}, which is for no square image")


def _head(
    candidate: Candidate, group: Mapping[str, Shape], left: Mapping[str, Shape], activation: str | None
) -> _Found:
    """The head: at the architecture's own place, or else among the tensors outside. Raises `Unclear`."""
    network, prefix = candidate.network, candidate.prefix
    if not candidate.whole and (classes := _classes(network.outputs, group)):
        return _Found(classes, {prefix + name: name for name in group})
    if len(candidate.heads) != 1:
        raise Unclear(f"its heads ({', '.join(candidate.heads)}) are not the architecture's own")
    [path] = candidate.heads
    if group:
        inner = {prefix + name: name[len(path) + 1 :] for name in group}
        return _replaced(candidate, inner, group, path, activation, seen=path)
    if not left and (features := _features(candidate)):
        note = f"the file has no {path}: without it the network makes {features} features, and no classes"
        return _Found(features, {}, Head(path, (HeadLayer("", "identity"),)), note, bare=True)
    if not left:
        raise Unclear(f"the file has no {path}: it makes features and no classes")
    outer = naming.common_path(left)
    if strange := [name for name in left if not naming.is_head(name)]:
        raise Unclear(f"the file has {len(left)} more tensors, and {strange[0]} is not named like a head's")
    inner = {name: name[len(outer) + 1 if outer else 0 :] for name in left}
    place = outer or ", ".join(dict.fromkeys(name.partition(".")[0] for name in left))
    found = _replaced(candidate, inner, left, path, activation, seen=place)
    note = f"its head lies outside, at {place}"
    return msgspec.structs.replace(found, note=f"{note}; {found.note}" if found.note else note)


def _features(candidate: Candidate) -> int | None:
    """The number of features that the body gives, if certain: the architecture's own head is a linear layer, or a block
    that takes vectors.
    """
    if candidate.whole:
        return candidate.network.block.features if candidate.network.block and candidate.network.block.flat else None
    last = candidate.network.outputs.get(f"{candidate.heads[-1]}.weight", ())
    return last[-1] if len(last) == 2 else None


def _classes(outputs: Mapping[str, Shape], group: Mapping[str, Shape]) -> int | None:
    """The number of classes if the head is the architecture's own, else `None`."""
    group = {name: shape for name, shape in group.items() if not name.endswith(COUNTER)}
    if group.keys() != outputs.keys():
        return None
    counts = set()
    for name, own in outputs.items():
        shape = group[name]
        if len(shape) != len(own) or any(a not in (b, CLASSES) for a, b in zip(own, shape, strict=True)):
            return None
        counts |= {b for a, b in zip(own, shape, strict=True) if a == CLASSES}
    return counts.pop() if len(counts) == 1 and min(counts) > 0 else None


def _replaced(
    candidate: Candidate,
    inner: Mapping[str, str],
    shapes: Mapping[str, Shape],
    path: str,
    activation: str | None,
    *,
    seen: str,
) -> _Found:
    """The replacement of the head at `path`, which is at `seen` in the file. `inner` are its names within the head.

    Raises `Unclear`.
    """
    network, prefix = candidate.network, candidate.prefix
    own = network.block if candidate.whole else None
    last = network.outputs.get(f"{network.heads[-1]}.weight", ())
    features = own.features if own else last[-1] if len(last) == 2 else 0
    held = {short: shapes.get(name, shapes.get(name[len(prefix) :], ())) for name, short in inner.items()}
    try:
        found = layers.read(held)
        if not own and all(layers.is_place(layer.name) for layer in found) and found[0].sizes[0] != features:
            raise Unclear(_another_width(seen, found[0].sizes[0], features))
        chain = layers.chain(found, activation=activation, own=own)
    except Unclear as unclear:
        told = str(unclear) if str(unclear).startswith(seen) else f"{seen} has {unclear}"
        raise Unclear(told, gap=unclear.gap) from None
    if own and not own.flat and found[0].name != own.first:
        raise Unclear(f"{seen} is given feature maps, and what becomes of them has no weights")
    if chain.features != features:
        raise Unclear(_another_width(seen, chain.features, features))
    keys = {name: f"{path}.{short}" for name, short in inner.items()}
    plain = HeadLayer("", "linear", (features, chain.outputs), bias=f"{path}.bias" in network.outputs)
    if not own and chain.layers == (plain,):
        return _Found(chain.outputs, keys, note=chain.note)
    return _Found(chain.outputs, keys, Head(path, chain.layers), chain.note)


def _another_width(seen: str, taken: int, features: int) -> str:
    """Why a head does not fit this body. fastai's joins the maximum and the average of each feature map."""
    pools = ", as fastai's head does, which joins two poolings" if taken == 2 * features else ""
    return f"{seen} takes {taken} features where there are {features}{pools}"
