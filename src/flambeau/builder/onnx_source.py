"""An ONNX file to a bundle: checked, made free in its number of rows where that changes nothing, and copied.

There is no PyTorch to hold it against: its own answers, row by row, are the probes that every load reproduces.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx.inliner import inline_local_functions

from flambeau.answers import agreement
from flambeau.builder import graphs, outputs
from flambeau.builder.filled import Filled, Tell, dressed
from flambeau.builder.shapes import of_shape
from flambeau.checkpoints import last_operation
from flambeau.checkpoints.last_operation import Ending
from flambeau.engines.onnxruntime import open_session
from flambeau.errors import SourceError
from flambeau.identify import unsupported
from flambeau.settings.source import SourceOptions
from flambeau.sources.request import BuildRequest
from flambeau.types import TensorSpec

_SEVERAL = 3  # rows to try a graph with that takes any number of them


def take(order: BuildRequest, target: Path, *, tell: Tell) -> Filled:
    """Write the graph to `target`, and tell what it takes. Raises `SourceError` for one that cannot be served."""
    file = Path(str(order.file))
    graphs.hold(file, given=bool(order.int8 or order.options.samples))
    model = _read(file)
    given = _input(model, file)
    made_for, shape = _shape(given, file, order.options)
    tell(f"opened and run in a sandbox first: {graphs.prove(file, given.name, shape)}")
    output = _answer(model, file, given.name, (made_for or _SEVERAL, *shape), order.options.output_name, tell)
    _leave_only(output, model)
    _free_rows(model)
    onnx.save(model, target)
    rows = one_row = None
    if made_for is not None and not _same_in_batches(target, given.name, shape):
        model = _read(file)  # as it came
        _leave_only(output, model)
        onnx.save(model, target)
        rows, one_row = made_for, "its graph was made for one row"
    taken = of_shape(shape, file.name, order.options)
    taken = replace(taken, input=TensorSpec(given.name, "float32", shape), rows=rows, one_row=one_row)
    network = _Graph(target, given.name, output)
    return dressed(
        network, taken, order,
        name=order.name, architecture=None, tell=tell, exports="ready", output=output, ending=_ending(model, output),
    )  # fmt: skip


class _Graph:
    """The graph as a network."""

    def __init__(self, target: Path, given: str, output: str) -> None:
        self._session = open_session(target)
        self._given = given
        self._output = output

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        [answer] = self._session.run([self._output], {self._given: rows})
        if not isinstance(answer, np.ndarray):  # ONNX has sequences and mappings as well
            raise TypeError(f"its output {self._output} is a {type(answer).__name__}, and one tensor is served")
        return answer


def _read(file: Path) -> "onnx.ModelProto":
    try:
        model = onnx.load(file, format="protobuf")  # else its suffix would decide
    except Exception as error:  # onnx raises a tree of its own, and protobuf another
        raise SourceError(f"{file.name} is not an ONNX model that can be read: {str(error).strip()}") from error
    return model


def _input(model: "onnx.ModelProto", file: Path) -> Any:
    """The one input."""
    name = file.name
    weights = {each.name for each in model.graph.initializer}
    given = [each for each in model.graph.input if each.name not in weights]
    if len(given) != 1 or not model.graph.output:
        taken = f"{len(given)} inputs ({', '.join(each.name for each in given[:8])})"
        answered = f"{len(model.graph.output)} outputs ({', '.join(each.name for each in model.graph.output[:8])})"
        raise SourceError(
            f"{name} has {taken} and {answered}, and one tensor in is served: {unsupported.ask(str(file))}"
        )
    kind = given[0].type.tensor_type.elem_type
    if kind != onnx.TensorProto.FLOAT:
        raise SourceError(
            f"the input of {name} is {onnx.TensorProto.DataType.Name(kind)}, and only float32 is served: "
            f"{unsupported.ask(str(file))}"
        )
    return given[0]


def _answer(
    model: "onnx.ModelProto", file: Path, given: str, shape: tuple[int, ...], wanted: str | None, tell: Tell
) -> str:
    """The name of the output that is the answer.

    `shape` is that of rows to try the graph with. Raises `SourceError` where the user has to say which it is.
    """
    names: list[str] = [each.name for each in model.graph.output]
    if len(names) == 1 and wanted is None:
        return names[0]
    rows = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    try:
        found = open_session(file).run(names, {given: rows})
    except Exception as error:  # onnxruntime raises a tree of its own
        raise SourceError(f"{file.name} cannot compute an input of shape {list(shape)}: {error}") from error
    arrays = {name: array for name, array in zip(names, found, strict=True) if isinstance(array, np.ndarray)}
    if wanted in names and wanted not in arrays:
        raise SourceError(
            f"--output-name {wanted}: that output of {file.name} is no tensor but a sequence, as scikit-learn's "
            f"converter writes probabilities: export it with zipmap=False, or {unsupported.ask(str(file))}"
        )
    if wanted is not None and list(arrays) == [wanted]:
        return wanted
    taken, note = outputs.choose(arrays, wanted, name=file.name)
    left = ", ".join(name for name in names if name != taken)
    tell(note or f"the output {taken} of {file.name} is the answer, and {left} is not computed")
    return taken


def _leave_only(output: str, model: "onnx.ModelProto") -> None:
    """Take the other outputs out of the model, so that nothing computes them."""
    kept = [each for each in model.graph.output if each.name == output]
    del model.graph.output[:]
    model.graph.output.extend(kept)


def _ending(model: "onnx.ModelProto", output: str) -> Ending:
    """In what the graph ends."""
    if model.functions:
        model = inline_local_functions(model)
    nodes = (last_operation.Node(node.op_type, tuple(node.input), tuple(node.output)) for node in model.graph.node)
    return last_operation.of_graph(nodes).get(output, last_operation.UNKNOWN)


def _shape(value: Any, file: Path, options: SourceOptions) -> tuple[int | None, tuple[int, ...]]:
    """The number of rows it is made for, if it is, and the shape of one."""
    name = file.name
    sizes = [size.dim_value if size.HasField("dim_value") else None for size in value.type.tensor_type.shape.dim]
    if not sizes:
        raise SourceError(
            f"{name} does not say the shape of its input: export it with one, or {unsupported.ask(str(file))}"
        )
    rows, *rest = sizes
    if rows not in (None, 1):
        raise SourceError(
            f"{name} takes {rows} rows at a time only: export it with a free number of rows, or "
            f"{unsupported.ask(str(file))}"
        )
    if options.input_shape is not None:
        fits = len(options.input_shape) == len(rest) and all(
            ours in (None, asked) for ours, asked in zip(rest, options.input_shape, strict=True)
        )
        if not fits:
            raise SourceError(f"--input-shape {','.join(map(str, options.input_shape))}, but {name} takes {sizes[1:]}")
        return rows, options.input_shape
    if len(rest) == 3 and rest[0] in (1, 3) and rest[1:] == [None, None]:  # a network for images of any size
        side = options.crop or 224
        return rows, (rest[0], side, side)
    if None in rest:
        raise SourceError(f"{name} takes inputs of free shape {sizes}: say the shape of one item with --input-shape")
    return rows, tuple(size for size in rest if size is not None)


def _free_rows(model: "onnx.ModelProto") -> None:
    """Let the first size of every input and output be any."""
    for value in (*model.graph.input, *model.graph.output):
        sizes = value.type.tensor_type.shape.dim
        if sizes and not sizes[0].dim_param:
            sizes[0].dim_param = "rows"
    del model.graph.value_info[:]  # sizes within, inferred for the old number of rows


def _same_in_batches(target: Path, name: str, shape: tuple[int, ...]) -> bool:
    """Whether three rows together get the answers that each gets alone: a graph may have its one row built in."""
    rows = np.random.default_rng(0).standard_normal((3, *shape)).astype(np.float32)
    try:
        session = open_session(target)
        together = session.run(None, {name: rows})[0]
        alone = np.concatenate([session.run(None, {name: row[None]})[0] for row in rows])
    except Exception:  # that it raises is the answer
        return False
    return together.shape == alone.shape and agreement.measure(alone, together, classes=False).holds
