"""The network computed over probes: what it answers, and whether the answer to an input depends on anything but it.

Each probe is computed alone, again, and among the others. A network whose answers change from run to run is refused;
one whose answers depend on what else is in the batch is given one row at a time.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from flambeau import agreement
from flambeau.architectures import returned
from flambeau.build import export, outputs, recording
from flambeau.build.networks import Filled, Tell
from flambeau.bundle import ImagePipeline
from flambeau.errors import SourceError
from flambeau.formats.endings import UNKNOWN, Ending
from flambeau.types import Tensors, TensorSpec

_SAME_ROW = 1e-4
"""The largest relative difference between a row alone and among others that summing in another order explains."""
_SAME_RUN = 1e-5
"""The same between two runs over one row, where nothing is summed in another order."""

_FEW = 3  # rows that show what the network returns: no length of its own is likely to be taken for theirs
_KEPT_IMAGES = 2  # of the probes, those that go into the bundle


@dataclass(frozen=True)
class Probed:
    """What probing found. `filled` knows its output and its rows by now.

    `numbers` are the answers to all probes, each computed alone, shape (rows, *output.shape). `ending` is the last
    operation, `without_head` the name of an `nn.Identity` in the place of the head, `one_row` why the network is given
    one row at a time.
    """

    filled: Filled
    output: TensorSpec
    inputs: Tensors
    numbers: np.ndarray
    ending: Ending
    without_head: str | None = None
    one_row: str | None = None

    def kept(self) -> tuple[Tensors, Tensors]:
        """The probes that the bundle keeps, and PyTorch's answers to them."""
        images = isinstance(self.filled.pipeline, ImagePipeline)
        count = _KEPT_IMAGES if images else len(self.numbers)
        inputs = {name: array[:count] for name, array in self.inputs.items()}
        return inputs, {self.output.name: self.numbers[:count]}


def probe(filled: Filled, wanted: str | None, *, tell: Tell) -> Probed:
    """Compute the network over probes. `wanted` is what `--output-name` says.

    Raises `SourceError` for a network that cannot be served: it is random, keeps a state, cannot compute a single row,
    or answers with something that is no row of finite numbers for each row of its input.
    """
    images = isinstance(filled.pipeline, ImagePipeline)
    inputs = export.probe_inputs(filled.input, images=images)
    rows = torch.from_numpy(inputs[filled.input.name])
    filled, ending, without_head = _with_answer(filled, rows, wanted, tell=tell)
    alone = _each_alone(filled, rows)
    _refuse_strange(filled, alone, images=images)
    _refuse_unless_repeated(filled, rows, alone)
    one_row = filled.one_row or (None if filled.rows else _dependence(filled, rows, alone))
    if one_row:
        tell(f"{filled.name} is given one row at a time, for {one_row}")
        filled = replace(filled, rows=1, one_row=one_row)
    spec = TensorSpec(filled.output, str(alone.dtype), tuple(alone.shape[1:]))
    return Probed(filled, spec, inputs, alone, filled.ending or ending, without_head, one_row)


def compute(filled: Filled, inputs: Tensors) -> np.ndarray:
    """What the network itself answers to the rows, shape (rows, ...), in the batches that it takes.

    Raises `SourceError` when it cannot compute them.
    """
    rows = torch.from_numpy(inputs[filled.input.name])
    return np.concatenate([_answer(filled, part) for part in torch.split(rows, filled.rows or len(rows))])


def _with_answer(
    filled: Filled, rows: torch.Tensor, wanted: str | None, *, tell: Tell
) -> tuple[Filled, Ending, str | None]:
    """The network with the name and the shape of its answer, how that ends, and what is in the place of its head."""
    few = rows[: filled.rows or _FEW]
    if filled.exports == "ready":  # its outputs were sorted out when its graph was read
        result = tensor = _run(filled, few)
        ending, without_head = UNKNOWN, None
    else:
        result, ending_of = _record(filled, few)
        found = returned.parts(result)
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
        without_head = filled.without_head or _head_taken_off(filled, few[:1], after=ending)
        filled = replace(filled, output=taken if len(found) > 1 else filled.output)
    shape = _row_shape(filled, tensor, len(few))
    plain = isinstance(result, torch.Tensor) and tuple(tensor.shape) == (len(few), *shape)
    plain = plain and _plainly(filled, rows[:1], shape)
    return replace(filled, shape=shape, plain=plain), ending, without_head


def _plainly(filled: Filled, rows: torch.Tensor, shape: tuple[int, ...]) -> bool:
    """Whether the network itself answers so many rows with a tensor of that shape for each."""
    with contextlib.suppress(SourceError):  # one that cannot compute a single row is told later
        return tuple(_run(filled, rows).shape) == (len(rows), *shape)
    return True


