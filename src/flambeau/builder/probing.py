"""The network computed over probes: what it answers, and whether the answer to an input depends on anything but it.

Each probe is computed alone, again, and among the others. A network whose answers change from run to run is refused;
one whose answers depend on what else is in the batch is given one row at a time.

What only PyTorch can do is `flambeau.builder.eager`'s: a graph is probed without it.
"""

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from flambeau.answers import agreement
from flambeau.builder.filled import Filled, Tell
from flambeau.bundle.storage import ImageConfig
from flambeau.checkpoints.last_operation import UNKNOWN, Ending
from flambeau.errors import SourceError
from flambeau.types import Tensors, TensorSpec

_SAME_ROW = 1e-4
"""The largest relative difference between a row alone and among others that summing in another order explains."""
_SAME_RUN = 1e-5
"""The same between two runs over one row, where nothing is summed in another order."""

_FEW_OUTPUTS = 16  # so many may be quantities of their own, each with its scale
_ROUNDING = 1e-9  # a largest number that is smaller than so many times another's is none

_FEW = 3  # rows that show what the network returns: no length of its own is likely to be taken for theirs
_KEPT_IMAGES = 2  # of the probes, those that go into the bundle
_SEED = 20120930  # a graph's probes are the same whenever the same bundle is built
_BLOBS = 8  # a side, in a probe that is soft like a photograph


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
        """The probes that the bundle keeps, and the network's answers to them."""
        images = isinstance(self.filled.pipeline, ImageConfig)
        count = _KEPT_IMAGES if images else len(self.numbers)
        inputs = {name: array[:count] for name, array in self.inputs.items()}
        return inputs, {self.output.name: self.numbers[:count]}


def probe(filled: Filled, wanted: str | None, *, tell: Tell) -> Probed:
    """Compute the network over probes. `wanted` is what `--output-name` says.

    Raises `SourceError` for a network that cannot be served: it is random, keeps a state, cannot compute a single row,
    or answers with something that is no row of finite numbers for each row of its input.
    """
    images = isinstance(filled.pipeline, ImageConfig)
    inputs = _probe_inputs(filled, images=images)
    rows = inputs[filled.input.name]
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
    rows = inputs[filled.input.name]
    most = filled.rows or len(rows)
    return np.concatenate([_answer(filled, rows[start : start + most]) for start in range(0, len(rows), most)])


def _probe_inputs(filled: Filled, *, images: bool) -> Tensors:
    """Sample inputs. For images (4, channels, size, size): soft blobs like a photograph's, noise, faint blobs, strong
    ones; else 8 rows."""
    spec = filled.input
    if filled.exports != "ready":
        from flambeau.builder import eager

        return eager.probe_inputs(spec, images=images)
    numbers = np.random.default_rng(_SEED)
    if not images:
        return {spec.name: numbers.standard_normal((8, *spec.shape), np.float32).astype(spec.dtype, copy=False)}
    channels, size, _ = spec.shape

    def blobs(strength: float) -> np.ndarray:
        coarse = numbers.standard_normal((channels, _BLOBS, _BLOBS), np.float32) * np.float32(strength)
        planes = [Image.fromarray(plane).resize((size, size), Image.Resampling.BICUBIC) for plane in coarse]
        return np.stack([np.asarray(plane) for plane in planes])

    first, noise = blobs(1.5), numbers.standard_normal(spec.shape, np.float32)
    return {spec.name: np.stack([first, noise, blobs(0.5), blobs(2.5)])}


def _with_answer(
    filled: Filled, rows: np.ndarray, wanted: str | None, *, tell: Tell
) -> tuple[Filled, Ending, str | None]:
    """The network with the name and the shape of its answer, how that ends, and what is in the place of its head."""
    few = rows[: filled.rows or _FEW]
    if filled.exports == "ready":  # its outputs were sorted out when its graph was read
        return replace(filled, shape=_row_shape(filled, _of_graph(filled, few).shape, len(few))), UNKNOWN, None
    from flambeau.builder import eager

    found = eager.look(filled, few, wanted, tell=tell)
    filled = replace(filled, output=found.output)
    shape = _row_shape(filled, found.shape, len(few))
    plain = found.bare and found.shape == (len(few), *shape) and eager.answers_plainly(filled, rows[:1], shape)
    return replace(filled, shape=shape, plain=plain), found.ending, found.without_head


