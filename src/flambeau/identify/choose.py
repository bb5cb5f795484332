"""Chooses among the architectures that fit, or gives advice if none does.

Example: weights with the names and shapes of resnet50 fit torchvision's `resnet50` and, with timm installed, also
`timm/resnet50`, `resnetaa50` and `resnetblur50`, which differ only in what weights do not show. torchvision comes
first, so `resnet50` is chosen, and the others are listed in `same_weights`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from flambeau.bundle.storage import Architecture, ImageConfig
from flambeau.identify import (
    detectors,
    index,
    layers,
    match,
    naming,
    nearest,
    segmentation_models,
    segmenters,
    unsupported,
)
from flambeau.identify.finding import Fit, Identified
from flambeau.identify.index import CLASSES, COUNTER, REGISTRIES, Registry, Shape
from flambeau.identify.match import ArchitectureMatch, Mismatch
from flambeau.identify.naming import Names
from flambeau.identify.unsupported import Known

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
    if wanted is not None and (name := segmentation_models.named(wanted)):
        return segmentation_models.find_named(names, name, args)
    asked = None
    if wanted is not None:
        asked = _look_up(wanted, registries)
        if asked is None and wanted in (*detectors.names(), *segmenters.names()):
            return _of_another_task(names, wanted, args)
        if asked is None:
            return Identified(None, advice=nearest.unknown(wanted, registries))
        registries = (asked.registry,)
    if asked is None and (found := segmentation_models.find(names, args)):
        return found
    matches, refusals = _sort(names, asked, activation, registries)
    if matches:
        return _fit(matches, names, asked, dict(args))
    if asked is None and (known := unsupported.find(names)):
        return _known(names, known, None, args)
    if asked is None and (chain := layers.find_plain(names, args)):
        return chain
    if not refusals and (found := _of_children(names, asked, activation, registries, dict(args))):
        return found
    if asked:
        return _asked_in_vain(names, asked, dict(args), refusals)
    return nearest.nothing(names, refusals, registries)


def _of_another_task(names: Names, wanted: str, args: Mapping[str, Any]) -> Identified:
    """The detector or segmenter that `--arch` names."""
    known = unsupported.find(names)
    if known is None or wanted not in known.names:
        return Identified(None, advice=nearest.no_detector(wanted, known))
    return _known(names, known, wanted, args)


def _known(names: Names, known: Known, wanted: str | None, args: Mapping[str, Any]) -> Identified:
    """A network of torchvision that is no classifier."""
    if known.task in detectors.SERVED:
        return detectors.find(names, known, wanted=wanted, args=args)
    if known.task == segmenters.SERVED:
        return segmenters.find(names, known, wanted=wanted, args=args)
    return Identified(None, advice=nearest.no_task(known), known=known)


def _of_children(
    names: Names,
    asked: _Requested | None,
    activation: str | None,
    registries: tuple[Registry, ...],
    args: dict[str, Any],
) -> Identified | None:
    """A network whose children are numbered instead of named.

    The weights do not show what its `forward` does between the children, and the class around them may do something
    else. So it is taken for the architecture only if the user names that; otherwise the advice asks for the name.
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
    """The architecture called `wanted`, or `None`."""
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
    """Choose a match: with a head before without, averaged weights before others, the architecture's own image size
    before another, then the library by preference, then the first name in alphabetical order.
    """
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
    if advice := nearest.unlike(args, "num_classes", taken.classes):
        return Identified(None, advice=advice)
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
    first = "torchvision's come first" if registry == "torchvision" else "its name comes first"
    return (
        f"{', '.join(others[:_NAMED])}{more} have weights of the same names and shapes and differ in what these do not "
        f"show, such as stride, activation or input size; {name} was taken because {first}, and --arch selects another"
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
    """A fit for constructor arguments that change shapes, which the index does not know. Loading the weights will show
    whether they fit; `None` if they cannot.
    """
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
        why=f"{asked.name} was asked for with arguments of its own: loading the weights shows whether they fit",
        pipeline=_pipeline(asked.registry, asked.name, args.get("image_size", args.get("img_size"))),
    )


# Networks whose children lie in an `nn.Sequential` and so have lost their names, as in fastai and many tutorials:
#
#     features = nn.Sequential(*list(resnet18().children())[:-1])    # features.4.0.conv1.weight: layer1.0.conv1.weight
#
# Names within a child are the architecture's own. Children without weights take numbers too, so only the order of the
# numbers counts. If an architecture's children have, in order, exactly the names and shapes of the file's, they get
# their names back, and the search goes on with those.


PLACE = "children"
"""The name under which the renamed children lie."""

_FEWEST = 10  # tensors: fewer may be alike by chance

ChildTensors = frozenset[tuple[str, Shape]]


class Renamed(msgspec.Struct, frozen=True):
    """The tensors, with the children that lay numbered at `prefix` renamed as in one architecture."""

    names: Names
    prefix: str
    registry: Registry
    number: int


def renamed(names: Names, registries: tuple[Registry, ...], *, wanted: int | None = None) -> Iterator[Renamed]:
    """Every way to rename numbered children as in an architecture, in the order of `registries`.

    With `wanted`, a number in the index of the only registry, just that network is tried.
    """
    for prefix in names.prefixes:
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
    """The networks whose first module equals the file's first one: a quick test before the full comparison."""
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
    """The tensors of one child, without those whose shape depends on the number of classes."""
    path = f"{name}."
    return frozenset(
        (key[len(path) :], shape) for key, shape in shapes.items() if key.startswith(path) and CLASSES not in shape
    )


def _under(names: Names, prefix: str, called: Mapping[str, str]) -> Names:
    """The names with the children's numbers replaced by their names, below `PLACE`, apart from the rest at `prefix`."""

    def new(name: str) -> str:
        place, dot, rest = name[len(prefix) :].partition(".")
        found = name.startswith(prefix) and place in called
        return f"{prefix}{PLACE}.{called[place]}{dot}{rest}" if found else name

    return Names(
        {new(name): shape for name, shape in names.shapes.items()},
        {new(name): key for name, key in names.keys.items()},
        names.aside,
    )
