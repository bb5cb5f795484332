"""The nearest misses, with the advice for weights that fit no architecture.

All networks are compared by module first, as numbers; then the best few by tensor. This reads the shapes of the index,
which an exact match does not need.
"""

import difflib
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from typing import Any

from flambeau.identify import index, layers, naming, unsupported
from flambeau.identify.finding import Identified, Near
from flambeau.identify.index import CLASSES, COUNTER, Registry, Shape
from flambeau.identify.match import Mismatch
from flambeau.identify.naming import Names
from flambeau.identify.unsupported import Known
from flambeau.system.machine import pip_install

LEAST = 0.1
"""The share of tensors that must agree for a network to be worth naming."""

_MOST = 3
_CLOSER_LOOK = 8  # networks, of those that share most modules


def left_over(name: str, left: Collection[str]) -> str:
    """The advice for a file with these tensors besides those of the network `name`; empty if there are none."""
    more = ", ".join(sorted(left)[:3])
    if not left:
        return ""
    told = f"the weights are those of {name}, but the file has {len(left)} more: {more}{', …' if len(left) > 3 else ''}"
    return (
        f"{told}: if they do nothing to the answer, save the weights of the network alone (in a training module "
        f"torch.save(module.model.state_dict(), 'net.pth')), or {_OWN}"
    )


def unlike(args: Mapping[str, Any], argument: str, count: int) -> str:
    """The advice for an argument, such as `num_classes`, that says another number than the weights; else empty."""
    if args.get(argument, count) == count:
        return ""
    told = f"--arch-args say {args[argument]} {argument.removeprefix('num_')}, and the weights have {count}"
    return f"{told}: leave {argument} out"


def averaged(prefix: str) -> list[str]:
    """The note on weights that lie at this prefix beside others, if they are averaged."""
    if not naming.is_averaged(prefix):
        return []
    return [f"of two sets of weights, the averaged ones at {prefix.rstrip('.')} are taken"]


def nearest(names: Names, registries: Iterable[Registry]) -> list[tuple[float, Near]]:
    """At most three networks, each with the share of tensors that agree, the best first."""
    scored = []
    for prefix in names.prefixes:
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
    """Compare the file with one network: the share of tensors that agree, and the differences by the file's keys."""
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
    return max(names.prefixes, key=lambda prefix: compare(names, prefix, registry, name)[0], default="")


def _fits(own: Shape, shape: Shape) -> bool:
    return len(own) == len(shape) and all(a in (b, CLASSES) for a, b in zip(own, shape, strict=True))


Module = tuple[str, int]


def _modules(registry: Registry, shapes: dict[str, Shape]) -> frozenset[Module]:
    """The modules of a file, each with its number in the index's kinds, or -1 if it has none."""
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


# Advice for each way in which nothing fits.


_OWN = "give your own class with --arch file.py:Class --allow-code"
_NAMED = 3
_CLOSE = 0.6  # the share of agreeing tensors from which a miss is likely to be that network, changed


def no_chain(names: Names) -> str:
    """The file is not the plain network that `--arch mlp` says it is."""
    if table := unsupported.nothing_but_tables(names):
        return table
    return f"this is no plain network over numbers: it has other layers than linear ones and norms; {_OWN}"


def no_task(known: Known) -> str:
    """The network is known, but its task is not supported."""
    classes = f" with {known.classes} classes" if known.classes else ""
    also = f" (or {', '.join(known.names[1:])}, which has the same weights)" if known.names[1:] else ""
    name = f"torchvision's {known.names[0]}{also}{classes}"
    return f"this is {name}: {known.task} is not served yet, but {unsupported.AROUND}"


def no_detector(wanted: str, known: Known | None) -> str:
    """`--arch` names a detector that the weights do not fill."""
    found = f"they are those of {known.names[0]}" if known else "they are those of no network of torchvision"
    return f"the weights do not fill {wanted}: {found}: try without --arch, or {_OWN}"


def parametrised(module: str) -> str:
    """A weight is kept in parts by an unknown parametrisation."""
    return (
        f"{module} keeps its weight in a parametrisation that is not known: take it off before torch.save, "
        f"with torch.nn.utils.parametrize.remove_parametrizations, or {_OWN}"
    )


def unknown(wanted: str, registries: tuple[Registry, ...]) -> str:
    """`--arch` names no known architecture."""
    asked, _, name = wanted.rpartition("/")
    if "timm" not in registries and asked in ("", "timm") and name in index.facts("timm").architectures:
        return f"{name} is an architecture of timm, which is not installed: {pip_install('timm')}"
    known = {
        layers.PLAIN_NETWORK,
        *(name for registry in registries for name in index.facts(registry).architectures),
    }
    close = difflib.get_close_matches(name, sorted(known), n=_NAMED)
    hint = f"did you mean {' or '.join(close)}?" if close else f"write a torchvision or timm model's name, or {_OWN}"
    return f"there is no architecture named {wanted!r}: {hint}"


