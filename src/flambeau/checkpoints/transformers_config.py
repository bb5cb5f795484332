"""The `config.json` that Hugging Face's transformers writes beside weights, and the `preprocessor_config.json` of their
images: which network they belong to, how images are prepared, and what its classes are called.

`save_pretrained` and `Trainer` write them. They are read as data; what becomes of them is the affair of
`flambeau.identify.of_transformers`. Any other program's `config.json` is left alone.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from flambeau.checkpoints import neighbours
from flambeau.checkpoints.report import plain
from flambeau.errors import SourceError
from flambeau.tasks import TaskName

NAME = "config.json"
PROCESSOR = "preprocessor_config.json"

_MOST_BYTES = 8 * 2**20
_MARKS = ("architectures", "model_type")
_MADE_UP = re.compile(r"LABEL_\d+")

TASKS: dict[str, TaskName] = {
    "single_label_classification": "classification",
    "multi_label_classification": "multi-label",
    "regression": "regression",
}
"""Flambeau's tasks by Hugging Face's `problem_type`."""


class TransformersConfig(msgspec.Struct, frozen=True):
    """What the files say.

    `network`: the class of transformers, such as ViTForImageClassification, and `settings` what its configuration
    class takes. `labels`: the names of the classes, in the order of the outputs. `task`: what it was trained for.
    `processor`: how images are prepared, as it stands there; `None` without the file.
    """

    network: str
    settings: dict[str, Any]
    labels: tuple[str, ...] | None = None
    task: TaskName | None = None
    processor: dict[str, Any] | None = None


def beside(weights: Path) -> Path | None:
    """The `config.json` of transformers that belongs to a file of weights. Raises `SourceError` for a damaged one."""
    file = weights.parent.absolute() / NAME  # not where a link leads: the hub's own folder of a model has links only
    if not file.is_file() or not neighbours.belong(weights):
        return None
    table = _table(file)
    named = table is not None and all(table.get(mark) for mark in _MARKS)
    return file if named else None


def files(config: Path) -> tuple[Path, ...]:
    """The files that `read` reads, as far as they exist."""
    return tuple(file for file in (config, config.parent / PROCESSOR) if file.is_file())


def read(file: Path) -> TransformersConfig:
    """What the `config.json`, and the file of images beside it, say. Raises `SourceError`."""
    table = _table(file) or {}
    names = table.get("architectures")
    if (
        not isinstance(names, list)
        or len(names) != 1
        or type(names[0]) is not str
        or type(table["model_type"]) is not str
    ):
        raise SourceError(f"{file} names {plain(str(names))} as its architectures, and one is served: correct it")
    problem = table.get("problem_type")
    return TransformersConfig(
        network=plain(names[0]),
        settings=table,
        labels=class_names(table),
        task=TASKS.get(problem) if isinstance(problem, str) else None,
        processor=_table(file.parent / PROCESSOR),
    )


def class_names(table: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The names of the classes that a `config.json` gives; those that the library makes up are none."""
    said = table.get("id2label")
    names = [said.get(str(index)) for index in range(len(said))] if isinstance(said, dict) else []
    given = [name for name in names if isinstance(name, str)]
    return tuple(given) if len(given) == len(names) and not all(map(_MADE_UP.fullmatch, given)) else None


def _table(file: Path) -> dict[str, Any] | None:
    """The members of a JSON file; `None` if there is none, or it is another program's. Raises `SourceError`."""
    data = b""
    try:
        with file.open("rb") as opened:
            data = opened.read(_MOST_BYTES + 1)
        table = msgspec.json.decode(data) if len(data) <= _MOST_BYTES else None
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, RecursionError) as error:
        if file.name == NAME and not all(f'"{mark}"'.encode() in data for mark in _MARKS):
            return None
        raise SourceError(f"{file} cannot be read ({plain(str(error))}): correct it, or remove it") from None
    return table if isinstance(table, dict) else None
