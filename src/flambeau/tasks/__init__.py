"""Tasks: what models do for their users. Each module here is one task, and is found by being in this package.

A module defines the answer of its task and `TASK`; nothing else in the service names it. The tasks found here are the
only ones accepted from another process, from `--task` and from a manifest.
"""

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, Union

import msgspec
from msgspec import UNSET

from flambeau.answers import Expected, RawOutputs
from flambeau.tasks.base import COUNT, CellKind, NetworkFacts, Postprocess, Renderer, Task

__all__ = [
    "ANSWERS",
    "COUNT",
    "OF_ANOTHER_INPUT",
    "TASKS",
    "AskedTask",
    "CellKind",
    "ImageTask",
    "NetworkFacts",
    "Postprocess",
    "Renderer",
    "Task",
    "TaskName",
    "expectation",
]

_FIRST = ("classification", "multi-label", "regression", "embedding")  # first in help and messages; others by name


def _found() -> dict[str, Task]:
    tasks: list[Task] = []
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        if module.name != f"{__name__}.base":
            tasks.append(importlib.import_module(module.name).TASK)
    place = {name: rank for rank, name in enumerate(_FIRST)}
    tasks.sort(key=lambda task: (place.get(task.name, len(place)), task.name))
    found = {task.name: task for task in tasks}
    if len(found) != len(tasks):
        raise ImportError(f"two tasks have the same name: {sorted(task.name for task in tasks)}")
    return found


TASKS = _found()
"""Every task by name."""

ANSWERS: Any = Union[tuple(dict.fromkeys((RawOutputs, *(task.answer for task in TASKS.values()))))]  # noqa: UP007
"""Every answer that is accepted from another process: a closed set for the decoder."""

OF_ANOTHER_INPUT: dict[str, tuple[str, str]] = {
    "audio-classification": ("audio", "classification"),
    "text-classification": ("text", "classification"),
}
"""Names of tasks that also say what the network takes, as Hugging Face has them: the pipeline, and our task."""

if TYPE_CHECKING:
    TaskName: TypeAlias = str
    ImageTask: TypeAlias = str
    AskedTask: TypeAlias = str
else:
    TaskName = Literal[tuple(TASKS)]
    ImageTask = Literal[tuple(name for name, task in TASKS.items() if task.takes == "image")]
    AskedTask = Literal[(*(name for name, task in TASKS.items() if task.takes == "image"), *OF_ANOTHER_INPUT)]

_PARTS = {name: kind for task in TASKS.values() for name, kind in task.answer.PARTS.items() if name != "output"}
_Expectation = msgspec.defstruct(
    "_Expectation",
    [*((name, kind | None, None) for name, kind in _PARTS.items()), ("output", Any, UNSET)],
    frozen=True,
    forbid_unknown_fields=True,
)


def expectation(text: msgspec.Raw) -> Expected:
    """The expected parts of an answer, from JSON: parts of any task, with their types checked. Raises `ValueError`.

    A part that is null is not compared, except `output`, where null is a value too.
    """
    parts = msgspec.structs.asdict(msgspec.json.decode(text, type=_Expectation))
    silent = {"output": UNSET}
    return {name: value for name, value in parts.items() if value is not silent.get(name)}
