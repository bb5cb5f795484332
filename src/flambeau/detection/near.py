"""The nearest misses: the networks that agree with most of a file, and what differs.

Modules are compared first, as numbers; then the best few tensor by tensor. It reads the shapes of the index, which an
exact match does without.
"""

from collections.abc import Iterable
from functools import cache

from flambeau.detection import index, naming
from flambeau.detection.finding import Near
from flambeau.detection.index import CLASSES, Registry
from flambeau.detection.naming import Names
from flambeau.detection.signature import COUNTER, Shape

LEAST = 0.1
"""The share of tensors in which a network has to agree with a file to be worth naming."""

_MOST = 3
_CLOSER_LOOK = 8  # networks, of those that share most modules


def nearest(names: Names, registries: Iterable[Registry]) -> list[tuple[float, Near]]:
    """At most three networks with the share of tensors that agree, the best first."""
    scored = []
    for prefix in naming.prefixes(names):
        inside = names.within(prefix)
        for registry in registries:
            modules = _modules(registry, inside)
            for number, own in enumerate(_sets(registry)):
                if agreed := len(modules & own):
                    scored.append(
                        (
                            agreed / max(len(modules) + len(names.shapes) - len(inside), len(own)),
                            prefix,
                            registry,
                            number,
                        )
                    )
    scored.sort(key=lambda each: -each[0])
    found: dict[tuple[Registry, int], tuple[float, Near]] = {}
    for _, prefix, registry, number in scored[:_CLOSER_LOOK]:
        if (registry, number) not in found and (owners := index.names_of(registry, number)):
            share, near = compare(names, prefix, registry, owners[0])
            if share >= LEAST:
                found[registry, number] = share, near
    return sorted(found.values(), key=lambda each: -each[0])[:_MOST]


def compare(names: Names, prefix: str, registry: Registry, name: str) -> tuple[float, Near]:
    """How the file differs from one network: the share of tensors that agree, and the rest by the file's keys."""
    number, _ = index.facts(registry).architectures[name]
    network = index.facts(registry).networks[number]
    own = index.shapes(registry).of(number)
    aux = tuple(f"{path}." for path in network.aux)
    inside = {
        key: shape
        for key, shape in names.within(prefix).items()
        if not key.endswith(COUNTER) and not (aux and key.startswith(aux))
    }
    agreed = [key for key in inside if key in own and _fits(own[key], inside[key])]
    beside = [key for key in names.outside(prefix) if not naming.serves_training(key) and not key.endswith(COUNTER)]
    unexpected = [names.keys[prefix + key] for key in inside if key not in own] + [names.keys[key] for key in beside]
    misshaped = [
        (names.keys[prefix + key], shape, own[key])
        for key, shape in inside.items()
        if key in own and not _fits(own[key], shape)
    ]
    share = len(agreed) / (len(own.keys() | inside.keys()) + len(beside))
    missing = tuple(key for key in own if key not in inside)
    return share, Near(index.called(registry, name), missing, tuple(unexpected), tuple(misshaped))


def best_prefix(names: Names, registry: Registry, name: str) -> str:
    """The prefix under which the file agrees best with one network."""
    return max(naming.prefixes(names), key=lambda prefix: compare(names, prefix, registry, name)[0])


def _fits(own: Shape, shape: Shape) -> bool:
    return len(own) == len(shape) and all(a in (b, CLASSES) for a, b in zip(own, shape, strict=True))


Module = tuple[str, int]


def _modules(registry: Registry, shapes: dict[str, Shape]) -> frozenset[Module]:
    """The modules of a file with the numbers that the index has for their shapes, or -1 where it has none."""
    modules: dict[str, list[tuple[str, Shape]]] = {}
    for key, shape in shapes.items():
        path, _, leaf = key.rpartition(".")
        if leaf != COUNTER:
            modules.setdefault(path, []).append((leaf, shape))
    numbers = _numbers(registry)
    return frozenset((path, numbers.get(frozenset(tensors), -1)) for path, tensors in modules.items())


@cache
def _numbers(registry: Registry) -> dict[frozenset[tuple[str, Shape]], int]:
    return {frozenset(kind): number for number, kind in enumerate(index.shapes(registry).kinds)}


@cache
def _sets(registry: Registry) -> list[frozenset[Module]]:
    shapes = index.shapes(registry)
    return [frozenset(shapes.modules(number)) for number in range(len(shapes.networks))]
