"""Run the network over probes: what it answers, and whether an input's answer depends on anything else.

Each probe is computed alone, again in reverse order, and in a batch with the others. A network whose answers change
from run to run is refused. One whose answers depend on the rest of the batch is given one row at a time.

`flambeau.builder.eager` is the part that needs PyTorch; graphs are probed without it.
"""

import bisect
from dataclasses import dataclass, replace

import numpy as np
from msgspec.structs import replace as replace_spec
from PIL import Image

from flambeau.builder import row_differences, second_axis, texts
from flambeau.builder.filled import Filled, Tell
from flambeau.builder.row_arrays import few, joined, of_spec, part, rows_in, shown
from flambeau.bundle.storage import AudioConfig, HasTask, ImageConfig, TextConfig
from flambeau.checkpoints.last_operation import UNKNOWN, Ending
from flambeau.errors import SourceError
from flambeau.identify import unsupported
from flambeau.items import FREE, USUAL_LENGTH
from flambeau.types import Tensors, TensorSpec

_SAME_ROW = 1e-4
"""The largest relative difference, between a row alone and in a batch, that another order of summing explains."""
_SAME_RUN = 1e-5
"""The same between two runs over one row, where the order of summing is the same."""

_FEW = 3  # rows that show what the network returns: unlikely to be confused with a size of the network's own
_KEPT_IMAGES = 2  # image probes that go into the bundle
_SEED = 20120930  # a graph's probes are the same whenever the same bundle is built
_LENGTHS = (USUAL_LENGTH, 64, 512, 4096)  # lengths of free axes to try, until the network computes one
_LONGER = 5  # how much longer the second trial is
_FIX_IT = "say the shape of one item, without words, with --input-shape"
_BLOBS = 8  # blobs along each side of a probe that is soft like a photograph


@dataclass(frozen=True)
class Probed:
    """What probing found. `filled` now has its outputs and its number of rows.

    `answers` are the answers to all probes (`inputs`) by output, each row computed alone. `longer` are inputs of
    another length with their answers, where axes are free. `ending` is the last operation, `without_head` the name of
    an `nn.Identity` that replaced the head, `one_row` why the network is given one row at a time.
    """

    filled: Filled
    outputs: tuple[TensorSpec, ...]
    inputs: Tensors
    answers: Tensors
    ending: Ending
    without_head: str | None = None
    one_row: str | None = None
    longer: tuple[tuple[Tensors, Tensors], ...] = ()

    @property
    def output(self) -> TensorSpec:
        """The first output; a network over images has no other."""
        return self.outputs[0]

    @property
    def numbers(self) -> np.ndarray:
        """The first output's answers, shape (rows, *shape)."""
        return self.answers[self.output.name]

    def kept(self) -> tuple[Tensors, Tensors]:
        """The probes that the bundle keeps, and the network's answers to them."""
        images = isinstance(self.filled.pipeline, ImageConfig)
        count = _KEPT_IMAGES if images else len(self.numbers)
        return few(self.inputs, count), few(self.answers, count)


def probe(filled: Filled, wanted: str | None, *, tell: Tell) -> Probed:
    """Run the network over probes. `wanted` is the value of `--output-name`.

    Raises `SourceError` for a network that cannot be served: it is random, keeps state, cannot compute a single row, or
    does not return a row of finite numbers for each row of its input.
    """
    images = isinstance(filled.pipeline, ImageConfig)
    if filled.free:
        filled = _with_least(filled)
    inputs = _probe_inputs(filled, images=images)
    try:
        filled, ending, without_head = _with_answer(filled, inputs, wanted, tell=tell)
        alone = _each_alone(filled, inputs)
    except SourceError:
        _refuse_second_axis(filled, inputs)  # then that is why
        raise
    for numbers in alone.values():
        _refuse_strange(filled, numbers, scores=isinstance(filled.pipeline, HasTask))
    _refuse_unless_repeated(filled, inputs, alone)
    one_row = filled.one_row or (None if filled.rows else _dependence(filled, inputs, alone))
    if one_row is None and filled.exports == "torchscript":  # its decisions become part of the graph
        from flambeau.builder import eager

        one_row = eager.decides(filled, few(inputs, _FEW))
    if one_row:
        if not filled.one_row:
            _refuse_second_axis(filled, inputs)
        tell(f"{filled.name} is given one row at a time, because {one_row}")
        filled = replace(filled, rows=1, one_row=one_row)
    outputs = tuple(TensorSpec(name, str(array.dtype), tuple(array.shape[1:])) for name, array in alone.items())
    found = Probed(filled, outputs, inputs, alone, filled.ending or ending, without_head, one_row)
    return _at_another_length(found, wanted, tell) if filled.free else found


