"""TorchServe's own gRPC: `InferenceAPIsService`, and `ManagementAPIsService` where there is a model store.

What they say comes from `flambeau.protocols.torchserve` and `torchserve_models`, as over REST; here it becomes
messages. A prediction has one message in any case: what a handler sends in pieces comes as one. Messages of
`StreamPredictions2` are answered in order, and those of a handler are refused: it may keep a sequence in its worker,
and the next message may go to another.
"""

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any
from urllib.parse import urlencode

import msgspec

from flambeau.errors import Code, RequestError
from flambeau.grpc.calls import Calls
from flambeau.grpc.descriptors import MANAGEMENT_PACKAGE, TORCHSERVE_PACKAGE, TORCHSERVE_SERVICE, message
from flambeau.grpc.methods import PREDICTIONS, GrpcCall, Method, Streaming, Unary, parsed
from flambeau.grpc.running_calls import StreamCall
from flambeau.grpc.statuses import STATUSES, Status, sentence
from flambeau.grpc.streams import Message
from flambeau.items import HandlerCall, HandlerPart
from flambeau.protocols import handler_calls, torchserve
from flambeau.protocols.accounting import Ended, account, told
from flambeau.protocols.errors import STATUS
from flambeau.protocols.messages import HttpAnswer, HttpRequest
from flambeau.protocols.native import Answered
from flambeau.protocols.routes import RequiredScope
from flambeau.protocols.torchserve_models import ManagedArchives
from flambeau.serving.model import Model

_Empty: Any = message("Empty", "google.protobuf")
_Health: Any = message("TorchServeHealthResponse", TORCHSERVE_PACKAGE)
_Prediction: Any = message("PredictionResponse", TORCHSERVE_PACKAGE)
_Said: Any = message("ManagementResponse", MANAGEMENT_PACKAGE)

_NO_SEQUENCES = "requests of one sequence are not kept with one worker here: ask a handler with Predictions"

_CODES: dict[int, Code] = {
    401: "unauthorized", 403: "forbidden", 404: "not_found", 409: "version_exists", 413: "body_too_large",
    429: "rate_limited", 503: "model_unavailable", 504: "model_timeout",
}  # fmt: skip
"""The codes of errors for the statuses that a handler may choose; of any other by its hundred."""


class TorchServeInference:
    """Answers predictions, and whether the server is healthy."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._service = calls.service
        self._admission = calls.admission

    def methods(self) -> list[Method]:
        """The methods."""
        return [
            Unary("Ping", "public", _Empty, self._ping, quiet=True),
            Unary("Predictions", "infer", PREDICTIONS, self._predict, quiet=True),
            Streaming("StreamPredictions", "infer", self._stream, quiet=True),
            Streaming("StreamPredictions2", "infer", self._converse),
        ]

    async def _ping(self, _: GrpcCall, __: Any) -> Any:
        return _Health(health=torchserve.health(self._service).decode())

    async def _predict(self, call: GrpcCall, asked: Any) -> Any:
        return _Prediction(prediction=await self._answered(call, asked))

    async def _stream(self, call: GrpcCall) -> None:
        """One message in, and one out: the call ends behind it."""
        wire = call.wire
        assert wire is not None
        message = await wire.read_one()
        if message is None:
            raise RequestError("the call has no message", code="empty_body")
        await wire.write((await self._one(call, wire, message, sequence=False)).SerializeToString())

    async def _converse(self, call: GrpcCall) -> None:
        """Answer the messages of a sequence one after the other; one that fails has its status in its answer."""
        wire = call.wire
        assert wire is not None
        while (message := await wire.read()) is not None:
            try:
                made = await self._one(call.again(), wire, message, sequence=True)
            except RequestError as error:
                made = _Prediction()
                made.status.code, made.status.message = STATUSES[error.code], sentence(error)
            await wire.write(made.SerializeToString())
        if self._calls.draining.is_set():
            raise RequestError("the server is stopping", code="draining")

    async def _one(self, call: GrpcCall, wire: StreamCall, message: Message, *, sequence: bool) -> Any:
        """The answer to a message of a stream. Raises `RequestError`."""
        try:
            try:
                asked = parsed(PREDICTIONS, await wire.raw(message))
                if sequence and not asked.sequence_id.strip():
                    raise RequestError("Parameter sequenceId is required.", code="bad_request")
            except RequestError as error:
                self._calls.refused(call, error)
                raise
            made = _Prediction(prediction=await self._answered(call, asked, sequence=sequence))
            if asked.HasField("sequence_id"):
                made.sequence_id = asked.sequence_id
            return made
        finally:
            wire.release(message)

    async def _answered(self, call: GrpcCall, asked: Any, *, sequence: bool = False) -> bytes:
        """The answer to one request, which is counted, logged and traced. Raises `RequestError`."""
        taken: Model | None = None
        failed: RequestError | None = None
        found: Answered | None = None
        try:
            self._admission.rate(call.metadata, call.client)
            name, version = asked.model_name, asked.model_version or None
            if not name:
                raise RequestError("Parameter model_name is required.", code="bad_request")
            async with self._service.using(name, version, call.key) as taken:
                if sequence and taken.task == handler_calls.TASK:
                    raise RequestError(_NO_SEQUENCES, code="not_implemented")
                found = await self._inferred(call, taken, asked)
            if found.http.status >= 400:
                failed = _of_handler(found.http)
        except Exception as error:
            failed = told(error, call.identity).with_traceback(None)  # whose frames hold the message
        code = STATUSES[failed.code] if failed else Status.OK
        status = STATUS[failed.code] if failed else 200
        if found is not None:
            status = found.http.status
        attributes: dict[str, str | int] = {
            "rpc.system": "grpc", "rpc.service": TORCHSERVE_SERVICE, "rpc.method": call.name,
            "rpc.grpc.status_code": int(code),
        }  # fmt: skip
        timings, queued = (found.timings, found.queued) if found is not None else ((), 0.0)
        account(
            self._service,
            taken,
            Ended(
                f"gRPC {call.name}", "torchserve", call.identity, call.received, status, failed, timings, queued,
                call.metadata.get("traceparent"), attributes,
            ),
        )  # fmt: skip
        if failed is not None:
            raise failed
        assert found is not None
        return found.http.body

    async def _inferred(self, call: GrpcCall, model: Model, asked: Any) -> Answered:
        parts = tuple(HandlerPart(name, "", data) for name, data in asked.input.items())
        read = HandlerCall(call.identity, {}, parts)  # without metadata, as TorchServe's handlers get it
        most = call.seconds_left(self._service.settings.deadline)
        return await torchserve.answer_fields(self._service, model, read, most=most)


def _of_handler(answered: HttpAnswer) -> RequestError:
    """The error for a status that a handler has chosen; its body is its author's words for the client."""
    usual: Code = "input_rejected" if answered.status < 500 else "model_error"
    text = answered.body.decode("utf-8", "replace")
    return RequestError(text, code=_CODES.get(answered.status, usual))


