"""A replica of a function: a Python model's `predict`, or anybody's callable. It knows no engine and no pipeline."""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np

from flambeau import samples, usercode
from flambeau.architectures import torchvision_ops
from flambeau.bundle import Bundle, PythonPipeline
from flambeau.errors import InvalidInput, RequestError, SourceError
from flambeau.pipelines import json_value
from flambeau.pipelines.json_document import open_document
from flambeau.python_model import PythonModel
from flambeau.runners.attempt import attempt, invalid_output
from flambeau.runners.base import Cost
from flambeau.samples import Sample, Traced
from flambeau.types import Answer, Item, Outcome, Payload, Plain, Timings


def open_python_model(
    opened: Bundle, pipeline: PythonPipeline, *, allow_code: bool, max_json_depth: int = 32
) -> "FunctionReplica":
    """Import the model's class, make one and load it. Raises `SetupError`."""
    torchvision_ops.stand_by()
    found = usercode.load(pipeline.code, within=opened.path, allow_code=allow_code)
    where = f"{pipeline.code.file or pipeline.code.module}:{pipeline.code.name}"
    if not (isinstance(found, type) and issubclass(found, PythonModel)):
        raise SourceError(f"{where} is not a subclass of flambeau.PythonModel")
    try:
        model = found()
        model.load()
    except Exception as error:
        raise SourceError(f"{where} cannot be loaded: {type(error).__name__}: {error}") from error
    return FunctionReplica(model.predict, name=where, golden=samples.read(opened), max_json_depth=max_json_depth)


class FunctionReplica:
    """A function from a list of values to a list of answers."""

    def __init__(
        self,
        function: Callable[[list[Any]], Any],
        *,
        name: str,
        golden: Sequence[Sample] = (),
        max_json_depth: int = 32,
    ) -> None:
        self.device = "cpu"
        self.cost: Cost | None = None  # what its items look like is not known
        self._function = function
        self._name = name
        self._golden = golden
        self._open = functools.partial(open_document, max_depth=max_json_depth)

    def warm_up(self) -> None:
        """Reproduce the golden samples, if there are any: what else the items look like its author alone knows."""
        samples.reproduce(
            self._golden,
            lambda items: [Traced(outcome, {}) for outcome in self.run(items)],
            model=self._name,
            remedy="mend the model, or build the bundle again with the outputs that are right",
        )

    def run(self, items: Sequence[Item], *, wide: bool = False) -> list[Outcome]:
        values = [attempt(lambda payload: _item_value(self._open(payload)), item.payload) for item in items]
        good = [index for index, value in enumerate(values) if not isinstance(value, RequestError)]
        started = time.monotonic()
        answers = dict(zip(good, self._predict([values[index] for index in good]), strict=True))
        timings = Timings(compute=time.monotonic() - started)
        return [
            Outcome(
                attempt(_function_answer, answers[index], item.payload) if index in answers else values[index], timings
            )
            for index, item in enumerate(items)
        ]

    def _predict(self, batch: list[Any]) -> list[Any]:
        """Answer the items together; if that fails as a whole, each alone, so that only the guilty one fails."""
        if not batch:
            return []
        answers = attempt(self._checked_predict, batch)
        if not isinstance(answers, RequestError):
            return answers
        if len(batch) == 1:
            return [answers]
        return [answer for value in batch for answer in self._predict([value])]

    def _checked_predict(self, batch: list[Any]) -> list[Any]:
        answers = self._function(list(batch))
        if isinstance(answers, np.ndarray) or hasattr(answers, "detach"):
            answers = list(answers) if getattr(answers, "ndim", 0) else answers  # one row per item
        if not isinstance(answers, list | tuple):
            raise invalid_output(f"{self._name} gave a {type(answers).__name__} where a list belongs")
        if len(answers) != len(batch):
            raise invalid_output(f"{self._name} gave {len(answers)} answers to {len(batch)} items")
        return list(answers)

    def close(self) -> None:
        del self._function


def _item_value(payload: Payload) -> Any:
    if payload.kind == "value":
        return payload.data
    if payload.kind == "file":
        return bytes(payload.data)
    try:
        return msgspec.json.decode(payload.data)
    except (ValueError, RecursionError):
        raise InvalidInput("input holds text or a number that has no JSON form", code="invalid_json") from None


def _function_answer(answer: Any, payload: Payload) -> Answer:
    """An answer in the form its item came in: a value for a value, else JSON."""
    if isinstance(answer, BaseException):
        raise answer
    if payload.kind == "value":
        return Plain(answer)
    try:
        return json_value.encode(answer)
    except Exception as error:
        raise invalid_output(f"the model's answer has no JSON form: {error}") from error
