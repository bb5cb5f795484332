"""`ModelInfer` and `ModelStreamInfer`: predictions over gRPC.

In a stream, requests are answered as soon as each is ready, in any order: the id of a request is in its answer. A
request that fails is answered with its sentence and its id, and the stream goes on.
"""

import asyncio
from typing import Any

from flambeau.errors import RequestError
from flambeau.grpc import tensor_messages
from flambeau.grpc.calls import Calls
from flambeau.grpc.descriptors import message
from flambeau.grpc.infer_messages import REQUEST, InferMessage
from flambeau.grpc.inference_proto import INFERENCE_SERVICE
from flambeau.grpc.methods import GrpcCall, Method, Streaming, Unary, parsed
from flambeau.grpc.running_calls import StreamCall
from flambeau.grpc.statuses import STATUSES, Status, sentence
from flambeau.grpc.streams import Message
from flambeau.protocols import v2_inference
from flambeau.protocols.accounting import Ended, account, told
from flambeau.protocols.errors import STATUS
from flambeau.protocols.v2_values import InferenceResponse
from flambeau.serving.model import Model

_StreamResponse: Any = message("ModelStreamInferResponse")

_NOTHING: dict[str, str | int] = {}


class Inference:
    """Answers predictions."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._service = calls.service
        self._admission = calls.admission
        self._at_once = calls.service.settings.max_items

    def methods(self) -> list[Method]:
        """The methods."""
        return [
            Unary("ModelInfer", "infer", REQUEST, self.infer, quiet=True, at_once=True),
            Streaming("ModelStreamInfer", "infer", self.stream),
        ]

    async def infer(self, call: GrpcCall, asked: InferMessage) -> bytes:
        """Answer a `ModelInferRequest`. Raises `RequestError`, after it was accounted for."""
        found = await self._answered(call, asked)
        if isinstance(found, RequestError):
            raise found
        if found.nulls:
            call.trailing.append(("x-nonfinite-outputs", str(found.nulls)))
        return tensor_messages.response_of(found)

    async def _answered(self, call: GrpcCall, asked: InferMessage) -> InferenceResponse | RequestError:
        """The answer or the error of one request, which is counted, logged and traced."""
        taken: Model | None = None
        entry = None
        table = self._service.table
        found: InferenceResponse | RequestError
        try:
            self._admission.rate(call.metadata, call.client)
            name, version = asked.form.model_name, asked.form.model_version
            if not name:
                raise RequestError("the request names no model: set model_name", code="bad_request")
            entry = table.hold(name, version, call.key) or await table.hold_loaded(name, version, call.key, None)
            taken = entry.model
            assert taken is not None
            found = await self._inferred(call, taken, asked)
        except Exception as error:
            # Without its traceback, whose frames hold the message: it would be kept until cycles are collected.
            found = told(error, call.identity).with_traceback(None)
        finally:
            if entry is not None:
                table.release(entry)
        failed = found if isinstance(found, RequestError) else None
        attributes = _NOTHING
        if self._service.tracer is not None:
            code = STATUSES[failed.code] if failed else Status.OK
            attributes = {
                "rpc.system": "grpc", "rpc.service": INFERENCE_SERVICE, "rpc.method": call.name,
                "rpc.grpc.status_code": int(code),
            }  # fmt: skip
        timings, queued = ((), 0.0) if isinstance(found, RequestError) else (found.timings, found.queued)
        account(
            self._service,
            taken,
            Ended(
                f"gRPC {call.name}", "grpc", call.identity, call.received, STATUS[failed.code] if failed else 200,
                failed, timings, queued, call.metadata.get("traceparent"), attributes,
            ),
        )  # fmt: skip
        return found

    async def _inferred(self, call: GrpcCall, model: Model, asked: InferMessage) -> InferenceResponse:
        most = self._service.settings.max_items
        try:
            request = tensor_messages.request_of(asked, most_elements=most)
        except RequestError as error:
            model.metrics.rejected(error.code)
            raise
        charge = self._admission.charge(call.metadata, call.client)
        left = call.seconds_left(self._service.settings.deadline)
        return await v2_inference.infer(self._service, model, request, most=left, charge=charge)

    # A stream

    async def stream(self, call: GrpcCall) -> None:
        """Answer the messages of a stream until the client ends it, or the server stops."""
        room = asyncio.Semaphore(self._at_once)  # a client that sends faster than it is answered has to wait
        writing = asyncio.Lock()
        wire = call.wire
        assert wire is not None
        async with asyncio.TaskGroup() as answers:
            while True:
                await room.acquire()
                message = await wire.read()
                if message is None:
                    break
                answers.create_task(self._one(call.again(), wire, message, room, writing))
        if self._calls.draining.is_set():
            raise RequestError("the server is stopping", code="draining")

    async def _one(
        self, call: GrpcCall, wire: StreamCall, message: Message, room: asyncio.Semaphore, writing: asyncio.Lock
    ) -> None:
        try:
            try:
                asked = parsed(REQUEST, await wire.raw(message))
            except RequestError as error:
                self._calls.refused(call, error)
                made = _StreamResponse(error_message=sentence(error)).SerializeToString()
            else:
                found = await self._answered(call, asked)
                if isinstance(found, RequestError):
                    failed = _StreamResponse(error_message=sentence(found))
                    failed.infer_response.id = asked.identity
                    made = failed.SerializeToString()
                else:
                    made = tensor_messages.streamed(tensor_messages.response_of(found))
            async with writing:
                await wire.write(made)
        finally:
            room.release()
            wire.release(message)
