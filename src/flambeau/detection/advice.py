"""What is said where nothing fits: the nearest misses, and a sentence about what to try."""

import difflib

from flambeau.detection import index, kinds, layers, near, numbers, sketches
from flambeau.detection.finding import Finding, Near
from flambeau.detection.index import Registry
from flambeau.detection.match import Refusal
from flambeau.detection.naming import Names
from flambeau.detection.others import Known
from flambeau.extras import pip_install

_OWN = "give your own class with --arch file.py:Class --allow-code"
_NAMED = 3
_CLOSE = 0.6  # the share of agreeing tensors from which a miss is likely to be that network, changed


def no_chain(names: Names) -> str:
    """Where `--arch mlp` was said of something else."""
    if table := kinds.nothing_but_tables(names):
        return table
    return f"this is no plain network over numbers: it has other layers than linear ones and norms; {_OWN}"


def no_task(known: Known) -> str:
    """Where the network is known, and nothing here serves what it does."""
    classes = f" with {known.classes} classes" if known.classes else ""
    also = f" (or {', '.join(known.names[1:])}, which has the same weights)" if known.names[1:] else ""
    return (
        f"this is torchvision's {known.names[0]}{also}{classes}: {known.task} is not served yet, but {sketches.AROUND}"
    )


def parametrised(module: str) -> str:
    """Where a weight is kept in parts that nobody here can put together."""
    return (
        f"{module} keeps its weight in a parametrisation that is not known: take it off before torch.save, "
        f"with torch.nn.utils.parametrize.remove_parametrizations, or {_OWN}"
    )


def unknown(wanted: str, registries: tuple[Registry, ...]) -> str:
    """Where `--arch` names nothing that is there."""
    asked, _, name = wanted.rpartition("/")
    if "timm" not in registries and asked in ("", "timm") and name in index.facts("timm").architectures:
        return f"{name} is an architecture of timm, which is not installed: {pip_install('timm')}"
    known = {numbers.NAME, *(name for registry in registries for name in index.facts(registry).architectures)}
    close = difflib.get_close_matches(name, sorted(known), n=_NAMED)
    hint = f"did you mean {' or '.join(close)}?" if close else f"write a torchvision or timm model's name, or {_OWN}"
    return f"there is no architecture named {wanted!r}: {hint}"


def no_activation(said: str) -> str:
    """Where `--hidden-activation` is none."""
    return f"--hidden-activation {said} is not known: say {', '.join(layers.ACTIVATIONS[:-1])} or none"


def asked_in_vain(miss: Near, refusals: list[Refusal]) -> str:
    """Where `--arch` names a network that the weights do not fill."""
    if refusals:
        return of_refusals(refusals)
    return f"{_differences(miss)}: try without --arch, which looks for the nearest, or {_OWN}"


def nothing(names: Names, refusals: list[Refusal], registries: tuple[Registry, ...]) -> Finding:
    """Where no architecture fits."""
    ranked = near.nearest(names, registries)
    misses = tuple(miss for _, miss in ranked)
    if refusals:
        owners = {(each.candidate.registry, each.candidate.number): each.candidate.prefix for each in refusals}
        bodies = [
            near.compare(names, prefix, registry, index.names_of(registry, number)[0])[1]
            for (registry, number), prefix in owners.items()
        ]
        merged = {miss.name: miss for miss in (*bodies, *misses)}
        return Finding(None, tuple(merged.values())[:_NAMED], of_refusals(refusals))
    if table := kinds.nothing_but_tables(names):
        return Finding(None, (), table)
    told, whole = kinds.words(names)
    if told and (not ranked or ranked[0][0] < _CLOSE):
        return Finding(None, (), _of_layers(told, whole))
    if not ranked:
        return Finding(None, (), f"no architecture that flambeau knows resembles these weights: {_OWN}")
    share, miss = ranked[0]
    if share >= _CLOSE:
        cut = "if the file is cut short or one of several, take the whole; " if _only_lacks(miss) else ""
        return Finding(None, misses, f"{_differences(miss)}: {cut}if the network was changed by hand, {_OWN}")
    return Finding(
        None,
        misses,
        f"no known architecture fits, and the nearest, {miss.name}, agrees in {share:.0%} of its tensors: name the "
        f"network with --arch, {_OWN}, or choose other weights in the file with --weights-key",
    )


def of_children(name: str, prefix: str) -> str:
    """Where the children of an architecture have numbers for names, and everything else fits."""
    where = f"at {prefix.rstrip('.')}" if prefix else "numbered"
    return (
        f"the weights are those of {name}, its children {where} as in nn.Sequential(*{name}().children()): say "
        f"--arch {name} if nothing stands between them but what is {name}'s own (average pooling before the last "
        f"layer), or {_OWN}"
    )


def assumed(name: str) -> str:
    """What is told of a network whose children have numbers for names, when it was asked for."""
    return f"its children are numbered, and what has no weights between them is taken as in {name}"


def of_refusals(refusals: list[Refusal]) -> str:
    """What to do about a body that was found with a head that was not understood."""
    best = next((each for each in refusals if each.gap), refusals[0])
    [name, *_] = index.names_of(best.candidate.registry, best.candidate.number)
    remedy = _OWN
    if best.gap:
        others = ", ".join(layers.ACTIVATIONS[1:])
        remedy = f"name what stands between them with --hidden-activation relu ({others}), or {_OWN}"
    return f"the body is that of {name}, but {best.why}: {remedy}"


def _of_layers(told: str, whole: bool) -> str:
    """What to do about a network that is known by its kinds of layers only. `whole`: it takes whole numbers."""
    if whole:
        return (
            f"these weights have {told}, so their network may take whole numbers such as token ids: {sketches.AROUND}"
        )
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
