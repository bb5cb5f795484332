"""Which of the networks that fit is taken, and what is said where none does."""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from flambeau.bundle.storage import Architecture, ImageConfig
from flambeau.identify import index, layers, match, naming, nearest, unsupported
from flambeau.identify.finding import Fit, Identified
from flambeau.identify.index import CLASSES, COUNTER, REGISTRIES, Registry, Shape
from flambeau.identify.match import ArchitectureMatch, Mismatch
from flambeau.identify.naming import Names

_NAMED = 3


class _Requested(msgspec.Struct, frozen=True):
    registry: Registry
    name: str

    @property
    def number(self) -> int:
        return index.facts(self.registry).architectures[self.name][0]


def find(
    shapes: Mapping[str, Shape],
    *,
    wanted: str | None,
    args: Mapping[str, Any],
    activation: str | None,
    registries: tuple[Registry, ...],
) -> Identified:
    """See `flambeau.identify.detect`."""
    if activation not in (None, *layers.ACTIVATIONS):
        return Identified(None, advice=nearest.no_activation(str(activation)))
    names = naming.unwrap(shapes)
    if wanted == layers.PLAIN_NETWORK:
        return layers.find_plain(names, args, asked=True) or Identified(None, advice=nearest.no_chain(names))
    asked = None
    if wanted is not None:
        asked = _look_up(wanted, registries)
        if asked is None:
            return Identified(None, advice=nearest.unknown(wanted, registries))
        registries = (asked.registry,)
    matches, refusals = _sort(names, asked, activation, registries)
    if matches:
        return _fit(matches, names, asked, dict(args))
    if asked is None and (known := unsupported.find(names)):
        return Identified(None, advice=nearest.no_task(known), known=known)
    if asked is None and (chain := layers.find_plain(names, args)):
        return chain
    if not refusals and (found := _of_children(names, asked, activation, registries, dict(args))):
        return found
    if asked:
        return _asked_in_vain(names, asked, dict(args), refusals)
    return nearest.nothing(names, refusals, registries)


def _of_children(
    names: Names,
    asked: _Requested | None,
    activation: str | None,
    registries: tuple[Registry, ...],
    args: dict[str, Any],
) -> Identified | None:
    """A network whose children have numbers for names.

    What its own `forward` did between them does not show, and a class around them has another: so it is taken for the
    architecture's where somebody names that, and is else asked for.
    """
    for found in renamed(names, registries, wanted=asked.number if asked else None):
        matches, refusals = _sort(found.names, asked, activation, registries)
        [name, *_] = index.names_of(found.registry, found.number)
        if matches and asked:
            fit = _fit(matches, found.names, asked, args)
            return msgspec.structs.replace(fit, notes=(*fit.notes, nearest.assumed(name))) if fit.fit else fit
        if matches:
            return Identified(None, advice=nearest.of_children(index.called(found.registry, name), found.prefix))
        if refusals:
            return Identified(None, advice=nearest.of_refusals(refusals))
    return None


def _look_up(wanted: str, registries: tuple[Registry, ...]) -> _Requested | None:
    """The architecture of that name."""
    asked, _, name = wanted.rpartition("/")
    for registry in registries:
        if asked in ("", registry) and name in index.facts(registry).architectures:
            return _Requested(registry, name)
    return None


def _sort(
    names: Names, asked: _Requested | None, activation: str | None, registries: tuple[Registry, ...]
) -> tuple[list[ArchitectureMatch], list[Mismatch]]:
    matches: list[ArchitectureMatch] = []
    refusals: list[Mismatch] = []
    done: set[tuple[Registry, int, str]] = set()
    for candidate in match.candidates(names, registries):
        known = (candidate.registry, candidate.number, candidate.prefix)
        if known in done or (asked and candidate.number != asked.number):
            continue
        if not index.names_of(candidate.registry, candidate.number):
            continue
        found = match.match(candidate, names, activation=activation)
        if isinstance(found, ArchitectureMatch):
            done.add(known)
            matches.append(found)
        else:
            refusals.append(found)
    return matches, refusals


