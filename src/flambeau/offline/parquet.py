"""Writes the rows of a finished run as a Parquet file, part by part. Only this module uses pyarrow, an extra."""

import itertools
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from flambeau.errors import SetupError
from flambeau.offline.rows import Layout, WrittenRow
from flambeau.system.machine import pip_install
from flambeau.tasks import TASKS

if TYPE_CHECKING:
    import pyarrow

_ROWS_AT_ONCE = 1024
_BYTES_OF_A_GROUP = 64 * 1024 * 1024


def require() -> None:
    """Raise `SetupError` when pyarrow is not installed."""
    if find_spec("pyarrow") is None:
        raise SetupError(f"Parquet needs pyarrow, which is not installed: {pip_install('parquet')}")


def write(target: Path, rows: Path, layout: Layout) -> None:
    """Write the rows of a JSONL file to `target`, which is complete or absent.

    Probabilities, scores and embeddings are float32, as the model gave them. `output`, and any other column of free
    form, has a type that fits all answers, or holds their JSON text if there is none.
    """
    import pyarrow
    from pyarrow import parquet

    schema = _schema(rows, layout)
    anything = [name for name, kind in layout.cells.items() if kind == "any"]
    as_text = [name for name in anything if schema.field(name).type == pyarrow.string()]
    fresh = target.with_name(target.name + ".new")
    with parquet.ParquetWriter(fresh, schema) as writer:
        group: list[pyarrow.RecordBatch] = []
        for part in _parts(rows):
            if as_text:
                part = [row | {name: _as_text(row[name]) for name in as_text} for row in part]
            group.append(pyarrow.RecordBatch.from_pylist(part, schema))
            if sum(batch.nbytes for batch in group) >= _BYTES_OF_A_GROUP:
                writer.write_table(pyarrow.Table.from_batches(group, schema))
                group.clear()
        writer.write_table(pyarrow.Table.from_batches(group, schema))
    fresh.replace(target)


def written(target: Path) -> Iterator[WrittenRow]:
    """The rows of a file that `write` wrote, in order."""
    from pyarrow import parquet

    with parquet.ParquetFile(target) as file:
        for batch in file.iter_batches(columns=["input", "code"]):
            yield from map(WrittenRow, batch["input"].to_pylist(), batch["code"].to_pylist())


def _parts(rows: Path) -> Iterator[list[dict[str, Any]]]:
    with rows.open("rb") as file:
        while lines := list(itertools.islice(file, _ROWS_AT_ONCE)):
            yield [msgspec.json.decode(line) for line in lines]


def _schema(rows: Path, layout: Layout) -> "pyarrow.Schema":
    import pyarrow as pa

    text, number = pa.string(), pa.float32()
    kinds = {
        "text": text, "whole": pa.int32(), "number": number, "truth": pa.bool_(), "texts": pa.list_(text),
        "numbers": pa.list_(number),
    }  # fmt: skip
    task = TASKS[layout.task]
    types = {name: kinds.get(kind) or _type_of_cells(rows, name) for name, kind in layout.cells.items()}
    types["predictions"] = pa.list_(pa.struct([(name, types[name]) for name in task.ranked]))
    types["probabilities"] = kinds["numbers"]
    return pa.schema([(name, types.get(name, text)) for name in layout.columns])


def _type_of_cells(rows: Path, column: str) -> "pyarrow.DataType":
    import pyarrow as pa

    found = pa.schema([(column, pa.null())])
    for part in _parts(rows):
        try:
            of_part = pa.schema([(column, pa.array([row[column] for row in part]).type)])
            found = pa.unify_schemas([found, of_part], promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
            return pa.string()
    return found.field(column).type


def _as_text(output: Any) -> str | None:
    return output if output is None or isinstance(output, str) else msgspec.json.encode(output).decode()
