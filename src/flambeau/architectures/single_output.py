"""Pick the answer from what a network returns: a tensor with a row for each row of the input.

A network returns a tensor, or a tuple or mapping of tensors, from which the answer is picked by index or key. One that
ends in `.squeeze()` drops the axis of the rows when there is only one row; that axis is restored.

Example: a result `{"logits": t, "aux": [u]}` has the parts `logits` and `aux.0`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from flambeau.items import FREE

_DEEPEST = 3


def parts(result: Any, *, depth: int = _DEEPEST) -> dict[str, torch.Tensor]:
    """The tensors in what a network returned, by name: keys, fields or indices, joined by dots where nested.

    A single tensor has the empty name. Other values are skipped.
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
    """The tensor of that name, or the only one whatever the name. Raises `KeyError` if there is none of that name."""
    found = parts(result)
    if len(found) == 1:
        return next(iter(found.values()))
    return found[name]


def shaped(tensor: torch.Tensor, rows: int, shape: tuple[int, ...]) -> torch.Tensor:
    """The tensor as (rows, *shape), with squeezed axes of length 1 restored; unchanged if more than that differs."""
    if tensor.dim() == 1 + len(shape):
        return tensor
    longer = [size for size in (rows, *shape) if size != 1]
    return tensor.reshape(rows, *shape) if [size for size in tensor.shape if size != 1] == longer else tensor


class Answering(nn.Module):
    """Wraps a network for export so that it returns only its answer.

    It always reshapes, where `shaped` looks at the tensor first: the graph is for any number of rows, and the network
    may squeeze a single row but not several.
    """

    def __init__(self, network: Callable[..., Any], name: str, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.network = network
        self._name = name
        self._shape = shape

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return _laid(pick(self.network(rows), self._name), rows.shape[0], self._shape)


class AnsweringSeveral(nn.Module):
    """`Answering` for several inputs and outputs."""

    def __init__(self, network: Callable[..., Any], names: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> None:
        super().__init__()
        self.network = network
        self._outputs = tuple(zip(names, shapes, strict=True))

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        result = self.network(*inputs)
        return tuple(_laid(pick(result, name), inputs[0].shape[0], shape) for name, shape in self._outputs)


def _laid(tensor: torch.Tensor, rows: int, shape: tuple[int, ...]) -> torch.Tensor:
    """The tensor as (rows, *shape). With free axes it is left as it is, and its shape is checked later."""
    if FREE in shape:
        return tensor
    return tensor.flatten().reshape(rows, *shape)  # without flatten, the exporter drops a reshape to the same shape
