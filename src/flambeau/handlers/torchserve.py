"""Handlers of TorchServe: found as TorchServe finds them, and called as it calls them.

A file or a module with a function `handle`, or the function that the archive names: it is called once with `None` when
the model is loaded, then with each batch. Else the one class of the file, with `initialize` and `handle`. A batch is a
list of tables, one for each request: the parts of its form, or `body`. The answer is a list of the same length.
"""

import importlib
import io
import json
import logging
import os
import urllib.parse
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from flambeau import usercode
from flambeau.answers.value import encode
from flambeau.bundle.storage import HANDLER_FILES, Bundle, HandlerConfig
from flambeau.errors import RequestError, SourceError
from flambeau.handlers.base import BYTES, JSON, TEXT, TS_PATH, HandlerFunction, admit_first, gpu_id, working_folder
from flambeau.items import HandlerCall, HandlerPart
from flambeau.tasks.handler import Handled, can_be_sent
from flambeau.telemetry import logs

ENVELOPE = "TS_SERVICE_ENVELOPE"
"""The variable that names the envelope of all handlers whose archives name none."""

ENVELOPES = {
    "body": "BodyEnvelope", "json": "JSONEnvelope", "kserve": "KServeEnvelope", "kservev2": "KServev2Envelope",
}  # fmt: skip
"""What TorchServe calls its envelopes: modules of `ts.torch_handler.request_envelope`, each with its class."""

_FORM = "application/x-www-form-urlencoded"

_BatchFunction = Callable[[Any, Any], Any]


def open_handler(opened: Bundle, config: HandlerConfig, *, allow_code: bool) -> HandlerFunction:
    """Import the handler and have it load its model. Raises `SetupError`."""
    admit_first(TS_PATH)
    importlib.import_module("ts.context")  # before the archive's own folder, so that nothing there takes its name
    folder = working_folder(opened)
    admit_first(folder)
    where = config.code.file or config.code.module or "?"
    try:
        return _opened(opened, config, folder, where, allow_code=allow_code)
    except SourceError:
        raise
    except Exception as error:
        logs.LOGGER.debug("%s cannot be loaded", where, exc_info=error)
        raise SourceError(
            f"the handler {Path(where).name} cannot be loaded: {type(error).__name__}: {error}"
        ) from error


def _opened(opened: Bundle, config: HandlerConfig, folder: Path, where: str, *, allow_code: bool) -> HandlerFunction:
    from ts.context import Context  # ours, in `ts_path`

    context = Context(
        model_name=opened.manifest.name,
        manifest=config.manifest,
        properties={
            "model_dir": str(folder), "gpu_id": gpu_id(), "batch_size": config.batch, "server_name": "MMS",
            "server_version": "0.12.0", "limit_max_image_pixels": True,
        },
        yaml=config.yaml,
    )  # fmt: skip
    context.metrics.tell = _tell
    if config.code.file:
        file = folder / Path(config.code.file).relative_to(HANDLER_FILES)
        module = usercode.load_module(file, allow_code=allow_code)
    else:
        usercode.refuse_unless(allow_code, where)
        module = importlib.import_module(str(config.code.module))
    entry = _entry(module, config.code.name, context)
    return _Handler(entry, context, envelope=_envelope(config.envelope or os.environ.get(ENVELOPE, ""), entry))


def _entry(module: ModuleType, function: str, context: Any) -> _BatchFunction:
    """The function that answers batches, with its model loaded."""
    name = function or "handle"
    if callable(entry := getattr(module, name, None)):
        entry(None, context)
        return entry  # type: ignore[no-any-return]
    if function:
        raise SourceError(f"the handler {module.__name__} has no function {function}")
    own = [each for each in vars(module).values() if isinstance(each, type) and each.__module__ == module.__name__]
    classes = [each for each in dict.fromkeys(own) if callable(getattr(each, "handle", None))]
    if len(classes) != 1:
        raise SourceError(
            f"the handler {module.__name__} defines no function handle, and {len(classes)} classes that have one: "
            "one belongs"
        )
    found = classes[0]()
    if callable(initialize := getattr(found, "initialize", None)):
        initialize(context)
    return found.handle  # type: ignore[no-any-return]


def _envelope(name: str, entry: _BatchFunction) -> _BatchFunction | None:
    """The function with an envelope around it, by the envelope's name; `None` without one. Raises `SourceError`."""
    if not name:
        return None
    if name not in ENVELOPES:
        raise SourceError(f"the service envelope {name} is not known: there are {', '.join(ENVELOPES)}")
    module = importlib.import_module(f"ts.torch_handler.request_envelope.{name}")
    wrapped = getattr(module, ENVELOPES[name])(entry)
    return wrapped.handle  # type: ignore[no-any-return]


def _tell(name: str, value: float, unit: str) -> None:
    logs.event("metric of the handler", level=logging.DEBUG, name=name, value=value, unit=unit)


