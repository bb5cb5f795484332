"""What models do for their users: a module for each task, found by being here.

A module defines the answer of its task and `TASK`, and nothing else in the service names it. What may come from another
process, from `--task` and from a manifest is what is found here, and no more.
"""

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, Union

import msgspec
from msgspec import UNSET

from flambeau.answers import Expected, RawOutputs
from flambeau.tasks.base import CellKind, NetworkFacts, Postprocess, Renderer, Task

__all__ = [
    "ANSWERS",
    "TASKS",
    "CellKind",
    "ImageTask",
    "NetworkFacts",
    "Postprocess",
    "Renderer",
    "Task",
    "TaskName",
    "expectation",
]

_FIRST = ("classification", "multi-label", "regression", "embedding")  # in help and in messages; others by name


def _found() -> dict[str, Task]:
    tasks: list[Task] = []
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        if module.name != f"{__name__}.base":
            tasks.append(importlib.import_module(module.name).TASK)
    place = {name: rank for rank, name in enumerate(_FIRST)}
    tasks.sort(key=lambda task: (place.get(task.name, len(place)), task.name))
    found = {task.name: task for task in tasks}
    if len(found) != len(tasks):
        raise ImportError(f"two tasks have one name: {sorted(task.name for task in tasks)}")
    return found


TASKS = _found()
"""Every task by its name."""

ANSWERS: Any = Union[tuple(dict.fromkeys((RawOutputs, *(task.answer for task in TASKS.values()))))]  # noqa: UP007
"""Every answer that may come from another process: the closed set that is decoded."""

if TYPE_CHECKING:
    TaskName: TypeAlias = str
    ImageTask: TypeAlias = str
else:
    TaskName = Literal[tuple(TASKS)]
    ImageTask = Literal[tuple(name for name, task in TASKS.items() if task.takes == "image")]

_PARTS = {name: kind for task in TASKS.values() for name, kind in task.answer.PARTS.items() if name != "output"}
_Expectation = msgspec.defstruct(
    "_Expectation",
    [*((name, kind | None, None) for name, kind in _PARTS.items()), ("output", Any, UNSET)],
    frozen=True,
    forbid_unknown_fields=True,
)


def expectation(text: msgspec.Raw) -> Expected:
    """What is insisted on of an answer, out of JSON: parts of any task, of the right types. Raises `ValueError`.

    A part that is null is not insisted on; but for `output`, for null is a value too.
    """
    parts = msgspec.structs.asdict(msgspec.json.decode(text, type=_Expectation))
    silent = {"output": UNSET}
    return {name: value for name, value in parts.items() if value is not silent.get(name)}
