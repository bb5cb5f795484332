"""The part of probing that needs PyTorch: drawing probes, running the network, and finding the answer it returned.

`flambeau.builder.probing` imports this for PyTorch networks only, not for ONNX graphs.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from flambeau.architectures import single_output
from flambeau.builder import outputs, recording
from flambeau.builder.filled import Filled, Tell
from flambeau.bundle.storage import HasTask
from flambeau.checkpoints.last_operation import Ending
from flambeau.errors import SourceError
from flambeau.types import Tensors, TensorSpec

_SEED = 20120930  # probes are the same whenever the same bundle is built


@dataclass(frozen=True)
class Returned:
    """What a network returned for a few rows.

    `outputs` are the names of the tensors that are its answer, `shapes` their shapes, `ending` the last operation of
    the first. `bare`: it returned one tensor by itself. `without_head` is the name of an `nn.Identity` that replaced
    the head.
    """

    outputs: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    ending: Ending
    bare: bool
    without_head: str | None


def probe_inputs(specs: Sequence[TensorSpec], shapes: Mapping[str, tuple[int, ...]], *, images: bool) -> Tensors:
    """Probe inputs. For images, shape (4, channels, size, size): soft blobs like a photograph's, noise, faint blobs,
    strong blobs. Otherwise 8 random rows of these `shapes`."""
    generator = torch.Generator().manual_seed(_SEED)
    if not images:
        return {spec.name: _rows((8, *shapes[spec.name]), spec, generator) for spec in specs}
    [spec] = specs
    channels, size, _ = spec.shape

    def blobs(strength: float) -> torch.Tensor:
        coarse = torch.randn((1, channels, 8, 8), generator=generator) * strength
        return nn.functional.interpolate(coarse, size=(size, size), mode="bicubic")

    first, noise = blobs(1.5), torch.randn((1, channels, size, size), generator=generator)
    return {spec.name: torch.cat([first, noise, blobs(0.5), blobs(2.5)]).numpy()}


def _rows(shape: tuple[int, ...], spec: TensorSpec, generator: torch.Generator) -> np.ndarray:
    """Random rows; of the numbers that the network knows, where it does, in turn: a mask that leaves out all of a row
    has no answer. Whole numbers are 0 and 1, which every table of vectors has."""
    whole = np.dtype(spec.dtype).kind == "i"
    if spec.known and not (whole and len(spec.known) > 1):
        return np.resize(np.array(spec.known, spec.dtype), shape)
    if whole:
        places: np.ndarray = torch.randint(0, 2, shape, generator=generator).numpy().astype(spec.dtype)
        if spec.known:  # a row of nothing but the other number may have no answer
            places.reshape(len(places), -1)[:, 0] = spec.known[0]
        return places
    rows: np.ndarray = torch.randn(shape, generator=generator).to(getattr(torch, spec.dtype)).numpy()
    if spec.below or spec.tables:  # decimal numbers that the network makes whole, and looks up
        sizes = np.array(spec.tables or [spec.below])
        drawn = torch.rand(shape, generator=generator).numpy().reshape(-1, len(sizes)) * sizes
        rows = np.where(sizes > 0, np.floor(drawn), rows.reshape(drawn.shape)).astype(rows.dtype).reshape(shape)
    return rows


def look(filled: Filled, inputs: Tensors, wanted: str | None, *, tell: Tell) -> Returned:
    """Run the network over a few rows and find its answer in what it returns. `wanted` is the value of `--output-name`.

    Raises `SourceError`.
    """
    given = _given(filled, inputs)
    result, ending_of = _record(filled, given)
    found = single_output.parts(result)
    if not found:
        raise SourceError(
            f"{filled.name} returns {type(result).__name__} without a tensor in it: one tensor with a row for each "
            "row of the input is needed, or a flambeau.PythonModel around it"
        )
    arrays = {name or filled.outputs[0]: _array(tensor, filled.name) for name, tensor in found.items()}
    one = isinstance(filled.pipeline, HasTask)  # a task makes its answer of one output
    taken, note = outputs.choose(arrays, wanted, name=filled.name, rows=None if one else len(given[0]))
    if note:
        tell(note)
    tensors = [found.get(name, next(iter(found.values()))) for name in taken]
    ending = ending_of(tensors[0])
    return Returned(
        outputs=taken if len(found) > 1 else filled.outputs[:1],
        shapes=tuple(tuple(tensor.shape) for tensor in tensors),
        ending=ending,
        bare=isinstance(result, torch.Tensor),
        without_head=filled.without_head or _head_taken_off(filled, [each[:1] for each in given], after=ending),
    )


def answers_plainly(filled: Filled, inputs: Tensors, shape: tuple[int, ...]) -> bool:
    """Whether the network itself returns a tensor of shape (rows, *shape) for these rows."""
    given = _given(filled, inputs)
    with contextlib.suppress(SourceError):  # a network that cannot compute a single row is reported later
        return tuple(_run(filled, given).shape) == (len(given[0]), *shape)
    return True


def answer(filled: Filled, inputs: Tensors) -> Tensors:
    """The network's answers by output, as (rows, *shape) where they have the right number of elements. Raises
    `SourceError`."""
    given = _given(filled, inputs)
    result = _run(filled, given)
    found: Tensors = {}
    for name, shape in zip(filled.outputs, filled.shapes, strict=True):
        try:
            tensor = single_output.shaped(single_output.pick(result, name), len(given[0]), shape)
        except KeyError:
            raise SourceError(f"{filled.name} returned its output {name} for one input and not for another") from None
        found[name] = _array(tensor, filled.name)
    return found


def tried(filled: Filled, inputs: Tensors) -> list[np.ndarray]:
    """The arrays that the network returns, without names; empty where it raises."""
    with contextlib.suppress(SourceError):
        result = _run(filled, _given(filled, inputs))
        return [_array(each, filled.name) for each in single_output.parts(result).values()]
    return []


def run(filled: Filled, inputs: Tensors) -> None:
    """Run the network over the rows. Raises `SourceError` where it raises."""
    _run(filled, _given(filled, inputs))


def decides(filled: Filled, inputs: Tensors) -> str | None:
    """Why the network must not be given several rows, if it decides by numbers that it computed of these.

    Probes may show none of it: `if rows.max() > 100`. A network whose export has no such decision need not be asked.
    """
    if filled.rows or not recording.reads_numbers(filled.network, *_given(filled, inputs)):
        return None
    return "its code decides by its numbers, as in `if rows.max() > 1`, and another row may decide otherwise"


def repeats_from_a_seed(compute: Callable[[], Tensors]) -> tuple[Tensors, Tensors]:
    """The results of two calls of `compute` with PyTorch's random numbers seeded alike."""
    torch.manual_seed(0)
    first = compute()
    torch.manual_seed(0)
    return first, compute()


