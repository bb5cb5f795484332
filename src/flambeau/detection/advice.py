"""What is said where nothing fits: the nearest misses, and a sentence about what to try."""

import difflib

from flambeau.detection import index, layers, near, numbers
from flambeau.detection.finding import Finding, Near
from flambeau.detection.index import Registry
from flambeau.detection.match import Refusal
from flambeau.detection.naming import Names
from flambeau.extras import pip_install

_OWN = "give your own class with --arch file.py:Class --allow-code"
_NAMED = 3
_CLOSE = 0.6  # the share of agreeing tensors from which a miss is likely to be that network, changed


def no_chain() -> str:
    """Where `--arch mlp` was said of something else."""
    return f"this is no plain network over numbers: it has other layers than linear ones and norms; {_OWN}"


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
        return _of_refusals(refusals)
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
        return Finding(None, tuple(merged.values())[:_NAMED], _of_refusals(refusals))
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


def _of_refusals(refusals: list[Refusal]) -> str:
    """What to do about a body that was found with a head that was not understood."""
    best = next((each for each in refusals if each.gap), refusals[0])
    [name, *_] = index.names_of(best.candidate.registry, best.candidate.number)
    remedy = _OWN
    if best.gap:
        others = ", ".join(layers.ACTIVATIONS[1:])
        remedy = f"name what stands between them with --hidden-activation relu ({others}), or {_OWN}"
    return f"the body is that of {name}, but {best.why}: {remedy}"


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
