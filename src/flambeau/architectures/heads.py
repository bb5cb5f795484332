"""Heads and plain networks from their description: layers of a closed set, put where an architecture had its own."""

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
    """Put `head` in the place of the module at `head.path`.

    Where its layers have numbers for names, a number that none of them has keeps the architecture's own layer: so the
    activation between two linear layers stays what it was. Raises `SourceError` where there is nothing to replace.
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
    """One layer, for vectors: rows (N, sizes[0])."""
    maker = _MAKERS[layer.kind]
    return maker(*layer.sizes, bias=layer.bias) if layer.kind == "linear" else maker(*layer.sizes)


def _places(names: list[str]) -> list[str]:
    """Every place up to the last, where they are numbers; else the names as they are."""
    if not all(name.isdigit() for name in names):
        return names
    return [str(number) for number in range(max(map(int, names)) + 1)]


# Plain networks over numbers: linear layers, norms and activations, one after the other.


PLAIN_NETWORK = "mlp"


def construct(layers: Sequence[dict[str, Any]]) -> nn.Sequential:
    """The network of these layers, each as `HeadLayer` has it. Rows (N, inputs), float32, to rows (N, outputs)."""
    chain = nn.Sequential()
    for layer in msgspec.convert(layers, list[HeadLayer]):
        chain.add_module(layer.name, _make(layer))
    return chain
