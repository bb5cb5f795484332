"""A replica of a function: a Python model's `predict`, or any callable. It knows no engine and no pipeline."""

import functools
import logging
import signal
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import msgspec
import numpy as np

from flambeau import usercode
from flambeau.answers.value import encode
from flambeau.bundle import golden_samples
from flambeau.bundle.golden_samples import Sample, Traced
from flambeau.bundle.storage import Bundle, PythonConfig
from flambeau.errors import InvalidInput, RequestError, SourceError
from flambeau.pipelines.json_document import open_document
from flambeau.python_model import PythonModel
from flambeau.runners.base import BatchCost
from flambeau.telemetry import logs
from flambeau.types import Answer, Item, Outcome, Payload, Plain, Timings

P = ParamSpec("P")
T = TypeVar("T")


def attempt(step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | RequestError:
    """Run one step of a batch, for any kind of replica, and turn what it raises into an error that the client may see.

    The client never sees the text of a foreign exception, which may hold paths or data. The log does.
    """
    try:
        return step(*args, **kwargs)
    except RequestError as error:
        return error
    except MemoryError:
        return RequestError("the model ran out of memory over this input", code="out_of_memory")
    except BaseException as error:  # a model's sys.exit(), or a gevent timeout: its failure must not end us
        if isinstance(error, KeyboardInterrupt) and _may_be_ctrl_c():
            raise
        logs.failure("the model failed on an input", error)
        failure = RequestError("the model failed on this input", code="model_error")
        failure.__cause__ = error
        return failure


def _may_be_ctrl_c() -> bool:
    """Whether a `KeyboardInterrupt` in this thread may be the user's; otherwise only the model's code can raise it."""
    in_main = threading.current_thread() is threading.main_thread()
    return in_main and signal.getsignal(signal.SIGINT) not in (signal.SIG_IGN, signal.SIG_DFL, None)


def invalid_output(message: str) -> RequestError:
    """Log `message`, the reason why an answer cannot be sent, and return the error for the client."""
    logs.event(message, level=logging.ERROR)
    return RequestError("the model gave an answer that cannot be sent", code="model_output_invalid")


def open_python_model(
    opened: Bundle, pipeline: PythonConfig, *, allow_code: bool, max_json_depth: int = 32
) -> "FunctionReplica":
    """Import the model's class, instantiate it and load it. Raises `SetupError`."""
    from flambeau.architectures import torchvision_compat  # whose package knows all registries; few replicas need it

    torchvision_compat.stand_by()
    found = usercode.load(pipeline.code, within=opened.path, allow_code=allow_code)
    where = f"{pipeline.code.file or pipeline.code.module}:{pipeline.code.name}"
    if not (isinstance(found, type) and issubclass(found, PythonModel)):
        raise SourceError(
            f"{where} is not a subclass of flambeau.PythonModel: name one that is; a network's class goes with --arch"
        )
    try:
        model = found()
        model.load()
    except Exception as error:
        raise SourceError(f"{where} cannot be loaded: {type(error).__name__}: {error}") from error
    return FunctionReplica(model.predict, name=where, golden=golden_samples.read(opened), max_json_depth=max_json_depth)


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
        self.cost: BatchCost | None = None  # not measured: no example item is known
        self._function = function
        self._name = name
        self._golden = golden
        self._open = functools.partial(open_document, max_depth=max_json_depth)

    def warm_up(self) -> None:
        """Reproduce the golden samples, if there are any: only the author knows what other items look like."""
        golden_samples.reproduce(
            self._golden,
            lambda items: [Traced(outcome, {}) for outcome in self.run(items)],
            model=self._name,
            remedy="fix the model, or build the bundle again with the right outputs",
        )

    def run(self, items: Sequence[Item], *, wide: bool = False) -> list[Outcome]:
        values = [attempt(lambda payload: _item_value(self._open(payload)), item.payload) for item in items]
        good = [index for index, value in enumerate(values) if not isinstance(value, RequestError)]
        started = time.monotonic()
        answers = dict(zip(good, self._predict([values[index] for index in good]), strict=True))
        timings = Timings(inference=time.monotonic() - started)
        return [
            Outcome(
                attempt(_function_answer, answers[index], item.payload) if index in answers else values[index], timings
            )
            for index, item in enumerate(items)
        ]

    def _predict(self, batch: list[Any]) -> list[Any]:
        """Answer the items together; if that fails as a whole, one by one, so that only the item at fault fails."""
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
    """An answer in the form of its item: a value for a value, else JSON."""
    if isinstance(answer, BaseException):
        raise answer
    if payload.kind == "value":
        return Plain(answer)
    try:
        return encode(answer)
    except Exception as error:
        raise invalid_output(f"the model's answer has no JSON form: {error}") from error
