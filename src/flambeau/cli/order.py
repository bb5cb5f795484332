"""What the user of `flambeau predict` asked for, besides the model and the settings, and whether it can be written."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flambeau.errors import ConfigError
from flambeau.offline import parquet

Format = Literal["table", "csv", "jsonl", "parquet"]

_FORMATS: dict[str, Format] = {
    ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Order:
    """What the user asked for, besides the model and the settings."""

    inputs: tuple[str, ...]
    output: Path | None
    format: Format
    overwrite: bool
    top_k: int | None
    probabilities: bool
    column: str | None
    columns: tuple[str, ...]

    @property
    def resumes(self) -> bool:
        """Whether the rows go into a file that a later start can go on from, and not into a pipe or a device."""
        return self.output is not None and (self.output.is_file() or not self.output.exists())


def read_order(inputs: tuple[str, ...], options: dict[str, Any]) -> Order:
    """Take what is ours out of the options of the command. Raises `SetupError` for what cannot be written."""
    columns = options.pop("columns")
    ours = {name: options.pop(name) for name in ("output", "format", "overwrite", "top_k", "probabilities", "column")}
    ours["format"] = _format(ours["output"], ours["format"])
    order = Order(inputs=inputs, columns=tuple(columns.split(",")) if columns else (), **ours)
    if order.probabilities and order.format not in ("jsonl", "parquet"):
        raise ConfigError(f"--probabilities are too many for a {order.format}: write .jsonl or .parquet with -o")
    if order.output is None:
        if order.format == "parquet":
            raise ConfigError("--format parquet needs a file: name it with -o")
    elif order.output.is_dir() or not order.output.parent.is_dir():
        raise ConfigError(f"-o {order.output} cannot be a file: name one in a folder that exists")
    elif order.format == "table" or (order.format == "parquet" and not order.resumes):
        raise ConfigError(f"--format {order.format} cannot be written to {order.output}: leave -o out, or take csv")
    if order.format == "parquet":
        parquet.require()
    return order


def _format(output: Path | None, wanted: Format | None) -> Format:
    if wanted is not None:
        return wanted
    if output is None:
        return "table" if sys.stdout.isatty() else "jsonl"
    try:
        return _FORMATS[output.suffix.lower()]
    except KeyError:
        raise ConfigError(
            f"-o {output} does not tell its format: call it .csv, .jsonl or .parquet, or add --format"
        ) from None
