"""Networks whose children lie in an `nn.Sequential`, and so have lost their names: fastai's, and many tutorials'.

    features = nn.Sequential(*list(resnet18().children())[:-1])      # features.4.0.conv1.weight: layer1.0.conv1.weight

Within a child the names are the architecture's own. The children stand in their order, those without weights too, so
that the numbers leave gaps and say nothing more. An architecture whose children have, in order, exactly the names and
shapes of the file's gives them their names back, and what follows goes on as if they had never been lost.
"""

from collections.abc import Iterator, Mapping

import msgspec

from flambeau.identify import index, layers, naming
from flambeau.identify.index import CLASSES, COUNTER, Registry, Shape
from flambeau.identify.naming import Names

PLACE = "children"
"""The name under which the children lie once they have their names back."""

_FEWEST = 10  # tensors: fewer are alike by chance

ChildTensors = frozenset[tuple[str, Shape]]


class Renamed(msgspec.Struct, frozen=True):
    """The tensors with the names of one architecture's children, which lay numbered at `prefix`."""

    names: Names
    prefix: str
    registry: Registry
    number: int


def renamed(names: Names, registries: tuple[Registry, ...], *, wanted: int | None = None) -> Iterator[Renamed]:
    """Every way to give numbered children the names of an architecture's, in the order of `registries`.

    With `wanted`, a number in the index of the one registry that is given, only that network's.
    """
    for prefix in naming.prefixes(names):
        inside = {key: shape for key, shape in names.within(prefix).items() if not key.endswith(COUNTER)}
        numbered = dict.fromkeys(key.partition(".")[0] for key in inside)
        if len(inside) < _FEWEST or not all(map(layers.is_place, numbered)):
            continue
        places = sorted(numbered, key=int)
        theirs = [_child(inside, place) for place in places]
        for registry in registries:
            for number in _alike(registry, inside, places[0]):
                if wanted not in (None, number) or not index.names_of(registry, number):
                    continue
                own = index.shapes(registry).of(number)
                called = _called(registry, number, own)
                if len(own) >= _FEWEST and [_child(own, name) for name in called] == theirs[: len(called)]:
                    new = dict(zip(places, called, strict=False))
                    yield Renamed(_under(names, prefix, new), prefix, registry, number)


def _alike(registry: Registry, inside: Mapping[str, Shape], place: str) -> Iterator[int]:
    """The networks whose first module is the first of the file's: a look at one module of each is quick."""
    known = index.shapes(registry)
    for number, (paths, kinds) in enumerate(known.networks):
        _, dot, rest = known.paths[paths].partition(" ")[0].partition(".")
        path = f"{place}.{rest}{dot}"
        if all(inside.get(path + name) == shape for name, shape in known.kinds[kinds[0]]):
            yield number


def _called(registry: Registry, number: int, own: Mapping[str, Shape]) -> list[str]:
    """The names of a network's children that have weights, in order, without its head."""
    network = index.facts(registry).networks[number]
    heads = {path.partition(".")[0] for path in (*network.heads, *network.aux)}
    return [name for name in dict.fromkeys(key.partition(".")[0] for key in own) if name not in heads]


def _child(shapes: Mapping[str, Shape], name: str) -> ChildTensors:
    """The tensors of one child. A shape that depends on the number of classes is no body's."""
    path = f"{name}."
    return frozenset(
        (key[len(path) :], shape) for key, shape in shapes.items() if key.startswith(path) and CLASSES not in shape
    )


def _under(names: Names, prefix: str, called: Mapping[str, str]) -> Names:
    """The names with the children's own in the place of their numbers, apart from what else lies at `prefix`."""

    def new(name: str) -> str:
        place, dot, rest = name[len(prefix) :].partition(".")
        found = name.startswith(prefix) and place in called
        return f"{prefix}{PLACE}.{called[place]}{dot}{rest}" if found else name

    return Names(
        {new(name): shape for name, shape in names.shapes.items()},
        {new(name): key for name, key in names.keys.items()},
        names.aside,
    )
