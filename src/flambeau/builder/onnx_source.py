"""Take an ONNX file into a bundle: check it, free its number of rows where that changes no answer, and copy it.

There is no PyTorch to compare with: every load must reproduce the graph's own answers to the probes, row by row.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from msgspec import structs
from onnx.inliner import inline_local_functions

from flambeau.answers import agreement
from flambeau.builder import (
    dense_graph,
    dense_recipe,
    graph_decisions,
    graph_inputs,
    graph_masks,
    graphs,
    outputs,
    pooling,
    row_arrays,
    row_axes,
    sounds,
    texts,
)
from flambeau.builder.filled import Filled, Tell, dressed
from flambeau.builder.graph_inputs import GraphInputs
from flambeau.builder.sandbox import GraphInput
from flambeau.builder.shapes import InputForm, of_shape
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


@dataclass(frozen=True)
class _TakenOutputs:
    """The outputs that are the answer, and where their rows are."""

    names: tuple[str, ...]
    orders: row_axes.Orders


def take(order: BuildRequest, target: Path, *, tell: Tell) -> Filled:
    """Write the graph to `target` and return it as a network. Raises `SourceError` for one that cannot be served."""
    file = Path(str(order.file))
    graphs.hold(file, given=bool(order.int8 or order.options.samples))
    model = _read(file)
    given = graph_inputs.of_graph(model, file, order.options)
    length = _prove(file, given, tell)
    given = graph_masks.told(given, file, length)
    if of_pixels := dense_recipe.wanted(order.options):
        taken = InputForm(given.specs)
    else:
        taken = sounds.taken(_form(given, file, order.options), order.options, file.name)
        taken = texts.taken(taken, order, file.name, tell=tell)
    one = of_pixels or any(each is not None for each in (taken.image, taken.text, taken.audio))
    found = _answers(model, file, given, length, order.options.output_name, tell, one=one)
    _tell_of_axes(given, found, tell)
    _refuse_passed_on(given, found, file)
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
    elif graph_decisions.decides(model, [spec.name for spec in given.specs]):
        rows, one_row = 1, graph_decisions.BECAUSE
    elif (given.rows is not None or given.axes) and not _same_in_batches(target, given, length):
        _refuse_guesses(given, file)
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
    model: "onnx.ModelProto",
    given: GraphInputs,
    found: _TakenOutputs,
    taken: InputForm,
    order: BuildRequest,
    *,
    tell: Tell,
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


def _tell_of_axes(given: GraphInputs, found: _TakenOutputs, tell: Tell) -> None:
    for spec in given.specs:
        if spec.known:
            why = "as masks are" if set(spec.known) == {0, 1} else "a number that the graph compares it with"
            tell(f"{spec.name} is tried with {spec.known[0]}, {why}")
        if spec.name in given.axes:
            tell(f"the rows of {spec.name} are axis {given.axes[spec.name]}; in requests they come first: {spec}")
    for name, order in found.orders.items():
        tell(f"the rows of {name} are axis {order[0]}; in answers they come first")


def _refuse_guesses(given: GraphInputs, file: Path) -> None:
    """Raise `SourceError` if rows may lie elsewhere than was guessed: those in a batch had other answers than alone."""
    if given.guessed:
        name = given.guessed[0]
        raise SourceError(
            f"{file.name} does not say which axis of its input {name} has the rows, and they are not axis "
            f"{given.axes[name]}: export it with one word for the rows of all inputs, such as batch, or "
            "wrap it in a flambeau.PythonModel"
        )


def _refuse_passed_on(given: GraphInputs, found: _TakenOutputs, file: Path) -> None:
    """Raise `SourceError` for an input that is an output, too, where the graph has to be changed between the two."""
    changed = {*given.axes, *given.bare, *found.orders}
    for name in (spec.name for spec in given.specs if spec.name in found.names and spec.name in changed):
        raise SourceError(
            f"the input {name} of {file.name} is its output as well: take another with --output-name, or wrap it "
            "in a flambeau.PythonModel"
        )


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


def _form(given: GraphInputs, file: Path, options: SourceOptions) -> InputForm:
    """Images where there is one input that looks like one, unless `--pipeline` decides; else numbers."""
    [first, *others] = given.specs
    no_pictures = len(others) > 0 or first.dtype != "float32" or FREE in first.shape
    if no_pictures and options.pipeline == "image":
        taken = ", ".join(f"{spec.name} {spec}" for spec in given.specs)
        raise SourceError(f"--pipeline image, but {file.name} takes {taken}, which are not images: leave it out")
    if no_pictures:
        return InputForm(given.specs)
    return of_shape(first.shape, file.name, options)


def _prove(file: Path, given: GraphInputs, tell: Tell) -> int:
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
    tell(f"the vector of a text is {texts.POOLED[how]}, as {told} says")
    return replace(taken, text=structs.replace(text, pooling=how)), (name,)


def _answers(
    model: "onnx.ModelProto", file: Path, given: GraphInputs, length: int, wanted: str | None, tell: Tell, *, one: bool
) -> _TakenOutputs:
    """The outputs that are the answer: one alone, if a task makes it.

    `length` is the length of free axes to try the graph with. Raises `SourceError` where the user has to choose.
    """
    names: list[str] = [each.name for each in model.graph.output]
    if all(each.type.tensor_type.elem_type == onnx.TensorProto.STRING for each in model.graph.output):
        raise _no_numbers(file)
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
    if not any(array.dtype.kind in "fiub" for array in arrays.values()):
        raise _no_numbers(file)
    if wanted in names and wanted not in arrays:
        raise SourceError(
            f"--output-name {wanted}: that output of {file.name} is not a tensor but a sequence, as scikit-learn's "
            f"converter writes probabilities: export it with zipmap=False, or {unsupported.AROUND}"
        )
    if list(arrays) == [wanted] or len(names) == len(arrays) == 1:
        return _TakenOutputs(tuple(arrays), orders)
    all_of_them = None if one or len(arrays) < len(names) else rows
    taken, note = outputs.choose(arrays, wanted, name=file.name, rows=all_of_them)
    left = ", ".join(name for name in names if name not in taken)
    why = "".join(
        f", for {name} is no tensor: scikit-learn's converter makes it one with zipmap=False"
        for name in [each for each in names if each not in arrays][:1]
    )
    tell(note or f"the output {taken[0]} of {file.name} is the answer, and {left} is not computed{why}")
    return _TakenOutputs(taken, {name: order for name, order in orders.items() if name in taken})


def _no_numbers(file: Path) -> SourceError:
    return SourceError(
        f"no output of {file.name} is a tensor of numbers: they are texts and sequences, as scikit-learn's converter "
        "writes classes and their probabilities: export it with zipmap=False, and take --output-name probabilities, or "
        f"{unsupported.ask(str(file))}"
    )


def _computed(session: Any, given: GraphInputs, rows: int, length: int, name: str) -> Tensors:
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


def _refuse_maps(network: _Graph, given: GraphInputs, answer: str, name: str) -> None:
    """Raise `SourceError` if it answers an image with a map of its pixels, for then the user has to say of what."""
    [spec] = given.specs
    try:
        shape = network({spec.name: np.zeros((1, *spec.shape), np.float32)})[answer].shape
    except Exception:  # onnxruntime has its own exception types; what it cannot compute is reported later
        return
    if question := dense_recipe.question(tuple(shape), spec.shape[1], name):
        raise SourceError(question)


def _only(given: GraphInputs, file: Path) -> TensorSpec:
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


def _same_in_batches(target: Path, given: GraphInputs, length: int) -> bool:
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
