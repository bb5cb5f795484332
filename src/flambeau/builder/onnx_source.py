"""Take an ONNX file into a bundle: check it, free its number of rows where that changes no answer, and copy it.

There is no PyTorch to compare with: every load must reproduce the graph's own answers to the probes, row by row.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from msgspec import structs
from onnx import TensorProto
from onnx.inliner import inline_local_functions

from flambeau.answers import agreement
from flambeau.builder import dense_graph, dense_recipe, graphs, outputs, pooling, row_arrays, sounds, texts
from flambeau.builder.axis_words import asked_for
from flambeau.builder.filled import Filled, Tell, dressed
from flambeau.builder.shapes import InputForm, of_shape, shape_of
from flambeau.checkpoints import last_operation
from flambeau.checkpoints.last_operation import Ending
from flambeau.engines.onnxruntime import open_session
from flambeau.errors import SourceError
from flambeau.identify import unsupported
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
class _Given:
    """The inputs of a graph. `rows` is the number of rows it was made for, if fixed; `bare` are the inputs without an
    axis of rows."""

    specs: tuple[TensorSpec, ...]
    rows: int | None
    bare: tuple[str, ...]

    def tried(self, rows: int, length: int) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Dtypes and shapes to try the original graph with."""
        return {
            spec.name: (spec.dtype, () if spec.name in self.bare else (rows, *spec.long(length))) for spec in self.specs
        }


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
    answers = _answers(model, file, given, length, order.options.output_name, tell, one=one)
    _leave_only(answers, model)
    given_answers = answers
    if taken.text is not None:
        taken, answers = _pooled(taken, model, answers, order, tell)
    if of_pixels:
        onnx.save(model, target)
        return dense_graph.filled(order, _Graph(target, answers), _only(given, file), answers, _sides(model), tell=tell,
                                  ending=_ending(model, answers[0]))  # fmt: skip
    _take_rows(given, model)
    _free_rows(model)
    onnx.save(model, target)
    rows = one_row = None
    if given.bare:
        rows, one_row = 1, f"its input {given.bare[0]} is one for all rows"
    elif given.rows is not None and not _same_in_batches(target, given, length):
        model = _read(file)  # as it came
        _leave_only(given_answers, model)
        if taken.text is not None:
            _pooled(taken, model, given_answers, order, _quiet)
        onnx.save(model, target)
        rows, one_row = given.rows, "its graph was made for one row"
    specs = given.specs if taken.text is None else taken.inputs
    taken = replace(taken, inputs=specs, rows=rows, one_row=one_row)
    network = _Graph(target, answers)
    if taken.image is not None and order.options.task is None:
        _refuse_maps(network, given, answers[0], file.name)
    return dressed(
        network, taken, order, name=order.name, architecture=None, tell=tell, exports="ready", outputs=answers,
        ending=_ending(model, answers[0]),
    )  # fmt: skip


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
            specs.append(TensorSpec(value.name, _DTYPES[kind], ()))
            continue
        made_for, shape = _shape(value, file, options, alone=len(given) == 1)
        rows.add(made_for)
        specs.append(TensorSpec(value.name, _DTYPES[kind], shape))
    if not rows:
        raise SourceError(f"no input of {file.name} has rows, and items are rows: {unsupported.ask(str(file))}")
    return _Given(asked_for(specs, options), 1 if 1 in rows else None, tuple(bare))


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
            tell(f"opened and run in a sandbox first: {graphs.prove(file, given.tried(1, length))}")
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
) -> tuple[str, ...]:
    """The names of the outputs that are the answer: one alone, if a task makes it.

    `length` is the length of free axes to try the graph with. Raises `SourceError` where the user has to choose.
    """
    names: list[str] = [each.name for each in model.graph.output]
    if len(names) == 1 and wanted is None:
        return (names[0],)
    count = 1 if given.bare else given.rows or _SEVERAL
    tried = given.tried(count, length)
    numbers = np.random.default_rng(0)
    rows = {name: row_arrays.random_rows(numbers, shape, dtype) for name, (dtype, shape) in tried.items()}
    try:
        found = open_session(file).run(names, rows)
    except Exception as error:  # onnxruntime has its own exception types
        raise SourceError(f"{file.name} cannot compute an input of shape {row_arrays.shown(rows)}: {error}") from error
    arrays = {name: array for name, array in zip(names, found, strict=True) if isinstance(array, np.ndarray)}
    if wanted in names and wanted not in arrays:
        raise SourceError(
            f"--output-name {wanted}: that output of {file.name} is not a tensor but a sequence, as scikit-learn's "
            f"converter writes probabilities: export it with zipmap=False, or {unsupported.ask(str(file))}"
        )
    if wanted is not None and list(arrays) == [wanted]:
        return (wanted,)
    all_of_them = None if one or len(arrays) < len(names) else count
    taken, note = outputs.choose(arrays, wanted, name=file.name, rows=all_of_them)
    left = ", ".join(name for name in names if name not in taken)
    tell(note or f"the output {taken[0]} of {file.name} is the answer, and {left} is not computed")
    return taken


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