def _given(filled: Filled, inputs: Tensors) -> list[torch.Tensor]:
    """The inputs as tensors, in the network's order."""
    return [torch.from_numpy(inputs[spec.name]) for spec in filled.inputs]


def _record(filled: Filled, given: Sequence[torch.Tensor]) -> tuple[Any, Callable[[torch.Tensor], Ending]]:
    """Run the network under the recorder, or without where it cannot be recorded."""
    try:
        return recording.run(filled.network, *given)
    except Exception:  # if it raises without the recorder too, `_run` reports it
        return _run(filled, given), lambda _: recording.of_script(filled.network)


def _head_taken_off(filled: Filled, given: Sequence[torch.Tensor], *, after: Ending) -> str | None:
    try:
        return recording.head_taken_off(filled.network, *given, after=after)
    except Exception:  # where hooks fail, the user is asked instead
        return None


def _run(filled: Filled, given: Sequence[torch.Tensor]) -> Any:
    try:
        with torch.inference_mode():
            return filled.network(*given)
    except Exception as error:
        said = str(error).strip()
        if "Traceback of TorchScript" in said:  # the last line is the error
            said = said.rpartition("\n")[2]
        if "Float and Double" in said or "Double and Float" in said:
            said += ": inputs are float32, so let forward() begin with .double(), or make the network with .float()"
        shapes = [list(each.shape) for each in given]
        raise SourceError(
            f"{filled.name} cannot compute an input of shape {', '.join(map(str, shapes))}: {said}"
        ) from error


def _array(tensor: torch.Tensor, name: str) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:
        raise SourceError(f"{name} answers with bfloat16, which no JSON and no numpy has: let it end in .float()")
    array: np.ndarray = tensor.numpy()
    return array
