"""`ModelInfer` and `ModelStreamInfer`: predictions over gRPC.

In a stream, requests are answered as soon as each is ready, in any order: the id of a request is in its answer. A
request that fails is answered with its sentence and its id, and the stream goes on.
"""

import asyncio
import dataclasses
import time
from typing import Any

import grpc

from flambeau.errors import RequestError
from flambeau.grpc import tensor_messages
from flambeau.grpc.calls import REQUEST, Calls, GrpcCall, parsed
from flambeau.grpc.descriptors import message
from flambeau.grpc.inference_proto import INFERENCE_SERVICE
from flambeau.grpc.statuses import STATUSES, sentence
from flambeau.grpc.tensor_messages import InferMessage
from flambeau.protocols import v2_inference
from flambeau.protocols.accounting import Ended, account, told
from flambeau.protocols.errors import STATUS
from flambeau.protocols.v2_values import InferenceResponse
from flambeau.serving.model import Model

_StreamResponse: Any = message("ModelStreamInferResponse")

_LAST_MESSAGES_SECONDS = 0.5  # as the HTTP front gives connections for requests that are on their way


class Inference:
    """Answers predictions."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._service = calls.service
        self._admission = calls.admission
        self._at_once = calls.service.settings.max_items

    def handlers(self) -> dict[str, Any]:
        """The methods by name."""
        return {
            "ModelInfer": self._calls.unary("ModelInfer", "infer", REQUEST, self.infer, quiet=True),
            "ModelStreamInfer": self._calls.stream("ModelStreamInfer", "infer", self.stream),
        }

    async def infer(self, call: GrpcCall, asked: InferMessage) -> bytes:
        """Answer a `ModelInferRequest`. Raises `RequestError`, after it was accounted for."""
        found = await self._answered(call, asked)
        if isinstance(found, RequestError):
            raise found
        if found.nulls:
            call.wire.set_trailing_metadata((("x-nonfinite-outputs", str(found.nulls)),))
        return tensor_messages.response_of(found)

    async def _answered(self, call: GrpcCall, asked: InferMessage) -> InferenceResponse | RequestError:
        """The answer or the error of one request, which is counted, logged and traced."""
        taken: Model | None = None
        found: InferenceResponse | RequestError
        try:
            self._admission.rate(call.metadata, call.client)
            name, version = asked.fields.model_name, asked.fields.model_version or None
            if not name:
                raise RequestError("the request names no model: set model_name", code="bad_request")
            async with self._service.using(name, version, call.key) as taken:
                found = await self._inferred(call, taken, asked)
        except Exception as error:
            # Without its traceback, whose frames hold the message: it would be kept until cycles are collected.
            found = told(error, call.identity).with_traceback(None)
        failed = found if isinstance(found, RequestError) else None
        code = STATUSES[failed.code] if failed else grpc.StatusCode.OK
        attributes: dict[str, str | int] = {
            "rpc.system": "grpc", "rpc.service": INFERENCE_SERVICE, "rpc.method": call.name,
            "rpc.grpc.status_code": code.value[0],
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
        stopping = asyncio.ensure_future(self._calls.draining.wait())
        refused: RequestError | None = None
        try:
            async with asyncio.TaskGroup() as answers:
                while True:
                    await room.acquire()
                    try:
                        raw = await _next(call, stopping)
                    except RequestError as error:  # those before it are answered
                        refused = error
                        break
                    if raw is None:
                        break
                    one = dataclasses.replace(call, received=time.monotonic())
                    answers.create_task(self._one(one, raw, room, writing))
        finally:
            stopping.cancel()
        if refused is not None:
            raise refused
        if self._calls.draining.is_set():
            raise RequestError("the server is stopping", code="draining")

    async def _one(self, call: GrpcCall, raw: bytes, room: asyncio.Semaphore, writing: asyncio.Lock) -> None:
        release = None
        try:
            try:
                release = self._admission.hold(len(raw))
                asked = parsed(REQUEST, raw)
            except RequestError as error:
                self._calls.refused(call, error)
                made = _StreamResponse(error_message=sentence(error)).SerializeToString()
            else:
                found = await self._answered(call, asked)
                if isinstance(found, RequestError):
                    failed = _StreamResponse(error_message=sentence(found))
                    failed.infer_response.id = asked.fields.id
                    made = failed.SerializeToString()
                else:
                    made = tensor_messages.streamed(tensor_messages.response_of(found))
            async with writing:
                await call.wire.write(made)
        except grpc.aio.BaseError:  # the client is gone, and the stream's own task is about to be cancelled
            return
        finally:
            room.release()
            if release is not None:
                release()


async def _next(call: GrpcCall, stopping: "asyncio.Future[Any]") -> bytes | None:
    """The next message of a stream; `None` after the last. A stopping server waits a moment for one on its way."""
    reading = asyncio.ensure_future(call.wire.read())
    try:
        await asyncio.wait((reading, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not reading.done():
            await asyncio.wait((reading,), timeout=_LAST_MESSAGES_SECONDS)
        if not reading.done():
            return None
        found = reading.result()
        return None if found is grpc.aio.EOF else found
    finally:
        reading.cancel()