def _sides(model: "onnx.ModelProto") -> tuple[int, ...]:
    """The height and width that the graph says its only input has; `FREE` for one of any length."""
    weights = {each.name for each in model.graph.initializer}
    [value] = [each for each in model.graph.input if each.name not in weights]
    return tuple(
        size.dim_value if size.HasField("dim_value") else FREE for size in value.type.tensor_type.shape.dim[2:]
    )


def _leave_only(answers: tuple[str, ...], model: "onnx.ModelProto") -> None:
    """Remove the other outputs from the model, so that nothing computes them."""
    kept = [each for each in model.graph.output if each.name in answers]
    del model.graph.output[:]
    model.graph.output.extend(kept)


def _take_rows(given: _Given, model: "onnx.ModelProto") -> None:
    """Add an axis of one row to the inputs without one; a Reshape gives the graph the scalar it expects."""
    for name in given.bare:
        value = next(each for each in model.graph.input if each.name == name)
        inner, shape = f"{name} without rows", f"{name}: no axis"
        for node in _nodes(model.graph):
            node.input[:] = [inner if each == name else each for each in node.input]
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(0, np.int64), shape))
        model.graph.node.insert(0, onnx.helper.make_node("Reshape", [name, shape], [inner]))
        value.type.tensor_type.shape.dim.add().dim_value = 1


def _nodes(graph: "onnx.GraphProto") -> Iterator["onnx.NodeProto"]:
    """The nodes of a graph, and of the graphs within them."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)


def _ending(model: "onnx.ModelProto", output: str) -> Ending:
    """The last operation before the output."""
    if model.functions:
        model = inline_local_functions(model)
    nodes = (last_operation.Node(node.op_type, tuple(node.input), tuple(node.output)) for node in model.graph.node)
    return last_operation.of_graph(nodes).get(output, last_operation.UNKNOWN)


def _shape(value: Any, file: Path, options: SourceOptions, *, alone: bool) -> tuple[int | None, tuple[int, ...]]:
    """The number of rows it was made for, if fixed, and the shape of one row. `alone`: there is no other input."""
    name = file.name
    sizes = [size.dim_value if size.HasField("dim_value") else None for size in value.type.tensor_type.shape.dim]
    of = "its input" if alone else f"its input {value.name}"
    if not sizes:
        raise SourceError(f"{name} does not say the shape of {of}: export it with one, or {unsupported.ask(str(file))}")
    rows, *rest = sizes
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
            raise SourceError(f"--input-shape {','.join(map(str, asked))}, but {name} takes {sizes[1:]}")
        return rows, wanted
    if alone and len(rest) == 3 and rest[0] in (1, 3) and rest[1:] == [None, None] and options.pipeline != "tensor":
        side = options.crop or 224  # the network takes images of any size
        return rows, (rest[0], side, side)
    return rows, tuple(FREE if size is None else size for size in rest)


def _free_rows(model: "onnx.ModelProto") -> None:
    """Make the first axis of every input and output free."""
    for value in (*model.graph.input, *model.graph.output):
        sizes = value.type.tensor_type.shape.dim
        if sizes and not sizes[0].dim_param:
            sizes[0].dim_param = "rows"
    del model.graph.value_info[:]  # inner shapes, inferred for the old number of rows


def _same_in_batches(target: Path, given: _Given, length: int) -> bool:
    """Whether three rows in a batch get the same answers as alone: a graph may have its one row built in."""
    numbers = np.random.default_rng(0)
    tried = given.tried(_SEVERAL, length)
    rows = {name: row_arrays.random_rows(numbers, shape, dtype) for name, (dtype, shape) in tried.items()}
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