class TorchServeManagement:
    """Answers about the archives of the model store, and changes which are served."""

    def __init__(self, calls: Calls, archives: ManagedArchives) -> None:
        self._calls = calls
        self._service = calls.service
        self._archives = archives

    def methods(self) -> list[Method]:
        """The methods."""
        answers: dict[str, tuple[RequiredScope, Callable[[Any, HttpRequest], Awaitable[HttpAnswer]]]] = {
            "DescribeModel": ("infer", self._described),
            "ListModels": ("infer", self._listed),
            "RegisterModel": ("admin", self._registered),
            "ScaleWorker": ("admin", self._scaled),
            "SetDefault": ("admin", self._default_set),
            "UnregisterModel": ("admin", self._unregistered),
        }
        return [
            Unary(name, scope, message(f"{name}Request", MANAGEMENT_PACKAGE), self._said(scope, answer))
            for name, (scope, answer) in answers.items()
        ]

    def _said(
        self, scope: RequiredScope, answer: Callable[[Any, HttpRequest], Awaitable[HttpAnswer]]
    ) -> Callable[[GrpcCall, Any], Coroutine[Any, Any, Any]]:
        """The function of a call: a change is told by the sentence of its status, anything else as its JSON."""

        async def said(call: GrpcCall, asked: Any) -> Any:
            if scope == "admin" and self._calls.admission.managing is not None:
                raise RequestError(self._calls.admission.managing, code="forbidden")
            found = await answer(asked, _request(call, asked))
            text = found.body.decode()
            return _Said(msg=text if scope == "infer" else msgspec.json.decode(text)["status"])

        return said

    async def _described(self, asked: Any, request: HttpRequest) -> HttpAnswer:
        return await self._archives.shown(self._service, request, _name(asked), asked.model_version)

    async def _listed(self, asked: Any, request: HttpRequest) -> HttpAnswer:
        return await self._archives.listed(self._service, request)

    async def _registered(self, asked: Any, request: HttpRequest) -> HttpAnswer:
        return await self._archives.register(self._service, request)

    async def _scaled(self, asked: Any, request: HttpRequest) -> HttpAnswer:
        return await self._archives.scale(self._service, request, _name(asked), asked.model_version)

    async def _default_set(self, asked: Any, request: HttpRequest) -> HttpAnswer:
        return await self._archives.set_default(self._service, request, _name(asked), asked.model_version)

    async def _unregistered(self, asked: Any, request: HttpRequest) -> HttpAnswer:
        return await self._archives.unregister(self._service, request, _name(asked), asked.model_version)


def _name(asked: Any) -> str:
    if not asked.model_name:
        raise RequestError("Parameter model_name is required.", code="bad_request")
    name: str = asked.model_name
    return name


def _request(call: GrpcCall, asked: Any) -> HttpRequest:
    """The same request over REST: the fields that are set as parameters of its query. 0 is not set, as there."""
    fields: dict[str, Any] = {each.name: value for each, value in asked.ListFields()}
    fields = {name: str(value).lower() if isinstance(value, bool) else value for name, value in fields.items()}
    if "synchronous" in asked.DESCRIPTOR.fields_by_name:
        fields.setdefault("synchronous", "false")  # which it is there, though not over REST
    return HttpRequest(
        "POST", "", urlencode(fields), call.metadata, b"", call.received, identity=call.identity, client=call.client
    )
