"""Build replaced heads and plain networks from descriptions with a closed set of layers."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from torch import nn

from flambeau.bundle.storage import Head, HeadLayer
from flambeau.errors import SourceError

_MAKERS: dict[str, Callable[..., nn.Module]] = {
    "linear": nn.Linear,
    "batch_norm": nn.BatchNorm1d,
    "layer_norm": nn.LayerNorm,
    "identity": nn.Identity,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


def attach(network: nn.Module, head: Head) -> None:
    """Replace the module at `head.path` by `head`.

    If the layers' names are numbers, the architecture's own layer stays at every missing number, for example the
    activation between two linear layers: mobilenet_v3's `classifier` is 0 Linear, 1 Hardswish, 2 Dropout, 3 Linear, and
    a head with layers "0" and "3" keeps the Hardswish and the Dropout. Raises `SourceError` if there is nothing to
    replace, or nothing to keep at a missing number.
    """
    parent, _, name = head.path.rpartition(".")
    try:
        own = network.get_submodule(head.path)
        owner = network.get_submodule(parent)
    except AttributeError:
        raise SourceError(f"{type(network).__name__} has no {head.path} that a head could take the place of") from None
    if len(head.layers) == 1 and not head.layers[0].name:
        setattr(owner, name, _make(head.layers[0]))
        return
    layers = {layer.name: layer for layer in head.layers}
    chain = nn.Sequential()
    for place in _places(list(layers)):
        kept = None if place in layers else getattr(own, place, None)
        if place not in layers and not isinstance(kept, nn.Module):
            raise SourceError(f"the head's place {place} is empty, and {head.path} has no layer of its own there")
        chain.add_module(place, _make(layers[place]) if kept is None else kept)
    setattr(owner, name, chain)


def _make(layer: HeadLayer) -> nn.Module:
    """One layer, for rows of shape (N, sizes[0])."""
    maker = _MAKERS[layer.kind]
    return maker(*layer.sizes, bias=layer.bias) if layer.kind == "linear" else maker(*layer.sizes)


def _places(names: list[str]) -> list[str]:
    """If the names are numbers, every number up to the largest; else the names themselves."""
    if not all(name.isdigit() for name in names):
        return names
    return [str(number) for number in range(max(map(int, names)) + 1)]


# Plain networks over numbers: linear layers, norms and activations, one after the other.


PLAIN_NETWORK = "mlp"


def construct(layers: Sequence[dict[str, Any]]) -> nn.Sequential:
    """The network of these layers, each with a `HeadLayer`'s fields. Rows (N, inputs), float32, to (N, outputs)."""
    chain = nn.Sequential()
    for layer in msgspec.convert(layers, list[HeadLayer]):
        chain.add_module(layer.name, _make(layer))
    return chain