def compute(filled: Filled, inputs: Tensors) -> Tensors:
    """The network's own answers to the rows, by output, computed in batches of a size it takes.

    Raises `SourceError` when it cannot compute them.
    """
    rows = rows_in(inputs)
    most = filled.rows or rows
    return joined([_answer(filled, part(inputs, start, start + most)) for start in range(0, rows, most)])


def _probe_inputs(filled: Filled, *, images: bool, length: int | None = None) -> Tensors:
    """Probe inputs. For images, shape (4, channels, size, size): soft blobs like a photograph's, noise, faint blobs,
    strong blobs. Otherwise 8 random rows, with free axes of `length`, or of the usual length."""
    if isinstance(filled.pipeline, TextConfig):
        return texts.probe_inputs(filled, length)
    shapes = {spec.name: spec.long(length) if length else spec.usual for spec in filled.inputs}
    if filled.exports != "ready":
        from flambeau.builder import eager

        return eager.probe_inputs(filled.inputs, shapes, images=images)
    numbers = np.random.default_rng(_SEED)
    if not images:
        return {spec.name: of_spec(spec, (8, *shapes[spec.name]), numbers) for spec in filled.inputs}
    [spec] = filled.inputs
    channels, size, _ = spec.shape

    def blobs(strength: float) -> np.ndarray:
        coarse = numbers.standard_normal((channels, _BLOBS, _BLOBS), np.float32) * np.float32(strength)
        planes = [Image.fromarray(plane).resize((size, size), Image.Resampling.BICUBIC) for plane in coarse]
        return np.stack([np.asarray(plane) for plane in planes])

    first, noise = blobs(1.5), numbers.standard_normal(spec.shape, np.float32)
    return {spec.name: np.stack([first, noise, blobs(0.5), blobs(2.5)])}


def _with_answer(
    filled: Filled, inputs: Tensors, wanted: str | None, *, tell: Tell
) -> tuple[Filled, Ending, str | None]:
    """The network with the names and shapes of its outputs, its ending, and the name of a replaced head."""
    first = few(inputs, filled.rows or _FEW)
    rows = rows_in(first)
    if filled.exports == "ready":  # its outputs were sorted out when its graph was read
        found = _of_graph(filled, first)
        shapes = tuple(_row_shape(filled, found[name].shape, rows) for name in filled.outputs)
        return replace(filled, shapes=shapes), UNKNOWN, None
    from flambeau.builder import eager

    seen = eager.look(filled, first, wanted, tell=tell)
    filled = replace(filled, outputs=seen.outputs)
    shapes = tuple(_row_shape(filled, whole, rows) for whole in seen.shapes)
    plain = (
        seen.bare and seen.shapes == ((rows, *shapes[0]),) and eager.answers_plainly(filled, few(inputs, 1), shapes[0])
    )
    return replace(filled, shapes=shapes, plain=plain), seen.ending, seen.without_head


def _row_shape(filled: Filled, whole: tuple[int, ...], rows: int) -> tuple[int, ...]:
    """The shape of one row of an answer of shape `whole`. Raises `SourceError` unless it has one row per input row."""
    has_task = isinstance(filled.pipeline, HasTask)
    if whole[:1] == (rows,):
        shape = whole[1:]
    elif rows == 1 and len(whole) < 2 and filled.exports != "ready":  # the axis of the rows was squeezed away
        shape = whole
    else:
        counted = "1 row" if rows == 1 else f"{rows} rows"
        raise SourceError(
            f"{filled.name} answers {counted} with {list(whole)}: one tensor with a row for each is needed, so "
            "let it keep the first axis, or wrap it in a flambeau.PythonModel"
        )
    if has_task and not shape:
        return (1,)
    if has_task and len(shape) != 1:
        what = {ImageConfig: "an image", TextConfig: "a text"}.get(type(filled.pipeline), "a sound")
        raise SourceError(
            f"{filled.name} is not a classifier: it answers {what} with shape {list(shape)}: "
            "serve it over numbers with --pipeline tensor"
        )
    return shape


