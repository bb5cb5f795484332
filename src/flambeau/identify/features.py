"""Takes the head off an architecture that was found, so that the network answers with the features before it.

It works on names and shapes, and constructs nothing. A head of the architecture's own is the module that depends on the
number of classes, such as `fc` of a ResNet; a replaced head is taken off as a whole. Where the replaced block is given
feature maps, as ConvNeXt's, its layers before the first linear one stay: they make vectors of the maps.
"""

from collections.abc import Mapping

import msgspec

from flambeau.bundle.storage import Head, HeadLayer
from flambeau.identify.finding import Fit
from flambeau.identify.index import Network, Shape


class HeadStaysError(Exception):
    """The head cannot be taken off. Its text says why, and what can be served instead."""


def before_head(fit: Fit, network: Network, shapes: Mapping[str, Shape]) -> Fit:
    """The same fit without its head. `shapes` are those of the file's tensors, by the file's own keys.

    Raises `HeadStaysError`. For example, a ResNet-18 with `fc.weight` of [37, 512] becomes one that makes 512 features,
    and `fc.weight` and `fc.bias` are set aside.
    """
    if fit.features:
        return fit
    name = fit.architecture.name
    if len(network.heads) != 1:
        told = " and ".join(network.heads[:2]) if len(network.heads) == 2 else f"{len(network.heads)} of them"
        raise HeadStaysError(
            f"{name} has several heads ({told}), so it cannot be told which features are meant: --output-name "
            f"{network.heads[0]} answers with its {fit.classes} outputs as they are"
        )
    replaced = fit.architecture.head
    path = replaced.path if replaced else network.heads[0]
    layers = replaced.layers if replaced else ()
    maps = bool(network.block and network.block.path == path and not network.block.flat)
    width = _width(layers, path, fit, shapes)
    if width is None or (maps and any(not layer.name.isdigit() for layer in layers)):
        raise HeadStaysError(
            f"what {name} gives its head ({path}) does not show in the weights: --output-name {path} answers with its "
            f"{fit.classes} outputs as they are"
        )
    first = next((int(layer.name) for layer in layers if layer.kind == "linear"), 0) if maps else 0
    keys = {theirs: ours for theirs, ours in fit.keys.items() if _stays(ours, path, first)}
    args = {key: value for key, value in fit.architecture.args.items() if key != "num_classes"}
    return msgspec.structs.replace(
        fit,
        architecture=msgspec.structs.replace(fit.architecture, args=args, head=_without(path, layers, first)),
        classes=width,
        keys=keys,
        aside=(*fit.aside, *(theirs for theirs in fit.keys if theirs not in keys)),
        features=True,
    )


def head_of(fit: Fit, network: Network) -> str:
    """The path of the head, as `--output-name` takes it."""
    return fit.architecture.head.path if fit.architecture.head else network.heads[0]


def _stays(name: str, path: str, first: int) -> bool:
    """Whether a tensor is outside the head, or in one of its layers before the first linear one, at place `first`."""
    if not name.startswith(f"{path}."):
        return True
    return first > 0 and int(name[len(path) + 1 :].partition(".")[0]) < first


def _width(layers: tuple[HeadLayer, ...], path: str, fit: Fit, shapes: Mapping[str, Shape]) -> int | None:
    """How many features the head is given: what its first linear layer takes."""
    if layers:
        return next((layer.sizes[0] for layer in layers if layer.kind == "linear"), None)
    own = next((shapes[theirs] for theirs, ours in fit.keys.items() if ours == f"{path}.weight"), ())
    return own[1] if len(own) >= 2 else None


def _without(path: str, layers: tuple[HeadLayer, ...], first: int) -> Head:
    """A head that does nothing; or, with `first`, one that keeps the layers before that place, and nothing else."""
    if not first:
        return Head(path, (HeadLayer("", "identity"),))
    kept = tuple(layer for layer in layers if int(layer.name) < first)
    ends = max(int(layer.name) for layer in layers)
    return Head(path, (*kept, *(HeadLayer(str(place), "identity") for place in range(first, ends + 1))))