def _fit(matches: list[ArchitectureMatch], names: Names, asked: _Requested | None, args: dict[str, Any]) -> Identified:
    """Averaged weights before others, own sizes before resized ones, and libraries in the order of preference."""
    matches.sort(
        key=lambda each: (
            each.features,
            not naming.is_averaged(each.candidate.prefix),
            each.size is not None,
            REGISTRIES.index(each.candidate.registry),
            _names(each, asked)[0],
        )
    )
    taken, *_ = matches
    alike = [each for each in matches if each.candidate.prefix == taken.candidate.prefix and each.size == taken.size]
    registry = taken.candidate.registry
    [name, *_] = _names(taken, asked)
    if args.get("num_classes", taken.classes) != taken.classes:
        told = f"--arch-args say {args['num_classes']} classes, and the weights have {taken.classes}"
        return Identified(None, advice=f"{told}: leave num_classes out")
    others = [
        index.called(each.candidate.registry, other)
        for each in alike
        for other in index.names_of(each.candidate.registry, each.candidate.number)
        if (each.candidate.registry, other) != (registry, name)
    ]
    fit = Fit(
        architecture=Architecture(registry, name, {**taken.args, **args}, head=taken.head),
        classes=taken.classes,
        keys=taken.keys,
        aside=taken.aside,
        same_weights=tuple(dict.fromkeys(others)),
        why=_why(name, registry, others, asked),
        pipeline=_pipeline(registry, name, args.get("image_size", args.get("img_size", taken.size))),
        features=taken.features,
    )
    notes = list(taken.notes)
    if taken.size:
        notes.append(f"its table of positions is for images of {taken.size} pixels")
    if naming.is_averaged(taken.candidate.prefix) and any(not naming.serves_training(key) for key in taken.aside):
        notes.append(f"of two sets of weights, the averaged ones at {taken.candidate.prefix.rstrip('.')} are taken")
    return Identified(fit, notes=tuple(notes))


def _names(found: ArchitectureMatch, asked: _Requested | None) -> tuple[str, ...]:
    return (asked.name,) if asked else index.names_of(found.candidate.registry, found.candidate.number)


def _why(name: str, registry: Registry, others: list[str], asked: _Requested | None) -> str:
    if asked or not others:
        return f"{name} was asked for" if asked else ""
    more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
    first = "torchvision's come first" if registry == "torchvision" else "its name is the plainest"
    return (
        f"{', '.join(others[:_NAMED])}{more} have weights of the same names and shapes and differ in what these do not "
        f"show, such as stride, activation or input size; {name} was taken because {first}, and --arch takes another"
    )


def _pipeline(registry: Registry, name: str, size: int | None) -> ImageConfig:
    facts = index.facts(registry)
    own = facts.pipelines[facts.architectures[name][1]]
    return msgspec.structs.replace(own, resize=size, crop=size) if size and size != own.crop else own


def _asked_in_vain(names: Names, asked: _Requested, args: dict[str, Any], refusals: list[Mismatch]) -> Identified:
    prefix = nearest.best_prefix(names, asked.registry, asked.name)
    _, miss = nearest.compare(names, prefix, asked.registry, asked.name)
    if args.keys() - {"num_classes"} and (fit := _unseen(names, asked, args, prefix)):
        return Identified(fit)
    return Identified(None, (miss,), nearest.asked_in_vain(miss, refusals))


def _unseen(names: Names, asked: _Requested, args: dict[str, Any], prefix: str) -> Fit | None:
    """A network whose arguments change its shapes, as the index cannot know: filling it shows whether it fits."""
    network = index.facts(asked.registry).networks[asked.number]
    inside = names.within(prefix)
    counts = {
        inside[key][own.index(index.CLASSES)]
        for key, own in network.outputs.items()
        if index.CLASSES in own and len(inside.get(key, ())) == len(own)
    }
    if len(counts) != 1:
        return None
    [classes] = counts
    beside = [name for name in names.outside(prefix) if naming.serves_training(name)]
    if len(beside) + len(inside) < len(names.shapes):
        return None
    return Fit(
        architecture=Architecture(asked.registry, asked.name, {"num_classes": classes, **args}),
        classes=classes,
        keys={names.keys[prefix + name]: name for name in inside},
        aside=(*names.aside, *(names.keys[name] for name in beside)),
        why=f"{asked.name} was asked for with arguments of its own: whether the weights fit shows when they fill it",
        pipeline=_pipeline(asked.registry, asked.name, args.get("image_size", args.get("img_size"))),
    )


# Networks whose children lie in an `nn.Sequential`, and so have lost their names: fastai's, and many tutorials'.
#
#     features = nn.Sequential(*list(resnet18().children())[:-1])    # features.4.0.conv1.weight: layer1.0.conv1.weight
#
# Within a child the names are the architecture's own. The children stand in their order, those without weights too, so
# that the numbers leave gaps and say nothing more. An architecture whose children have, in order, exactly the names and
# shapes of the file's gives them their names back, and what follows goes on as if they had never been lost.


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
