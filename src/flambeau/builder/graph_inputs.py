"""The inputs of an ONNX graph: their dtypes, the shape of one row, and where their rows are.

It reads what the graph declares and runs nothing.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto

from flambeau.builder import compared_numbers, missing
from flambeau.builder.axis_words import asked_for
from flambeau.builder.shapes import shape_of
from flambeau.errors import SourceError
from flambeau.identify import row_axes, unsupported
from flambeau.items import FREE
from flambeau.settings.source import SourceOptions
from flambeau.types import TensorSpec

_DTYPES: dict[int, str] = {
    getattr(TensorProto, onnx_name): name
    for onnx_name, name in (
        ("FLOAT", "float32"), ("DOUBLE", "float64"), ("FLOAT16", "float16"), ("BOOL", "bool"), ("INT8", "int8"),
        ("INT16", "int16"), ("INT32", "int32"), ("INT64", "int64"), ("UINT8", "uint8"), ("UINT16", "uint16"),
        ("UINT32", "uint32"), ("UINT64", "uint64"),
    )
}  # fmt: skip


@dataclass(frozen=True)
class GraphInputs:
    """The inputs of a graph. `rows` is the number of rows it was made for, if fixed; `bare` are the inputs without an
    axis of rows, `axes` has that axis of those in which it is not the first, and `guessed` are those of which no word
    says so."""

    specs: tuple[TensorSpec, ...]
    rows: int | None
    bare: tuple[str, ...]
    axes: dict[str, int]
    guessed: tuple[str, ...]

    def shape(self, spec: TensorSpec, rows: int, length: int) -> tuple[int, ...]:
        """The shape of that many rows of an input, as the graph in the file takes it."""
        if spec.name in self.bare:
            return ()
        shape = spec.long(length)
        axis = self.axes.get(spec.name, 0)
        return (*shape[:axis], rows, *shape[axis:])


def of_graph(model: "onnx.ModelProto", file: Path, options: SourceOptions) -> GraphInputs:
    """The inputs. All have an axis of rows, except those that hold one value for all rows. Raises `SourceError`."""
    weights = {each.name for each in model.graph.initializer}
    given = [each for each in model.graph.input if each.name not in weights]
    if not given or not model.graph.output:
        raise SourceError(
            f"{file.name} has {len(given)} inputs and {len(model.graph.output)} outputs, and at least one of each is "
            f"served: {unsupported.ask(str(file))}"
        )
    declared = {value.name: _sizes(value) for value in given}
    axes = row_axes.elsewhere(declared)
    specs, rows, bare = [], set(), []
    for value in given:
        kind = value.type.tensor_type.elem_type
        if kind not in _DTYPES:
            texts = kind == TensorProto.STRING
            raise SourceError(
                f"the input {value.name} of {file.name} is {TensorProto.DataType.Name(kind)}, and numbers of "
                f"at most 64 bits are served: {unsupported.ask(str(file)) if texts else unsupported.AROUND}"
            )
        named = value.type.tensor_type.HasField("shape")
        if named and not value.type.tensor_type.shape.dim and len(given) > 1:
            bare.append(value.name)
            known = compared_numbers.of_input(model, value.name, dtype=_DTYPES[kind])
            specs.append(TensorSpec(value.name, _DTYPES[kind], (), known=known))
            continue
        made_for, shape = _shape(value, axes.get(value.name, 0), file, options, alone=len(given) == 1)
        rows.add(made_for)
        may_lack = _DTYPES[kind].startswith("float") and missing.taken(model, value.name)
        specs.append(TensorSpec(value.name, _DTYPES[kind], shape, missing=may_lack))
    if not rows:
        raise SourceError(f"no input of {file.name} has rows, and items are rows: {unsupported.ask(str(file))}")
    guessed = row_axes.guessed(declared, axes)
    return GraphInputs(asked_for(specs, options), 1 if 1 in rows else None, tuple(bare), axes, tuple(guessed))


def _sizes(value: Any) -> list[row_axes.Size]:
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
