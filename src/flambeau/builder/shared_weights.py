"""One copy of the weights: the graph refers to PyTorch's weights file instead of holding its own.

The exporter transposes matrices, and multiplies batch norms into the convolutions before them. For such a weight the
graph keeps a node that makes it from the stored one (`Transpose`, or `Mul` by a scale per channel), evaluated when the
graph is loaded. Where that does not give the same bits, the graph keeps its own weight.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from flambeau.builder.sandbox import safetensors_writer

_LEAST = 1024  # bytes; smaller weights stay in the graph
_WORTH_IT = 1_000_000  # bytes of weights; a smaller graph stays in one piece
_DTYPES = {
    torch.float32: ir.DataType.FLOAT,
    torch.float16: ir.DataType.FLOAT16,
    torch.bfloat16: ir.DataType.BFLOAT16,
    torch.int64: ir.DataType.INT64,
}

_Key = tuple[ir.DataType, tuple[int, ...], bytes]


@dataclass(frozen=True)
class Stored:
    """Tensors in a file, and by the same names the byte offsets where they begin."""

    file: Path
    tensors: dict[str, torch.Tensor]
    begins: dict[str, int]


def store(network: nn.Module, file: Path) -> Stored:
    """Write the network's weights as safetensors. Raises `SourceError` for weights it cannot hold, and `OSError`."""
    tensors = network.state_dict()
    with file.open("wb") as opened:
        safetensors_writer.write(tensors, opened, say=lambda done, of: None)
    head, _ = safetensors_writer.plan(tensors)
    entries = json.loads(head[8:])
    return Stored(file, tensors, {name: len(head) + entry["data_offsets"][0] for name, entry in entries.items()})


def refer(model: ir.Model, stored: Stored) -> None:
    """Make the graph take its weights from the file beside it, as far as they are in there."""
    if sum(safetensors_writer.size(tensor) for tensor in stored.tensors.values()) < _WORTH_IT:
        return
    known = {key: name for name, tensor in stored.tensors.items() if (key := _key_of(tensor)) is not None}
    for value in list(model.graph.initializers.values()):
        if value.const_value is not None and value.const_value.nbytes >= _LEAST:
            _refer(model.graph, value, stored, known)


def _refer(graph: ir.Graph, value: ir.Value, stored: Stored, known: dict[_Key, str]) -> None:
    assert value.const_value is not None
    assert value.name is not None
    numbers, dtype, name = value.const_value.numpy(), value.const_value.dtype, value.name
    if same := known.get(_key(dtype, numbers)):
        value.const_value = _external(stored, same, dtype, name)
        return
    if numbers.ndim == 2 and (turned := known.get(_key(dtype, numbers.T))):
        whole = _initializer(graph, f"{name}.stored", _external(stored, turned, dtype, f"{name}.stored"))
        _replace(graph, value, ir.node("Transpose", [whole], {"perm": [1, 0]}))
        return
    for candidate in _alike(value, stored):
        scale = scale_of(stored.tensors[candidate].numpy(), numbers)
        if scale is not None:
            whole = _initializer(graph, f"{name}.stored", _external(stored, candidate, dtype, f"{name}.stored"))
            by = _initializer(graph, f"{name}.scale", ir.tensor(scale, name=f"{name}.scale"))
            _replace(graph, value, ir.node("Mul", [whole, by]))
            return


def _alike(value: ir.Value, stored: Stored) -> Iterator[str]:
    """The stored kernels that may be this one without its scale, the one of the same name first."""
    assert value.const_value is not None
    shape = tuple(value.const_value.shape.numpy())
    if len(shape) < 3 or value.const_value.dtype != ir.DataType.FLOAT:
        return
    fitting = [n for n, t in stored.tensors.items() if tuple(t.shape) == shape and t.dtype == torch.float32]
    yield from sorted(fitting, key=lambda name: not str(value.name).endswith(name))


def scale_of(kernel: np.ndarray, scaled: np.ndarray) -> np.ndarray | None:
    """The float32 factors of shape (channels, 1, ...) with `kernel * factors == scaled` to the bit, or `None`."""
    rows = np.arange(len(kernel))
    before, after = kernel.reshape(len(kernel), -1), scaled.reshape(len(kernel), -1)
    largest = np.abs(before).argmax(axis=1)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        guess = (after[rows, largest].astype(np.float64) / before[rows, largest]).astype(np.float32)
        guess = np.where(np.isfinite(guess), guess, np.float32(1))
        if not np.allclose(before[0] * guess[0], after[0], rtol=1e-5, atol=0):
            return None  # most kernels of this shape do not match, and the first channel shows it
        factors, found = guess.copy(), np.zeros(len(kernel), bool)
        for near in (guess, np.nextafter(guess, np.float32(np.inf)), np.nextafter(guess, np.float32(-np.inf))):
            right = ~found & (before * near[:, None] == after).all(axis=1)
            factors[right], found = near[right], found | right
    return factors.reshape(-1, *[1] * (kernel.ndim - 1)) if found.all() else None


def _external(stored: Stored, name: str, dtype: ir.DataType, called: str) -> ir.ExternalTensor:
    tensor = stored.tensors[name]
    return ir.ExternalTensor(
        stored.file.name, stored.begins[name], safetensors_writer.size(tensor), dtype,
        shape=ir.Shape(tuple(tensor.shape)), name=called, base_dir=stored.file.parent,
    )  # fmt: skip


def _initializer(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    value = ir.Value(
        name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def _replace(graph: ir.Graph, value: ir.Value, node: ir.Node) -> None:
    """Replace the initializer by the node's output."""
    made, name = node.outputs[0], value.name
    made.shape, made.type = value.shape, value.type
    value.replace_all_uses_with(made)
    graph.initializers.pop(str(name))
    made.name = name
    value.const_value = None  # other references to the value would keep its numbers alive
    graph.insert_before(graph[0], node)


def _key_of(tensor: torch.Tensor) -> _Key | None:
    if tensor.dtype not in _DTYPES or safetensors_writer.size(tensor) < _LEAST:
        return None
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return _DTYPES[tensor.dtype], tuple(tensor.shape), hashlib.sha256(flat.data).digest()


def _key(dtype: ir.DataType, numbers: "np.ndarray[Any, Any]") -> _Key:
    flat = np.ascontiguousarray(numbers).reshape(-1)
    assert math.prod(numbers.shape) == flat.size
    return dtype, tuple(numbers.shape), hashlib.sha256(flat.view(np.uint8).data).digest()
