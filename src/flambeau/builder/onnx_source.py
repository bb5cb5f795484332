"""Take an ONNX file into a bundle: check it, free its number of rows where that changes no answer, and copy it.

There is no PyTorch to compare with: every load must reproduce the graph's own answers to the probes, row by row.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from msgspec import structs
from onnx import TensorProto
from onnx.inliner import inline_local_functions

from flambeau.answers import agreement
from flambeau.builder import (
    compared_numbers,
    dense_graph,
    dense_recipe,
    graphs,
    outputs,
    pooling,
    row_arrays,
    row_axes,
    sounds,
    texts,
)
from flambeau.builder.axis_words import asked_for
from flambeau.builder.filled import Filled, Tell, dressed
from flambeau.builder.sandbox import GraphInput
from flambeau.builder.shapes import InputForm, of_shape, shape_of
from flambeau.checkpoints import last_operation
from flambeau.checkpoints.last_operation import Ending
from flambeau.engines.onnxruntime import open_session
from flambeau.errors import SourceError
from flambeau.identify import unsupported
from flambeau.identify.row_axes import Size, elsewhere
from flambeau.items import FREE, USUAL_LENGTH
from flambeau.settings.source import SourceOptions
from flambeau.sources.request import BuildRequest
from flambeau.types import Tensors, TensorSpec

_SEVERAL = 3  # rows to try a graph with, where it takes any number of them
_LENGTHS = (USUAL_LENGTH, 64, 512)  # lengths of free axes to try
_DTYPES: dict[int, str] = {
    getattr(TensorProto, onnx_name): name
    for onnx_name, name in (
        ("FLOAT", "float32"), ("DOUBLE", "float64"), ("FLOAT16", "float16"), ("BOOL", "bool"), ("INT8", "int8"),
        ("INT16", "int16"), ("INT32", "int32"), ("INT64", "int64"), ("UINT8", "uint8"), ("UINT16", "uint16"),
        ("UINT32", "uint32"), ("UINT64", "uint64"),
    )
}  # fmt: skip


@dataclass(frozen=True)
class _TakenOutputs:
    """The outputs that are the answer, and where their rows are."""

    names: tuple[str, ...]
    orders: row_axes.Orders


@dataclass(frozen=True)
class _Given:
    """The inputs of a graph. `rows` is the number of rows it was made for, if fixed; `bare` are the inputs without an
    axis of rows, and `axes` has that axis of those in which it is not the first."""

    specs: tuple[TensorSpec, ...]
    rows: int | None
    bare: tuple[str, ...]
    axes: dict[str, int]

    def shape(self, spec: TensorSpec, rows: int, length: int) -> tuple[int, ...]:
        """The shape of that many rows of an input, as the graph in the file takes it."""
        if spec.name in self.bare:
            return ()
        shape = spec.long(length)
        axis = self.axes.get(spec.name, 0)
        return (*shape[:axis], rows, *shape[axis:])


def take(order: BuildRequest, target: Path, *, tell: Tell) -> Filled:
    """Write the graph to `target` and return it as a network. Raises `SourceError` for one that cannot be served."""
    file = Path(str(order.file))
    graphs.hold(file, given=bool(order.int8 or order.options.samples))
    model = _read(file)
    given = _inputs(model, file, order.options)
    length = _prove(file, given, tell)
    if of_pixels := dense_recipe.wanted(order.options):
        taken = InputForm(given.specs)
    else:
        taken = sounds.taken(_form(given, file, order.options), order.options, file.name)
        taken = texts.taken(taken, order, file.name, tell=tell)
    one = of_pixels or any(each is not None for each in (taken.image, taken.text, taken.audio))
    found = _answers(model, file, given, length, order.options.output_name, tell, one=one)
    _tell_of_axes(given, found, tell)
    taken, answers = _arrange(model, given, found, taken, order, tell=tell)
    if of_pixels:
        onnx.save(model, target)
        sides, ending = dense_graph.sides_of(model), _ending(model, answers[0])
        network, only = _Graph(target, answers), _only(given, file)
        return dense_graph.filled(order, network, only, answers, sides, tell=tell, ending=ending)
    row_axes.free(model)
    onnx.save(model, target)
    rows = one_row = None
    if given.bare:
        rows, one_row = 1, f"its input {given.bare[0]} is one for all rows"
    elif (given.rows is not None or given.axes) and not _same_in_batches(target, given, length):
        model = _read(file)  # as it came
        _arrange(model, given, found, taken, order, tell=_quiet)
        onnx.save(model, target)
        rows, one_row = 1, "its graph was made for one row"
    specs = given.specs if taken.text is None else taken.inputs
    taken = replace(taken, inputs=specs, rows=rows, one_row=one_row)
    network = _Graph(target, answers)
    if taken.image is not None and order.options.task is None:
        _refuse_maps(network, given, answers[0], file.name)
    return dressed(
        network, taken, order, name=order.name, architecture=None, tell=tell, exports="ready", outputs=answers,
        ending=_ending(model, answers[0]),
    )  # fmt: skip


def _arrange(
    model: "onnx.ModelProto", given: _Given, found: _TakenOutputs, taken: InputForm, order: BuildRequest, *, tell: Tell
) -> tuple[InputForm, tuple[str, ...]]:
    """Leave the answer only, pooled where it has to be, and bring all rows to the first axis."""
    row_axes.move_outputs(model, found.orders)
    _leave_only(found.names, model)
    answers = found.names
    if taken.text is not None:
        taken, answers = _pooled(taken, model, answers, order, tell)
    row_axes.move_inputs(model, given.axes)
    row_axes.add_to(model, given.bare)
    return taken, answers


def _tell_of_axes(given: _Given, found: _TakenOutputs, tell: Tell) -> None:
    for spec in given.specs:
        if spec.known:
            tell(f"{spec.name} is tried with {spec.known[0]}, a number that the graph compares it with")
        if spec.name in given.axes:
            tell(f"the rows of {spec.name} are axis {given.axes[spec.name]}; in requests they come first: {spec}")
    for name, order in found.orders.items():
        tell(f"the rows of {name} are axis {order[0]}; in answers they come first")


def _quiet(_: str) -> None:
    """Swallow notes that have been shown."""


class _Graph:
    """The graph as a network."""

    def __init__(self, target: Path, outputs: tuple[str, ...]) -> None:
        self._session = open_session(target)
        self._outputs = outputs

    def __call__(self, inputs: Tensors) -> Tensors:
        answers: Tensors = {}
        for name, answer in zip(self._outputs, self._session.run(list(self._outputs), inputs), strict=True):
            if not isinstance(answer, np.ndarray):  # ONNX has sequences and mappings as well
                raise TypeError(f"its output {name} is a {type(answer).__name__}, and tensors are served")
            answers[name] = answer
        return answers


def _read(file: Path) -> "onnx.ModelProto":
    try:
        model = onnx.load(file, format="protobuf")  # else its suffix would decide
    except Exception as error:  # onnx and protobuf each have their own exception types
        raise SourceError(f"{file.name} is not an ONNX model that can be read: {str(error).strip()}") from error
    return model


def _inputs(model: "onnx.ModelProto", file: Path, options: SourceOptions) -> _Given:
    """The inputs. All have an axis of rows, except those that hold one value for all rows (`bare`)."""
    weights = {each.name for each in model.graph.initializer}
    given = [each for each in model.graph.input if each.name not in weights]
    if not given or not model.graph.output:
        raise SourceError(
            f"{file.name} has {len(given)} inputs and {len(model.graph.output)} outputs, and at least one of each is "
            f"served: {unsupported.ask(str(file))}"
        )
    axes = elsewhere({value.name: _sizes(value) for value in given})
    specs, rows, bare = [], set(), []
    for value in given:
        kind = value.type.tensor_type.elem_type
        if kind not in _DTYPES:
            raise SourceError(
                f"the input {value.name} of {file.name} is {TensorProto.DataType.Name(kind)}, and numbers of "
                f"at most 64 bits are served: {unsupported.ask(str(file))}"
            )
        named = value.type.tensor_type.HasField("shape")
        if named and not value.type.tensor_type.shape.dim and len(given) > 1:
            bare.append(value.name)
            known = compared_numbers.of_input(model, value.name)
            specs.append(TensorSpec(value.name, _DTYPES[kind], (), known=known))
            continue
        made_for, shape = _shape(value, axes.get(value.name, 0), file, options, alone=len(given) == 1)
        rows.add(made_for)
        specs.append(TensorSpec(value.name, _DTYPES[kind], shape))
    if not rows:
        raise SourceError(f"no input of {file.name} has rows, and items are rows: {unsupported.ask(str(file))}")
    return _Given(asked_for(specs, options), 1 if 1 in rows else None, tuple(bare), axes)


def _form(given: _Given, file: Path, options: SourceOptions) -> InputForm:
    """Images where there is one input that looks like one, unless `--pipeline` decides; else numbers."""
    [first, *others] = given.specs
    no_pictures = len(others) > 0 or first.dtype != "float32" or FREE in first.shape
    if no_pictures and options.pipeline == "image":
        taken = ", ".join(f"{spec.name} {spec}" for spec in given.specs)
        raise SourceError(f"--pipeline image, but {file.name} takes {taken}, which are not images: leave it out")
    if no_pictures:
        return InputForm(given.specs)
    return of_shape(first.shape, file.name, options)


def _prove(file: Path, given: _Given, tell: Tell) -> int:
    """Have the graph opened and run in a sandbox, and return a length of its free axes that it can compute."""
    lengths = _LENGTHS if any(FREE in spec.shape for spec in given.specs) else _LENGTHS[:1]
    refused: SourceError | None = None
    for length in lengths:
        try:
            tried = {
                spec.name: GraphInput(spec.dtype, given.shape(spec, 1, length), spec.known[:1]) for spec in given.specs
            }
            tell(f"opened and run in a sandbox first: {graphs.prove(file, tried)}")
        except SourceError as error:
            refused = refused or error
            if "that can be run" not in str(error):  # it exceeded a limit, and longer rows would too
                break
        else:
            return length
    if len(lengths) == 1:
        raise refused or AssertionError("a length was tried")
    raise SourceError(f"{refused}: if its free length is the cause, say the shape of one item with --input-shape")


def _pooled(
    taken: InputForm, model: "onnx.ModelProto", answers: tuple[str, ...], order: BuildRequest, tell: Tell
) -> tuple[InputForm, tuple[str, ...]]:
    """Add what makes one vector of those of all tokens, if the graph gives one for each. Raises `SourceError`."""
    text = taken.text
    assert text is not None  # the caller checked
    [value] = [each for each in model.graph.output if each.name == answers[0]]
    if len(value.type.tensor_type.shape.dim) != 3:
        if order.options.pooling is not None:
            raise SourceError(f"--pooling has no effect on {answers[0]}, which is one row for a text: leave it out")
        return taken, answers
    how, told = texts.pooling_of(order, answers[0])
    name = pooling.add(model, answers[0], mask=text.mask, how=how)
    made = "the mean of its tokens' vectors" if how == "mean" else "that of its first token"
    tell(f"the vector of a text is {made}, as {told} says")
    return replace(taken, text=structs.replace(text, pooling=how)), (name,)


def _answers(
    model: "onnx.ModelProto", file: Path, given: _Given, length: int, wanted: str | None, tell: Tell, *, one: bool
) -> _TakenOutputs:
    """The outputs that are the answer: one alone, if a task makes it.

    `length` is the length of free axes to try the graph with. Raises `SourceError` where the user has to choose.
    """
    names: list[str] = [each.name for each in model.graph.output]
    if len(names) == 1 and wanted is None and not given.axes:
        return _TakenOutputs((names[0],), {})
    session, rows, several = open_session(file), 1, None
    if given.rows is None:
        try:
            rows, several = _SEVERAL, _computed(session, given, _SEVERAL, length, file.name)
        except SourceError:
            if not given.axes and not given.bare:
                raise
            rows = 1  # it may be made for one
    single = _computed(session, given, 1, length, file.name)
    orders = row_axes.of_outputs(single, several, rows=rows) if several or given.axes else {}
    arrays = row_axes.first(several or single, orders)
    if wanted in names and wanted not in arrays:
        raise SourceError(
            f"--output-name {wanted}: that output of {file.name} is not a tensor but a sequence, as scikit-learn's "
            f"converter writes probabilities: export it with zipmap=False, or {unsupported.ask(str(file))}"
        )
    if list(arrays) == [wanted] or len(names) == len(arrays) == 1:
        return _TakenOutputs(tuple(arrays), orders)
    all_of_them = None if one or len(arrays) < len(names) else rows
    taken, note = outputs.choose(arrays, wanted, name=file.name, rows=all_of_them)
    left = ", ".join(name for name in names if name not in taken)
    tell(note or f"the output {taken[0]} of {file.name} is the answer, and {left} is not computed")
    return _TakenOutputs(taken, {name: order for name, order in orders.items() if name in taken})


def _computed(session: Any, given: _Given, rows: int, length: int, name: str) -> Tensors:
    """What the graph computes for random rows, without what is no tensor: ONNX has sequences and mappings as well.

    Raises `SourceError`.
    """
    numbers = np.random.default_rng(0)
    tried = {spec.name: row_arrays.of_spec(spec, given.shape(spec, rows, length), numbers) for spec in given.specs}
    try:
        found = session.run(None, tried)
    except Exception as error:  # onnxruntime has its own exception types
        raise SourceError(f"{name} cannot compute an input of shape {row_arrays.shown(tried)}: {error}") from error
    names = (each.name for each in session.get_outputs())
    return {each: array for each, array in zip(names, found, strict=True) if isinstance(array, np.ndarray)}


def _refuse_maps(network: _Graph, given: _Given, answer: str, name: str) -> None:
    """Raise `SourceError` if it answers an image with a map of its pixels, for then the user has to say of what."""
    [spec] = given.specs
    try:
        shape = network({spec.name: np.zeros((1, *spec.shape), np.float32)})[answer].shape
    except Exception:  # onnxruntime has its own exception types; what it cannot compute is reported later
        return
    if question := dense_recipe.question(tuple(shape), spec.shape[1], name):
        raise SourceError(question)


def _only(given: _Given, file: Path) -> TensorSpec:
    """The only input, which is an image. Raises `SourceError`."""
    [first, *others] = given.specs
    if others or first.dtype != "float32" or len(first.shape) != 3 or first.shape[0] not in (1, 3):
        taken = ", ".join(f"{spec.name} {spec}" for spec in given.specs)
        raise SourceError(f"{file.name} takes {taken}, and --task gives it one image of 1 or 3 channels: leave it out")
    return first


def _leave_only(answers: tuple[str, ...], model: "onnx.ModelProto") -> None:
    """Remove the other outputs from the model, so that nothing computes them."""
    kept = [each for each in model.graph.output if each.name in answers]
    del model.graph.output[:]
    model.graph.output.extend(kept)


def _ending(model: "onnx.ModelProto", output: str) -> Ending:
    """The last operation before the output."""
    if model.functions:
        model = inline_local_functions(model)
    nodes = (last_operation.Node(node.op_type, tuple(node.input), tuple(node.output)) for node in model.graph.node)
    return last_operation.of_graph(nodes).get(output, last_operation.UNKNOWN)


def _sizes(value: Any) -> list[Size]:
    sizes = value.type.tensor_type.shape.dim
    return [size.dim_value if size.HasField("dim_value") else size.dim_param or None for size in sizes]


def _shape(
    value: Any, axis: int, file: Path, options: SourceOptions, *, alone: bool
) -> tuple[int | None, tuple[int, ...]]:
    """The number of rows it was made for, if fixed, and the shape of one row, whose number is at that axis.

    `alone`: there is no other input. Raises `SourceError`.
    """
    name = file.name
    sizes = [size if isinstance(size, int) else None for size in _sizes(value)]
    of = "its input" if alone else f"its input {value.name}"
    if not sizes:
        raise SourceError(f"{name} does not say the shape of {of}: export it with one, or {unsupported.ask(str(file))}")
    rows, rest = sizes[axis], [*sizes[:axis], *sizes[axis + 1 :]]
    if rows not in (None, 1):
        more = "" if alone else f" of {of}"
        raise SourceError(
            f"{name} takes {rows} rows{more} at a time only: export it with a free number of rows, or "
            f"{unsupported.ask(str(file))}"
        )
    asked = options.input_shape
    if isinstance(asked, dict):
        asked = asked.get(value.name)
    elif asked is not None and not alone:
        raise SourceError(f"--input-shape is that of one input, and {name} takes several: name each, as in a=4,b=3,8")
    if asked is not None:
        wanted = shape_of(asked)
        fits = len(wanted) == len(rest) and all(ours in (None, size) for ours, size in zip(rest, wanted, strict=True))
        if not fits:
            raise SourceError(f"--input-shape {','.join(map(str, asked))}, but {name} takes {rest}")
        return rows, wanted
    if alone and len(rest) == 3 and rest[0] in (1, 3) and rest[1:] == [None, None] and options.pipeline != "tensor":
        side = options.crop or 224  # the network takes images of any size
        return rows, (rest[0], side, side)
    return rows, tuple(FREE if size is None else size for size in rest)


def _same_in_batches(target: Path, given: _Given, length: int) -> bool:
    """Whether three rows in a batch get the same answers as alone: a graph may have its one row built in."""
    numbers = np.random.default_rng(0)
    rows = {spec.name: row_arrays.of_spec(spec, (_SEVERAL, *spec.long(length)), numbers) for spec in given.specs}
    try:
        session = open_session(target)
        together = session.run(None, rows)
        each = [session.run(None, {name: array[i : i + 1] for name, array in rows.items()}) for i in range(_SEVERAL)]
        alone = [np.concatenate(parts) for parts in zip(*each, strict=True)]
    except Exception:  # raising is the answer
        return False
    return all(
        one.shape == other.shape and agreement.measure(one, other, classes=False).holds
        for one, other in zip(alone, together, strict=True)
    )