def _answer(filled: Filled, inputs: Tensors) -> Tensors:
    """The outputs for the rows, each of shape (rows, *its own). Raises `SourceError`."""
    rows = rows_in(inputs)
    wholes = {name: (rows, *shape) for name, shape in zip(filled.outputs, filled.shapes, strict=True)}
    if filled.exports == "ready":
        found = _of_graph(filled, inputs)
        answers = {name: _squeezed_back(found[name], whole) for name, whole in wholes.items()}
    else:
        from flambeau.builder import eager

        answers = eager.answer(filled, inputs)
    for name, whole in wholes.items():
        shape = answers[name].shape
        if len(shape) != len(whole) or any(own not in (size, FREE) for size, own in zip(shape, whole, strict=True)):
            raise SourceError(
                f"{filled.name} answers {rows} rows with {list(shape)}, and others with {list(whole[1:])} each: "
                "the same shape for every row is needed"
            )
    return answers


def _refuse_second_axis(filled: Filled, inputs: Tensors) -> None:
    """Raise `SourceError` for a network whose rows are the second axis of its input."""
    if not filled.rows and rows_in(inputs) > 1:
        graph = filled.exports == "ready"
        second_axis.refuse(lambda rows: _tried(filled, rows), few(inputs, _FEW), name=filled.name, graph=graph)


def _tried(filled: Filled, inputs: Tensors) -> list[np.ndarray]:
    """The arrays that the network returns; empty where it raises."""
    if filled.exports == "ready":
        try:
            return list(_of_graph(filled, inputs).values())
        except SourceError:
            return []
    from flambeau.builder import eager

    return eager.tried(filled, inputs)


def _of_graph(filled: Filled, inputs: Tensors) -> Tensors:
    try:
        found: Tensors = filled.network(inputs)
    except Exception as error:  # onnxruntime has its own exception types
        raise SourceError(f"{filled.name} cannot compute an input of shape {shown(inputs)}: {error}") from error
    return found


