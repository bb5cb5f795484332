"""What the parts of a request cost, each on its own: `make bench-micro`, or `python -m benchmarks.micro [--json]`.

One process, one thread; microseconds, the median of the batches of calls and the best of them. A part that got slower
shows here long before it shows over HTTP. It starts no server and knows no peer.
"""

import argparse
import asyncio
import io
import json
import logging
import platform
import socket
import statistics
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from flambeau.answers.activation import Activation
from flambeau.bundle import storage
from flambeau.pipelines import json_document
from flambeau.pipelines.base import open_pipeline
from flambeau.pipelines.image import ImagePipeline, decode, normalise, resize_and_crop
from flambeau.protocols import multipart
from flambeau.runners import wire
from flambeau.runners.base import Batch, ReplicaInfo, RunnerState, Slot, Work
from flambeau.serving.batch_sizes import BatchSizes
from flambeau.serving.batcher import BatchLimits, BatchQueue
from flambeau.tasks import TASKS, NetworkFacts
from flambeau.telemetry import logs
from flambeau.telemetry.metrics import Metrics
from flambeau.types import Item, Options, Outcome, Payload, TensorSpec, Timings, Value

_ROUNDS = 15
_ROUND_SECONDS = 0.02
_NUMBERS = b'{"input":[5.1,3.5,1.4,0.2]}'
_ANSWER = Outcome(Value(b"[0.1,0.2,0.7]"), Timings(0.0001, 0.0001, 0.0001, 0.0001))


@dataclass(frozen=True, slots=True)
class Measured:
    """Microseconds per call, or per item where `part` says so."""

    part: str
    median: float
    best: float


def measure(part: str, call: Callable[[], object], *, items: int = 1) -> Measured:
    """Call again and again, in rounds of some milliseconds. `items`: how many one call stands for."""
    started = time.perf_counter()
    call()
    times = max(1, int(_ROUND_SECONDS / max(time.perf_counter() - started, 1e-7)))
    rounds = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        for _ in range(times):
            call()
        rounds.append((time.perf_counter() - started) / times / items * 1e6)
    return Measured(part, statistics.median(rounds), min(rounds))


