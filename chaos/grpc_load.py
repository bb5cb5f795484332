"""Closed-loop clients over gRPC: the requests of the HTTP ones, in the Open Inference Protocol, in the same ledger."""

import asyncio
import hashlib
import json
import random
import time

import grpc

from chaos.client import echo
from chaos.ledger import How, Ledger, Row
from chaos.run import DEADLINE, Run
from flambeau.grpc.descriptors import message
from flambeau.grpc.inference_proto import INFERENCE_SERVICE

_PATIENCE = 5.0  # seconds beyond its deadline after which a call counts as lost
_MODEL = "Slow50"
_Request, _Response = message("ModelInferRequest"), message("ModelInferResponse")


class GrpcLoad:
    """Clients on a channel each, until the block is left or the server is gone: `async with`."""

    def __init__(self, run: Run, target: str, ledger: Ledger, *, deadline: float = DEADLINE) -> None:
        self._run, self._target, self._ledger, self._deadline = run, target, ledger, deadline
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "GrpcLoad":
        seed = self._run.next_seed()
        self._tasks = [asyncio.create_task(self._live(f"{seed}/{number}")) for number in range(self._run.clients)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping = True
        await asyncio.gather(*self._tasks)

    async def _live(self, seed: str) -> None:
        rng = random.Random(seed)  # noqa: S311 (a failure must replay, and nothing is secret)
        own = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(self._target, options=own) as channel:
            call = channel.unary_unary(
                f"/{INFERENCE_SERVICE}/ModelInfer", request_serializer=_Request.SerializeToString,
                response_deserializer=_Response.FromString,
            )  # fmt: skip
            while not self._stopping:
                if await self._ask(call, rng) == "unsent":
                    return

    async def _ask(self, call: "grpc.aio.UnaryUnaryMultiCallable", rng: random.Random) -> How:
        ledger, ask = self._ledger, echo(rng)
        row = ledger.open(nonce=ask.nonce, do=ask.do, group=ask.group, deadline=self._deadline)
        asked = _Request(model_name=_MODEL, id=ask.nonce)
        value = asked.inputs.add(name="input", datatype="BYTES", shape=[1])
        value.contents.bytes_contents.append(json.dumps({"nonce": ask.nonce, "do": ask.do, **ask.more}).encode())
        row.t_send = row.t_last_byte_sent = time.monotonic()
        try:
            found = await call(asked, timeout=self._deadline + _PATIENCE)
        except grpc.aio.AioRpcError as error:
            how = _refused(row, error)
            ledger.settle(row, how)
            return how
        row.t_done, row.status, row.expected = time.monotonic(), 200, True
        (raw,) = found.raw_output_contents
        output = json.loads(raw[4:])
        row.ok = found.id == ask.nonce and output.get("hash") == hashlib.sha256(ask.nonce.encode()).hexdigest()
        row.err = "" if row.ok else f"not its own answer: {raw[:120]!r}"
        ledger.settle(row, "answered")
        return "answered"


def _refused(row: Row, error: "grpc.aio.AioRpcError") -> How:
    """Only a status of our own has a code. Any other means that the call was lost, or that nobody listens any more."""
    row.t_done = time.monotonic()
    row.code = dict(error.trailing_metadata() or ()).get("error-code", "")
    row.err = f"{error.code().name}: {error.details()}"
    row.status = 500
    if row.code:
        return "answered"
    return "unsent" if "onnect" in (error.details() or "") else "lost"