def _row_shape(filled: Filled, tensor: torch.Tensor, rows: int) -> tuple[int, ...]:
    """The shape of a row of the answer. Raises `SourceError` where there is no row for each row of the input."""
    images = isinstance(filled.pipeline, ImagePipeline)
    if tensor.shape[:1] == (rows,):
        shape = tuple(tensor.shape[1:])
    elif rows == 1 and tensor.dim() < 2 and filled.exports != "ready":  # the axis of the rows was squeezed away
        shape = tuple(tensor.shape)
    else:
        counted = "1 row" if rows == 1 else f"{rows} rows"
        raise SourceError(
            f"{filled.name} answers {counted} with {list(tensor.shape)}: one tensor with a row for each is needed, so "
            "let it keep the first axis, or wrap it in a flambeau.PythonModel"
        )
    if images and not shape:
        return (1,)
    if images and len(shape) != 1:
        raise SourceError(
            f"{filled.name} is no classifier: it answers an image with shape {list(shape)}: "
            "serve it over numbers with --pipeline tensor"
        )
    return shape


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


def _answer(filled: Filled, rows: torch.Tensor) -> np.ndarray:
    result = _run(filled, rows)
    try:
        tensor = returned.shaped(returned.pick(result, filled.output), len(rows), filled.shape)
    except KeyError:
        raise SourceError(
            f"{filled.name} returned its output {filled.output} for one input and not for another"
        ) from None
    if tuple(tensor.shape) != (len(rows), *filled.shape):
        raise SourceError(
            f"{filled.name} answers {len(rows)} rows with {list(tensor.shape)}, and others with "
            f"{list(filled.shape)} each: the same shape for every row is needed"
        )
    return _array(tensor, filled.name)


def _array(tensor: torch.Tensor, name: str) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:
        raise SourceError(f"{name} answers with bfloat16, which no JSON and no numpy has: let it end in .float()")
    array: np.ndarray = tensor.numpy()
    return array


def _each_alone(filled: Filled, rows: torch.Tensor) -> np.ndarray:
    """The answer to each row alone. Raises `SourceError` for a network that needs company."""
    try:
        return np.concatenate([_answer(filled, row[None]) for row in rows])
    except SourceError as error:
        if filled.rows:
            raise
        raise SourceError(
            f"{filled.name} needs more than one row at a time, and a request may hold one: {error.__cause__ or error}: "
            "normalise with statistics that were learned (track_running_stats=True), and call eval() before saving"
        ) from error


def _refuse_strange(filled: Filled, numbers: np.ndarray, *, images: bool) -> None:
    if not numbers.size:
        raise SourceError(f"{filled.name} answers with rows of shape {list(filled.shape)}, which hold no number")
    if numbers.dtype.kind not in "fiub" or (images and numbers.dtype.kind != "f"):
        raise SourceError(
            f"{filled.name} answers with {numbers.dtype}, and "
            + ("scores of float32 are needed: take its argmax out" if images else "only real numbers are served")
        )
    if not np.isfinite(numbers).all():
        raise SourceError(
            f"{filled.name} answers inputs like a normalised photograph's or random numbers with numbers that are not "
            "finite: look whether its weights hold NaN, or wrap it in a flambeau.PythonModel"
        )


def _refuse_unless_repeated(filled: Filled, rows: torch.Tensor, alone: np.ndarray) -> None:
    """Raise `SourceError` for a network that answers the same rows with other numbers when they come in other order."""
    apart = _apart(alone, _each_alone(filled, rows.flip(0))[::-1])
    if apart <= _SAME_RUN:
        return
    torch.manual_seed(0)
    first = _answer(filled, rows[:1])
    torch.manual_seed(0)
    if _apart(first, _answer(filled, rows[:1])) <= _SAME_RUN:
        raise SourceError(
            f"{filled.name} is random: it answers one input with numbers that differ from run to run ({apart:.1e} "
            "apart): call dropout as F.dropout(x, training=self.training), and add no noise when it serves"
        )
    raise SourceError(
        f"{filled.name} answers one input with numbers that differ from run to run ({apart:.1e} apart): it keeps "
        "something from earlier inputs, or draws numbers of its own: let forward() depend on its input alone"
    )


def _dependence(filled: Filled, rows: torch.Tensor, alone: np.ndarray) -> str | None:
    """Why the network may not be given several rows, or `None` where a row's answer is the same in any company."""
    try:
        together = _answer(filled, rows)
    except SourceError as error:
        return f"it cannot compute {len(rows)} rows together ({error.__cause__ or error})"
    apart = _apart(alone, together)
    if apart <= _SAME_ROW:
        return None
    return (
        f"the answer to an input changes with what else is in the batch ({apart:.1e} apart), as with a norm over the "
        "batch (track_running_stats=False) or a mean over its rows"
    )


def _apart(expected: np.ndarray, found: np.ndarray) -> float:
    return agreement.measure(expected, found, classes=False).difference
