"""What a network returns, to the one tensor that is its answer: a row of numbers for each row of its input.

Networks return a tensor; or a tuple or a mapping of them, of which one is the answer, by its place or key. A network
that ends in `.squeeze()` loses the axis of the rows where there is one row; it is put back.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from flambeau.items import FREE

_DEEPEST = 3


def parts(result: Any, *, depth: int = _DEEPEST) -> dict[str, torch.Tensor]:
    """The tensors in what a network returned, by name: keys, fields or numbers, joined by dots where they are nested.

    One tensor alone has the empty name. What is no tensor is passed over.
    """
    if isinstance(result, torch.Tensor):
        return {"": result}
    found: dict[str, torch.Tensor] = {}
    for name, value in _children(result) if depth else ():
        for below, tensor in parts(value, depth=depth - 1).items():
            found[f"{name}.{below}" if below else name] = tensor
    return found


def _children(result: Any) -> list[tuple[str, Any]]:
    if isinstance(result, Mapping):
        return [(str(key), value) for key, value in result.items()]
    if isinstance(result, tuple | list):
        names = getattr(result, "_fields", None) or range(len(result))
        return [(str(name), value) for name, value in zip(names, result, strict=True)]
    if dataclasses.is_dataclass(result):
        return [(field.name, getattr(result, field.name)) for field in dataclasses.fields(result)]
    return []


def pick(result: Any, name: str) -> torch.Tensor:
    """The tensor of that name; where there is only one, it has any name. Raises `KeyError` when it is not there."""
    found = parts(result)
    if len(found) == 1:
        return next(iter(found.values()))
    return found[name]


def shaped(tensor: torch.Tensor, rows: int, shape: tuple[int, ...]) -> torch.Tensor:
    """The tensor with the axis of its rows and those axes of length 1 that were squeezed away: (rows, *shape)."""
    if tensor.dim() == 1 + len(shape):
        return tensor
    longer = [size for size in (rows, *shape) if size != 1]
    return tensor.reshape(rows, *shape) if [size for size in tensor.shape if size != 1] == longer else tensor


class Answering(nn.Module):
    """A network that returns nothing but its answer, to be exported.

    What `shaped` asks in Python, a graph has to do in any case: it may squeeze one row where several are kept.
    """

    def __init__(self, network: Callable[..., Any], name: str, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.network = network
        self._name = name
        self._shape = shape

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return _laid(pick(self.network(rows), self._name), rows.shape[0], self._shape)


class AnsweringSeveral(nn.Module):
    """The same for several inputs and outputs."""

    def __init__(self, network: Callable[..., Any], names: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> None:
        super().__init__()
        self.network = network
        self._outputs = tuple(zip(names, shapes, strict=True))

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        result = self.network(*inputs)
        return tuple(_laid(pick(result, name), inputs[0].shape[0], shape) for name, shape in self._outputs)


def _laid(tensor: torch.Tensor, rows: int, shape: tuple[int, ...]) -> torch.Tensor:
    """The tensor as (rows, *shape); one with axes of any length as it is, for whether it fits is checked later."""
    if FREE in shape:
        return tensor
    return tensor.flatten().reshape(rows, *shape)  # or the exporter leaves out a reshape to the same shape
