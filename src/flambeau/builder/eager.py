"""The part of probing that only PyTorch can do: drawing its probes, running a network, and telling what it returned.

`flambeau.builder.probing` imports it where it probes a network of PyTorch's, and does without where it has a graph.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from flambeau.architectures import single_output
from flambeau.builder import outputs, recording
from flambeau.builder.filled import Filled, Tell
from flambeau.checkpoints.last_operation import Ending
from flambeau.errors import SourceError
from flambeau.types import Tensors, TensorSpec

_SEED = 20120930  # probes are the same whenever the same bundle is built


@dataclass(frozen=True)
class Returned:
    """What a network returned for a few rows.

    `output` is the name of the tensor that is the answer, `shape` its shape, `ending` what it ends in. `bare`: the
    tensor was returned by itself. `without_head` is the name of an `nn.Identity` in the place of the head.
    """

    output: str
    shape: tuple[int, ...]
    ending: Ending
    bare: bool
    without_head: str | None


def probe_inputs(spec: TensorSpec, *, images: bool) -> Tensors:
    """Sample inputs. For images (4, channels, size, size): soft blobs like a photograph's, noise, faint blobs,
    strong ones; else 8 rows."""
    generator = torch.Generator().manual_seed(_SEED)
    if not images:
        return {spec.name: torch.randn((8, *spec.shape), generator=generator).to(getattr(torch, spec.dtype)).numpy()}
    channels, size, _ = spec.shape

    def blobs(strength: float) -> torch.Tensor:
        coarse = torch.randn((1, channels, 8, 8), generator=generator) * strength
        return nn.functional.interpolate(coarse, size=(size, size), mode="bicubic")

    first, noise = blobs(1.5), torch.randn((1, channels, size, size), generator=generator)
    return {spec.name: torch.cat([first, noise, blobs(0.5), blobs(2.5)]).numpy()}


def look(filled: Filled, rows: np.ndarray, wanted: str | None, *, tell: Tell) -> Returned:
    """Run the network over a few rows, and find its answer in what it returns. `wanted` is what `--output-name` says.

    Raises `SourceError`.
    """
    given = torch.from_numpy(rows)
    result, ending_of = _record(filled, given)
    found = single_output.parts(result)
    if not found:
        raise SourceError(
            f"{filled.name} returns {type(result).__name__} without a tensor in it: one tensor with a row for each "
            "row of the input is needed, or a flambeau.PythonModel around it"
        )
    arrays = {name or filled.output: _array(tensor, filled.name) for name, tensor in found.items()}
    taken, note = outputs.choose(arrays, wanted, name=filled.name)
    if note:
        tell(note)
    tensor = found.get(taken, next(iter(found.values())))
    ending = ending_of(tensor)
    return Returned(
        output=taken if len(found) > 1 else filled.output,
        shape=tuple(tensor.shape),
        ending=ending,
        bare=isinstance(result, torch.Tensor),
        without_head=filled.without_head or _head_taken_off(filled, given[:1], after=ending),
    )


def answers_plainly(filled: Filled, rows: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Whether the network itself answers so many rows with a tensor of that shape for each."""
    with contextlib.suppress(SourceError):  # one that cannot compute a single row is told later
        return tuple(_run(filled, torch.from_numpy(rows)).shape) == (len(rows), *shape)
    return True


def answer(filled: Filled, rows: np.ndarray) -> np.ndarray:
    """The network's answer to the rows, with a row for each where it has their number of rows. Raises `SourceError`."""
    result = _run(filled, torch.from_numpy(rows))
    try:
        return _array(
            single_output.shaped(single_output.pick(result, filled.output), len(rows), filled.shape), filled.name
        )
    except KeyError:
        raise SourceError(
            f"{filled.name} returned its output {filled.output} for one input and not for another"
        ) from None


def repeats_from_a_seed(compute: Callable[[], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """What `compute` gives when PyTorch draws the same random numbers, twice."""
    torch.manual_seed(0)
    first = compute()
    torch.manual_seed(0)
    return first, compute()


def _record(filled: Filled, rows: torch.Tensor) -> tuple[Any, Callable[[torch.Tensor], Ending]]:
    """Run the network under the recorder, or without it where it cannot be recorded."""
    try:
        return recording.run(filled.network, rows)
    except Exception:  # that it raises without a recorder too is told below
        return _run(filled, rows), lambda _: recording.of_script(filled.network)


def _head_taken_off(filled: Filled, rows: torch.Tensor, *, after: Ending) -> str | None:
    try:
        return recording.head_taken_off(filled.network, rows, after=after)
    except Exception:  # hooks are a courtesy: without them the user is asked
        return None


def _run(filled: Filled, rows: torch.Tensor) -> Any:
    try:
        with torch.inference_mode():
            return filled.network(rows)
    except Exception as error:
        said = str(error).strip()
        if "Traceback of TorchScript" in said:  # the last line is the error, and the rest is where
            said = said.rpartition("\n")[2]
        raise SourceError(f"{filled.name} cannot compute an input of shape {list(rows.shape)}: {said}") from error


def _array(tensor: torch.Tensor, name: str) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:
        raise SourceError(f"{name} answers with bfloat16, which no JSON and no numpy has: let it end in .float()")
    array: np.ndarray = tensor.numpy()
    return array
