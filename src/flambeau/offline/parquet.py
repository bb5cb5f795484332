"""The rows of a finished run as a Parquet file, a part at a time. The only home of pyarrow, which is an extra."""

import itertools
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from flambeau.errors import SetupError
from flambeau.offline.rows import Layout, WrittenRow
from flambeau.system.machine import pip_install

if TYPE_CHECKING:
    import pyarrow

_ROWS_AT_ONCE = 1024
_BYTES_OF_A_GROUP = 64 * 1024 * 1024


def require() -> None:
    """Raise `SetupError` when pyarrow is not installed."""
    if find_spec("pyarrow") is None:
        raise SetupError(f"Parquet needs pyarrow, which is not installed: {pip_install('parquet')}")


def write(target: Path, rows: Path, layout: Layout) -> None:
    """Write the rows of a JSONL file to `target`, which is whole or absent.

    Probabilities, scores and embeddings are float32, which is what the model gave. `output` has the type that fits all
    answers, or where none does, is their JSON text.
    """
    import pyarrow
    from pyarrow import parquet

    schema = _schema(rows, layout)
    fresh = target.with_name(target.name + ".new")
    with parquet.ParquetWriter(fresh, schema) as writer:
        group: list[pyarrow.RecordBatch] = []
        for part in _parts(rows):
            if "output" in layout.columns and schema.field("output").type == pyarrow.string():
                part = [row | {"output": _as_text(row["output"])} for row in part]
            group.append(pyarrow.RecordBatch.from_pylist(part, schema))
            if sum(batch.nbytes for batch in group) >= _BYTES_OF_A_GROUP:
                writer.write_table(pyarrow.Table.from_batches(group, schema))
                group.clear()
        writer.write_table(pyarrow.Table.from_batches(group, schema))
    fresh.replace(target)


def written(target: Path) -> Iterator[WrittenRow]:
    """What a file that `write` has written holds, in order."""
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
    one = {"class_id": text, "class_name": text, "class_index": pa.int32(), "probability": number}
    types = one | {
        "recognised": pa.bool_(),
        "predictions": pa.list_(pa.struct(one)),
        "probabilities": pa.list_(number),
        "labels": pa.list_(text),
        "scores": pa.list_(number),
        "embedding": pa.list_(number),
        "output": _type_of_outputs(rows) if "output" in layout.columns else None,
    }
    return pa.schema([(name, types.get(name, text)) for name in layout.columns])


def _type_of_outputs(rows: Path) -> "pyarrow.DataType":
    import pyarrow as pa

    found = pa.schema([("output", pa.null())])
    for part in _parts(rows):
        try:
            of_part = pa.schema([("output", pa.array([row["output"] for row in part]).type)])
            found = pa.unify_schemas([found, of_part], promote_options="permissive")
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
            return pa.string()
    return found.field("output").type


def _as_text(output: Any) -> str | None:
    return output if output is None or isinstance(output, str) else msgspec.json.encode(output).decode()