def _squeezed_back(numbers: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The numbers reshaped to `shape`, if they differ only in axes of length 1: as `single_output.shaped` does."""
    if numbers.ndim == len(shape):
        return numbers
    longer = [[size for size in each if size != 1] for each in (numbers.shape, shape)]
    return numbers.reshape(shape) if longer[0] == longer[1] else numbers


def _each_alone(filled: Filled, inputs: Tensors) -> Tensors:
    """The answers to each row alone. Raises `SourceError` for a network that needs more than one row."""
    try:
        return joined([_answer(filled, part(inputs, row, row + 1)) for row in range(rows_in(inputs))])
    except SourceError as error:
        if filled.rows or not _tried(filled, inputs):  # it does not compute these rows together, either
            raise
        raise SourceError(
            f"{filled.name} needs more than one row at a time, and a request may hold one: {error.__cause__ or error}: "
            "normalise with statistics that were learned (track_running_stats=True), and call eval() before saving"
        ) from error


def _refuse_strange(filled: Filled, numbers: np.ndarray, *, scores: bool) -> None:
    if not numbers.size:
        raise SourceError(f"{filled.name} answers with rows of shape {list(numbers.shape[1:])}, which hold no numbers")
    if numbers.dtype.kind not in "fiub" or (scores and numbers.dtype.kind != "f"):
        raise SourceError(
            f"{filled.name} answers with {numbers.dtype}, and "
            + ("scores of float32 are needed: take its argmax out" if scores else "only real numbers are served")
        )
    if not np.isfinite(numbers).all():
        raise SourceError(
            f"{filled.name} answers inputs like a normalised photograph's or random numbers with numbers that are not "
            "finite: check whether its weights hold NaN, or wrap it in a flambeau.PythonModel"
        )


def _refuse_unless_repeated(filled: Filled, inputs: Tensors, alone: Tensors) -> None:
    """Raise `SourceError` for a network whose answers to the same rows change when they come in another order."""
    turned = _each_alone(filled, {name: np.ascontiguousarray(rows[::-1]) for name, rows in inputs.items()})
    apart = max(row_differences.apart(alone[name], turned[name][::-1]) for name in alone)
    if apart <= _SAME_RUN:
        return
    if filled.exports != "ready" and _repeats_from_a_seed(filled, few(inputs, 1)):
        raise SourceError(
            f"{filled.name} is random: it answers one input with numbers that differ from run to run ({apart:.1e} "
            "apart): call dropout as F.dropout(x, training=self.training), and add no noise when it serves"
        )
    raise SourceError(
        f"{filled.name} answers one input with numbers that differ from run to run ({apart:.1e} apart): it keeps "
        "something from earlier inputs, or draws numbers of its own: let forward() depend on its input alone"
    )


def _repeats_from_a_seed(filled: Filled, inputs: Tensors) -> bool:
    from flambeau.builder import eager

    first, second = eager.repeats_from_a_seed(lambda: _answer(filled, inputs))
    return all(row_differences.apart(first[name], second[name]) <= _SAME_RUN for name in first)


def _dependence(filled: Filled, inputs: Tensors, alone: Tensors) -> str | None:
    """Why the network must not be given several rows, or `None` where a row's answer is the same in any batch."""
    try:
        together = _answer(filled, inputs)
    except SourceError as error:
        return f"it cannot compute {rows_in(inputs)} rows together ({error.__cause__ or error})"
    apart = max(row_differences.largest(alone[name], together[name]) for name in alone)
    if apart <= _SAME_ROW:
        return None
    return (
        f"the answer to an input changes with what else is in the batch ({apart:.1e} apart), as with a norm over the "
        "batch (track_running_stats=False) or a mean over its rows"
    )


# Free axes, which may have any length.


def _with_least(filled: Filled) -> Filled:
    """The network with the smallest length of its free axes. Raises `SourceError` where it can compute none."""
    lengths = _lengths_of(filled)
    longest = next((length for length in lengths if _computes(filled, length)), None)
    if longest is None:
        raise SourceError(
            f"{filled.name} cannot compute inputs whose free axes are {lengths[0]} to {lengths[-1]} long "
            f"({_why_not(filled, lengths[0])}): {_FIX_IT} if the length is the cause, or {unsupported.AROUND}"
        )
    least = bisect.bisect_left(range(1, longest), True, key=lambda length: _computes(filled, length)) + 1
    return replace(filled, inputs=tuple(replace_spec(spec, least=least) for spec in filled.inputs))


def _lengths_of(filled: Filled) -> tuple[int, ...]:
    """Lengths of free axes to try: of sound, up to four seconds."""
    if not isinstance(filled.pipeline, AudioConfig):
        return _LENGTHS
    rate, mel = filled.pipeline.rate, filled.pipeline.mel
    hop = 1 if mel is None else mel.hop
    return tuple(dict.fromkeys(max(samples // hop, 1) for samples in (rate // 10, rate, 4 * rate)))


def _computes(filled: Filled, length: int) -> bool:
    """Whether the network computes finite numbers for rows of that length."""
    row = few(_probe_inputs(filled, images=False, length=length), filled.rows or 1)
    found = _tried(filled, row)
    return bool(found) and all(each.size and (each.dtype.kind != "f" or np.isfinite(each).all()) for each in found)


def _why_not(filled: Filled, length: int) -> str:
    """Why the network does not compute finite numbers for rows of that length, in words."""
    row = few(_probe_inputs(filled, images=False, length=length), filled.rows or 1)
    try:
        if filled.exports == "ready":
            _of_graph(filled, row)
        else:
            from flambeau.builder import eager

            eager.run(filled, row)
    except SourceError as error:
        return str(error.__cause__ or error).strip().splitlines()[0]
    return "its answers are not finite"


def _at_another_length(found: Probed, wanted: str | None, tell: Tell) -> Probed:
    """Probe again with rows of another length, to find which axes of the outputs are free too.

    Example: (8, 16) -> (8, 4) at one length and (13, 16) -> (13, 4) at the next: the output is (any length, 4).

    Raises `SourceError` for a network that takes one length only.
    """
    filled = found.filled
    least = max(spec.least for spec in filled.inputs)
    length = max(least, USUAL_LENGTH) + _LONGER
    inputs = _probe_inputs(filled, images=False, length=length)
    try:
        longer, _, _ = _with_answer(filled, inputs, wanted, tell=_quiet)
        answers = _each_alone(longer, inputs)
    except SourceError as error:
        raise SourceError(
            f"{filled.name} computes rows whose free axes are {length - _LONGER} long, but not {length} "
            f"({error.__cause__ or error}): {_FIX_IT}"
        ) from error
    if [len(shape) for shape in longer.shapes] != [len(shape) for shape in filled.shapes]:
        raise SourceError(f"{filled.name} answers rows of another length with other axes: {_FIX_IT}")
    outputs = []
    for spec, shape in zip(found.outputs, longer.shapes, strict=True):
        free = tuple(size if size == other else FREE for size, other in zip(spec.shape, shape, strict=True))
        outputs.append(replace_spec(spec, shape=free))
    tell(f"{filled.name} takes inputs of any length of {least} or more: tried with {length - _LONGER} and {length}")
    filled = replace(filled, shapes=tuple(spec.shape for spec in outputs))
    return replace(found, filled=filled, outputs=tuple(outputs), longer=((inputs, answers),))


def _quiet(_: str) -> None:
    """Swallow notes that the first probing has already shown."""