class _Handler:
    """A handler's function with its context."""

    def __init__(self, entry: _BatchFunction, context: Any, *, envelope: _BatchFunction | None) -> None:
        self._entry = entry
        self._context = context
        self._envelope = envelope

    def __call__(self, calls: Sequence[HandlerCall]) -> list[Handled]:
        if self._envelope is None:
            return self._answers(calls, self._entry)
        # one at a time: an envelope may hold many rows, and two of TorchServe's own read the first request alone;
        # requests of other protocols, which have no identity, have their rows already
        pairs = ((call, self._envelope if call.identity else self._entry) for call in calls)
        return [answer for call, entry in pairs for answer in self._answers([call], entry)]

    def _answers(self, calls: Sequence[HandlerCall], entry: _BatchFunction) -> list[Handled]:
        from ts.context import RequestProcessor
        from ts.utils.util import PredictionException

        context = self._context
        context.request_ids = context.metrics.request_ids = {index: call.identity for index, call in enumerate(calls)}
        context.request_processor = [RequestProcessor(dict(call.headers)) for call in calls]
        data = [row_of(call) for call in calls]
        try:
            answers = entry(data, context)
        except PredictionException as error:
            if len(calls) > 1:
                raise  # each is tried alone, so that this status is that of its own request only
            return [_failed(error)]
        if not isinstance(answers, list):
            raise TypeError(f"the handler gave a {type(answers).__name__} where a list belongs")
        if len(answers) != len(calls):
            raise ValueError(f"the handler gave {len(answers)} answers to {len(calls)} requests")
        return [_answer(each, asked) for each, asked in zip(answers, context.request_processor, strict=True)]


def row_of(call: HandlerCall) -> Any:
    """A request as handlers get it: the parts of its form by name, or `body`; of several with one name the last."""
    if len(call.parts) == 1 and call.parts[0].name == "body":
        [whole] = call.parts
        if whole.media_type == _FORM:
            text = whole.data.decode("utf-8", "replace")
            fields = urllib.parse.parse_qs(text, keep_blank_values=True)
            return {name: bytearray(values[-1], "utf-8") for name, values in fields.items()}
        value = _decoded(whole)
        return value if call.headers.get(ROW) == "1" else {"body": value}
    return {each.name: _decoded(each) for each in call.parts}


ROW = "x-flambeau-row"
"""In a call that is not of TorchServe's protocol: its body is the row itself, and not only a part of it."""


def _decoded(part: HandlerPart) -> Any:
    """JSON as its value, text as text, anything else as bytes that may be changed."""
    if part.media_type == JSON:
        try:
            return json.loads(part.data)
        except (ValueError, RecursionError):
            return bytearray(part.data)
    if part.media_type.startswith("text"):
        return part.data.decode("utf-8", "replace")
    return bytearray(part.data)


def _failed(error: Any) -> Handled:
    """A `PredictionException`, in the form of TorchServe's errors. Its message is its author's, for the client."""
    code = error.error_code if isinstance(error.error_code, int) and 400 <= error.error_code < 600 else 500
    body = {"code": code, "type": "InternalServerException", "message": str(error.message)}
    return Handled(msgspec.json.format(msgspec.json.encode(body), indent=2) + b"\n", JSON, code)


def _answer(answer: Any, asked: Any) -> Handled:
    pieces = [_written(each) for each in (*asked.pieces, answer)]
    data = b"".join(each for each, _ in pieces)
    media_type = pieces[-1][1] if len(pieces) == 1 else BYTES
    headers = {_cased(name): value for name, value in asked.get_response_headers().items()}
    media_type = headers.pop("Content-Type", media_type)
    kept = tuple((name, value) for name, value in headers.items() if can_be_sent(name, value))
    status = asked.get_response_status_code()
    return Handled(
        data,
        media_type if can_be_sent("Content-Type", media_type) else BYTES,
        status if 200 <= status <= 599 else 500,
        kept,
    )


def _cased(name: str) -> str:
    """A header's name as we write it, so that no name is sent twice."""
    return "-".join(each.capitalize() for each in name.split("-"))


def _written(answer: Any) -> tuple[bytes, str]:
    """The bytes of an answer, and their media type."""
    if isinstance(answer, bytes | bytearray | memoryview):
        return bytes(answer), BYTES
    if isinstance(answer, str):
        return answer.encode("utf-8"), TEXT
    if type(answer).__module__.startswith("torch") and hasattr(answer, "detach"):
        import torch

        written = io.BytesIO()
        torch.save(answer, written)
        return written.getvalue(), BYTES
    try:
        return msgspec.json.format(encode(answer).json, indent=2), JSON
    except Exception as error:
        raise RequestError(
            f"the handler's answer has no JSON form: {type(error).__name__}", code="model_output_invalid"
        ) from error