def none_of(name: str) -> str:
    """`--arch` names a network that is told by the names of its tensors, and the weights have other names."""
    return f"the weights have not the names of {name}: try without --arch, which looks for the nearest, or {_OWN}"


def no_activation(said: str) -> str:
    """`--hidden-activation` names no known activation."""
    return f"--hidden-activation {said} is not known: say {', '.join(layers.ACTIVATIONS[:-1])} or none"


def asked_in_vain(miss: Near, refusals: list[Mismatch]) -> str:
    """`--arch` names a network that the weights do not fill."""
    if refusals:
        return of_refusals(refusals)
    return f"{_differences(miss)}: try without --arch, which looks for the nearest, or {_OWN}"


def nothing(names: Names, refusals: list[Mismatch], registries: tuple[Registry, ...]) -> Identified:
    """No architecture fits: the nearest misses, and what to try."""
    ranked = nearest(names, registries)
    misses = tuple(miss for _, miss in ranked)
    if refusals:
        owners = {(each.candidate.registry, each.candidate.number): each.candidate.prefix for each in refusals}
        bodies = [
            compare(names, prefix, registry, index.names_of(registry, number)[0])[1]
            for (registry, number), prefix in owners.items()
        ]
        merged = {miss.name: miss for miss in (*bodies, *misses)}
        return Identified(None, tuple(merged.values())[:_NAMED], of_refusals(refusals))
    if table := unsupported.nothing_but_tables(names):
        return Identified(None, (), table)
    told, whole = unsupported.words(names)
    if told and (not ranked or ranked[0][0] < _CLOSE):
        return Identified(None, (), _of_layers(told, whole))
    if not ranked:
        return Identified(None, (), f"no architecture that flambeau knows resembles these weights: {_OWN}")
    share, miss = ranked[0]
    if share >= _CLOSE:
        cut = "if the file is cut short or one of several, take the whole; " if _only_lacks(miss) else ""
        return Identified(None, misses, f"{_differences(miss)}: {cut}if the network was changed by hand, {_OWN}")
    return Identified(
        None,
        misses,
        f"no known architecture fits, and the nearest, {miss.name}, agrees in {share:.0%} of its tensors: name the "
        f"network with --arch, {_OWN}, or choose other weights in the file with --weights-key",
    )


def of_children(name: str, prefix: str) -> str:
    """The children of an architecture are numbered instead of named, and everything else fits."""
    where = f"at {prefix.rstrip('.')}" if prefix else "numbered"
    return (
        f"the weights are those of {name}, its children {where} as in nn.Sequential(*{name}().children()): say "
        f"--arch {name} if nothing stands between them but what is {name}'s own (average pooling before the last "
        f"layer), or {_OWN}"
    )


def assumed(name: str) -> str:
    """The note on a network with numbered children that the user named."""
    return f"its children are numbered, and what has no weights between them is taken as in {name}"


def of_refusals(refusals: list[Mismatch]) -> str:
    """The body is known, but its head is not understood."""
    best = next((each for each in refusals if each.gap), refusals[0])
    [name, *_] = index.names_of(best.candidate.registry, best.candidate.number)
    remedy = _OWN
    if best.gap:
        others = ", ".join(layers.ACTIVATIONS[1:])
        remedy = f"name what stands between them with --hidden-activation relu ({others}), or {_OWN}"
    return f"the body is that of {name}, but {best.why}: {remedy}"


def _of_layers(told: str, whole: bool) -> str:
    """Only the kinds of layers are known. `whole`: the network may take whole numbers."""
    if whole:
        takes = "so their network may take whole numbers such as token ids"
        return f"these weights have {told}, {takes}: {unsupported.AROUND}"
    return (
        f"no architecture that flambeau knows resembles these weights, which have {told}: {_OWN}, and the shape of one "
        "item with --input-shape"
    )


def _only_lacks(miss: Near) -> bool:
    return bool(miss.missing) and not miss.unexpected and not miss.misshaped


def _differences(miss: Near) -> str:
    told = [
        f"{len(keys)} {what} ({', '.join(keys[:2])}{', …' if len(keys) > 2 else ''})"
        for what, keys in (
            ("missing", miss.missing),
            ("unexpected", miss.unexpected),
            ("of another shape", tuple(f"{key} {list(file)} for {list(own)}" for key, file, own in miss.misshaped)),
        )
        if keys
    ]
    return f"the weights do not fill {miss.name}: {'; '.join(told)}"