def photograph(width: int, height: int) -> bytes:
    """A JPEG with the detail of a photograph: smooth shapes and noise, the same on every machine."""
    chance = np.random.default_rng(20120930)
    coarse = Image.fromarray(chance.integers(0, 256, (height // 25, width // 25, 3), np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)
    noisy = np.clip(pixels + chance.normal(0, 6, pixels.shape), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(noisy).save(file, "JPEG", quality=90)
    return file.getvalue()


def images() -> Iterator[Measured]:
    """From the bytes of a picture to its tensor, and from logits to the answer."""
    mean, std = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
    network = NetworkFacts(
        inputs=[TensorSpec("input", "float32", (3, 224, 224))],
        outputs=[TensorSpec("output", "float32", (1000,))],
        activation=Activation("softmax"),
    )
    pipeline = ImagePipeline(
        storage.ImageConfig(),
        postprocess=TASKS["classification"].postprocess(network),
        inputs=network.inputs,
        max_pixels=50_000_000,
    )
    for name, size in (("500 x 375", (500, 375)), ("12 megapixels", (4000, 3000))):
        data = photograph(*size)
        image = decode(data, max_pixels=50_000_000)
        cropped = resize_and_crop(image, 255, 224, resampling=Image.Resampling.BILINEAR)
        payload = Payload("file", data)
        yield measure(f"decode, {name}", partial(decode, data, max_pixels=50_000_000))
        yield measure(f"decode, {name}, --fast-decode", partial(decode, data, max_pixels=50_000_000, shorter_side=765))
        yield measure(
            f"resize and crop, {name}",
            partial(resize_and_crop, image, 255, 224, resampling=Image.Resampling.BILINEAR),
        )
        yield measure(f"prepare, {name}, all of it", partial(pipeline.preprocess, payload))
    yield measure("normalise", lambda: normalise(cropped, mean, std))
    logits = {"output": np.random.default_rng(0).normal(0, 3, (1, 1000)).astype(np.float32)}
    item = Item(payload, Options(top_k=5))
    yield measure("rank 1000 classes", lambda: pipeline.postprocess(logits, item))
    boundary = "----benchmark"
    form = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\n\r\n'.encode()
        + photograph(500, 375)
        + f"\r\n--{boundary}--\r\n".encode()
    )
    kind = f"multipart/form-data; boundary={boundary}"
    yield measure("cut a form, 500 x 375", lambda: list(multipart.steps(form, kind, max_parts=64)))


def numbers() -> Iterator[Measured]:
    """JSON to a tensor and back."""
    pipeline = open_pipeline(
        storage.TensorConfig(), labels=None,
        inputs=[TensorSpec("x", "float32", (4,))], outputs=[TensorSpec("y", "float32", (3,))],
    )  # fmt: skip
    payload = Payload("json", bytes(json_document.read_input(_NUMBERS, max_depth=32)))
    item, rows = Item(payload, Options()), {"y": np.array([[0.1, 0.2, 0.7]], np.float32)}
    yield measure("check a JSON body (front)", lambda: json_document.read_input(_NUMBERS, max_depth=32))
    yield measure("JSON to a tensor (worker)", lambda: pipeline.preprocess(payload))
    yield measure("rows to JSON (worker)", lambda: pipeline.postprocess(rows, item))


def frames() -> Iterator[Measured]:
    """Between the front and a worker: MessagePack, and a round trip over a socketpair to a thread that echoes."""
    for count in (1, 8, 32):
        work = [Work(Item(Payload("json", b"[5.1,3.5,1.4,0.2]"), Options()), 60.0)] * count
        buffers = wire.pack_batch(1, 1, work)
        header = wire.unpack_header(buffers[0][: wire.HEADER_SIZE])
        body, payloads = buffers[0][wire.HEADER_SIZE :], memoryview(b"".join(buffers[1:]))
        answers = wire.pack_outcomes(1, 1, [_ANSWER] * count)[wire.HEADER_SIZE :]
        assert header.payloads == len(payloads)
        yield measure(f"pack a batch of {count}, an item", partial(wire.pack_batch, 1, 1, work), items=count)
        yield measure(f"unpack a batch of {count}, an item", partial(wire.unpack_batch, body, payloads), items=count)
        yield measure(
            f"pack {count} outcomes, an item", partial(wire.pack_outcomes, 1, 1, [_ANSWER] * count), items=count
        )
        yield measure(f"unpack {count} outcomes, an item", partial(wire.unpack_outcomes, answers), items=count)
    for size in (64, 44_000):
        yield _round_trip(size)


def _round_trip(size: int) -> Measured:
    mine, theirs = socket.socketpair()
    sent = bytes(size)

    def echo() -> None:
        while data := theirs.recv(size, socket.MSG_WAITALL):
            theirs.sendall(data[:1])

    def call() -> None:
        mine.sendall(sent)
        mine.recv(1)

    thread = threading.Thread(target=echo)
    thread.start()
    try:
        return measure(f"socketpair, {size} bytes there and one back", call)
    finally:
        mine.close()
        thread.join()
        theirs.close()


class _AtOnce:
    """A runner that has every answer already."""

    async def start(self, on_change: Callable[[], None]) -> ReplicaInfo:
        return ReplicaInfo("none")

    def reserve(self, *, alone: bool = False, behind: bool = False) -> Slot | None:
        return self._answer

    def slots(self) -> int:
        return 1

    async def _answer(self, batch: Batch, *, hasty: bool = False) -> list[Outcome]:
        return [_ANSWER] * len(batch)

    def state(self) -> RunnerState:
        return RunnerState.READY

    async def close(self, timeout: float) -> None: ...


def queue() -> Iterator[Measured]:
    """The batcher alone: in, into a batch, out, counted."""
    for count in (1, 32):
        limits = BatchLimits(max_batch_size=32, max_queue_delay=0.0, max_queue_size=256, max_queue_bytes=1 << 20)
        with asyncio.Runner() as runner:

            async def one(batcher: BatchQueue) -> None:
                deadline = asyncio.get_running_loop().time() + 60
                await batcher.submit([Item(Payload("json", _NUMBERS), Options())], deadline=deadline)

            async def turn(batcher: BatchQueue, count: int = count) -> None:
                await asyncio.gather(*(one(batcher) for _ in range(count)))

            async def make(limits: BatchLimits = limits) -> BatchQueue:
                batcher = BatchQueue(_AtOnce(), limits, metrics=Metrics().for_model("m", "1"))
                batcher.sizes = BatchSizes(32, least=32)
                return batcher

            batcher = runner.run(make())
            yield measure(
                f"queue and batch {count} at a time, an item",
                partial(_turn, runner, turn, batcher),
                items=count,
            )


def _turn(runner: asyncio.Runner, turn: Callable[[BatchQueue], Coroutine[Any, Any, None]], batcher: BatchQueue) -> None:
    runner.run(turn(batcher))


def bookkeeping() -> Iterator[Measured]:
    """What every request leaves behind."""
    metrics = Metrics().for_model("m", "1")

    def count() -> None:
        metrics.timings(_ANSWER.timings)
        metrics.answered(200)

    yield measure("count and time a request", count)
    handler = logging.StreamHandler(io.StringIO())
    logs.configure("info")
    handler.setFormatter(logs.LOGGER.handlers[0].formatter)
    logs.LOGGER.handlers[:] = [handler]
    yield measure(
        "a log line", lambda: logs.event("POST /predict", id="0123456789abcdef", model="m", status=200, ms=0.4)
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, or one line of JSON."""
    parser = argparse.ArgumentParser(description="What the parts of a request cost.")
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of the table")
    asked = parser.parse_args(arguments)
    found = [each for group in (images, numbers, frames, queue, bookkeeping) for each in group()]
    if asked.json:
        parts = {each.part: {"median_us": round(each.median, 2), "best_us": round(each.best, 2)} for each in found}
        print(json.dumps({"machine": platform.processor() or platform.machine(), "parts": parts}))
        return
    print(f"{'part':<45} {'median µs':>10} {'best µs':>10}")
    for each in found:
        print(f"{each.part:<45} {each.median:>10.1f} {each.best:>10.1f}")


if __name__ == "__main__":
    main()