def _row_shape(filled: Filled, whole: tuple[int, ...], rows: int) -> tuple[int, ...]:
    """The shape of a row of an answer of shape `whole`. Raises `SourceError` where it has no row for each of the
    input's."""
    images = isinstance(filled.pipeline, ImageConfig)
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
    if images and not shape:
        return (1,)
    if images and len(shape) != 1:
        raise SourceError(
            f"{filled.name} is no classifier: it answers an image with shape {list(shape)}: "
            "serve it over numbers with --pipeline tensor"
        )
    return shape


def _answer(filled: Filled, rows: np.ndarray) -> np.ndarray:
    """The answer to the rows, shape (rows, *filled.shape). Raises `SourceError`."""
    if filled.exports == "ready":
        numbers = _squeezed_back(_of_graph(filled, rows), (len(rows), *filled.shape))
    else:
        from flambeau.builder import eager

        numbers = eager.answer(filled, rows)
    if numbers.shape != (len(rows), *filled.shape):
        raise SourceError(
            f"{filled.name} answers {len(rows)} rows with {list(numbers.shape)}, and others with "
            f"{list(filled.shape)} each: the same shape for every row is needed"
        )
    return numbers


def _of_graph(filled: Filled, rows: np.ndarray) -> np.ndarray:
    try:
        numbers: np.ndarray = filled.network(rows)
    except Exception as error:  # onnxruntime raises a tree of its own
        raise SourceError(f"{filled.name} cannot compute an input of shape {list(rows.shape)}: {error}") from error
    return numbers


def _squeezed_back(numbers: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The numbers in that shape, where axes of length 1 are all that they lack of it: as `returned.shaped` does."""
    if numbers.ndim == len(shape):
        return numbers
    longer = [[size for size in each if size != 1] for each in (numbers.shape, shape)]
    return numbers.reshape(shape) if longer[0] == longer[1] else numbers


def _each_alone(filled: Filled, rows: np.ndarray) -> np.ndarray:
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


def _refuse_unless_repeated(filled: Filled, rows: np.ndarray, alone: np.ndarray) -> None:
    """Raise `SourceError` for a network that answers the same rows with other numbers when they come in other order."""
    apart = _apart(alone, _each_alone(filled, np.ascontiguousarray(rows[::-1]))[::-1])
    if apart <= _SAME_RUN:
        return
    if filled.exports != "ready" and _repeats_from_a_seed(filled, rows[:1]):
        raise SourceError(
            f"{filled.name} is random: it answers one input with numbers that differ from run to run ({apart:.1e} "
            "apart): call dropout as F.dropout(x, training=self.training), and add no noise when it serves"
        )
    raise SourceError(
        f"{filled.name} answers one input with numbers that differ from run to run ({apart:.1e} apart): it keeps "
        "something from earlier inputs, or draws numbers of its own: let forward() depend on its input alone"
    )


def _repeats_from_a_seed(filled: Filled, rows: np.ndarray) -> bool:
    from flambeau.builder import eager

    return _apart(*eager.repeats_from_a_seed(lambda: _answer(filled, rows))) <= _SAME_RUN


def _dependence(filled: Filled, rows: np.ndarray, alone: np.ndarray) -> str | None:
    """Why the network may not be given several rows, or `None` where a row's answer is the same in any company."""
    try:
        together = _answer(filled, rows)
    except SourceError as error:
        return f"it cannot compute {len(rows)} rows together ({error.__cause__ or error})"
    apart = max(_apart(*each) for each in _quantities(alone, together))
    if apart <= _SAME_ROW:
        return None
    return (
        f"the answer to an input changes with what else is in the batch ({apart:.1e} apart), as with a norm over the "
        "batch (track_running_stats=False) or a mean over its rows"
    )


def _quantities(alone: np.ndarray, together: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Two answers in parts that have one scale each: a few outputs may be a price beside a share of 1.

    One that is nothing beside the others is rounding, and no part. Many outputs are of one kind, and some of those are
    near 0 in every probe.
    """
    if alone.shape != together.shape or alone.ndim != 2 or alone.shape[1] > _FEW_OUTPUTS:
        return [(alone, together)]
    sizes = np.abs(alone).max(axis=0)
    kept = sizes > sizes.max() * _ROUNDING
    return [(alone, together), *((alone[:, i], together[:, i]) for i in np.flatnonzero(kept))]


def _apart(expected: np.ndarray, found: np.ndarray) -> float:
    return agreement.measure(expected, found, classes=False).difference
