"""A replica of a handler: another server's Python, behind one function from calls to answers."""

import time
from collections.abc import Sequence
from typing import Any

import msgspec

from flambeau.architectures import torchvision_compat
from flambeau.bundle.storage import Bundle, HandlerConfig
from flambeau.errors import InvalidInput, RequestError
from flambeau.handlers import sagemaker, torchserve
from flambeau.handlers.base import JSON, HandlerFunction
from flambeau.handlers.torchserve import ROW
from flambeau.items import HandlerCall, HandlerPart
from flambeau.pipelines.json_document import open_document
from flambeau.runners.base import BatchCost
from flambeau.runners.python_replica import attempt
from flambeau.tasks.handler import Handled
from flambeau.types import Item, Outcome, Payload, Timings

_ROWS = ("data", "body", "instances")
"""A JSON object with one of these members is what a handler reads as a request; anything else becomes its `body`."""


def open_handler(
    opened: Bundle, config: HandlerConfig, *, allow_code: bool, max_json_depth: int = 32
) -> "HandlerReplica":
    """Import the handler and have it load its model. Raises `SetupError`."""
    torchvision_compat.stand_by()
    contract = torchserve if config.contract == "torchserve" else sagemaker
    return HandlerReplica(contract.open_handler(opened, config, allow_code=allow_code), max_json_depth=max_json_depth)


class HandlerReplica:
    """Answers batches of requests. One that fails together is tried one by one, so that only the one at fault fails."""

    def __init__(self, function: HandlerFunction, *, max_json_depth: int) -> None:
        self.device = "cpu"
        self.cost: BatchCost | None = None  # not measured: no example item is known
        self._function = function
        self._depth = max_json_depth

    def warm_up(self) -> None:
        """Nothing: only the author knows what requests look like."""

    def run(self, items: Sequence[Item], *, wide: bool = False) -> list[Outcome]:
        calls: list[HandlerCall | RequestError] = [attempt(self._call, item.payload) for item in items]
        good = [index for index, call in enumerate(calls) if not isinstance(call, RequestError)]
        started = time.monotonic()
        found = dict(zip(good, self._answers([calls[index] for index in good]), strict=True))  # type: ignore[misc]
        timings = Timings(inference=time.monotonic() - started)
        outcomes = []
        for index, item in enumerate(items):
            result: Any = found.get(index, calls[index])
            if isinstance(result, Handled) and result.status >= 400 and item.payload.kind != "request":
                result = _as_error(result)
            outcomes.append(Outcome(result, timings))
        return outcomes

    def _answers(self, calls: list[HandlerCall]) -> list[Handled | RequestError]:
        if not calls:
            return []
        found = attempt(self._function, calls)
        if not isinstance(found, RequestError):
            return list(found)
        if len(calls) == 1:
            return [found]
        return [answer for call in calls for answer in self._answers([call])]

    def _call(self, payload: Payload) -> HandlerCall:
        """An item of any protocol as a call."""
        if payload.kind == "request":
            return msgspec.msgpack.decode(bytes(payload.data), type=HandlerCall)
        if payload.kind == "value":
            payload = Payload("json", msgspec.json.encode(payload.data))
        if payload.kind == "file":
            return HandlerCall("", {}, (HandlerPart("data", "", bytes(payload.data)),))
        if payload.kind == "tensors":
            raise InvalidInput("a handler takes no tensors", code="invalid_tensor")
        opened = open_document(payload, max_depth=self._depth)
        whole = HandlerPart("body", JSON, bytes(opened.data))
        try:
            value = msgspec.json.decode(whole.data)
        except (ValueError, RecursionError):
            raise InvalidInput("input holds text or a number that has no JSON form", code="invalid_json") from None
        row = isinstance(value, dict) and any(name in value for name in _ROWS)
        return HandlerCall("", {"content-type": JSON} | ({ROW: "1"} if row else {}), (whole,))

    def close(self) -> None:
        del self._function


def _as_error(answer: Handled) -> RequestError:
    """An answer with a status of failure, for protocols that have errors of their own."""
    text = answer.data.decode("utf-8", "replace")
    try:
        found = msgspec.json.decode(answer.data)
        text = str(found["message"]) if isinstance(found, dict) and "message" in found else text
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    return RequestError(text, code="input_rejected" if answer.status < 500 else "model_error")
