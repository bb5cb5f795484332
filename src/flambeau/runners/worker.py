"""The worker process: one replica, answering batches from a socket. No HTTP, no queue.

`python -m flambeau.runners.worker FD ORDER`: FD is its end of the socketpair, ORDER the JSON of a `WorkerConfig`. It
ends itself when the socket closes, and the kernel ends it when its parent dies.
"""

import atexit
import faulthandler
import functools
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from flambeau.errors import EngineError, RequestError, SetupError
from flambeau.runners import wire
from flambeau.runners.arena import mapped
from flambeau.runners.base import ReplicaInfo, ReplicaSpec
from flambeau.runners.wire import Failed, FrameKind, Header
from flambeau.system.process import end_group_with_me, end_with_parent, give_memory_back
from flambeau.telemetry import logs, stderr_capture
from flambeau.telemetry.log_writer import LineSink, LogChannel, LogWriter
from flambeau.types import Item, Outcome

EXPIRED = RequestError("the answer was not ready before the deadline", code="deadline_exceeded")
_LAST_LINES_SECONDS = 1.0
_LARGEST_ANSWERS = wire.LARGEST_BODY * 3 // 4  # bytes, for one batch; the rest of the frame is for what encloses them


class WorkerConfig(msgspec.Struct, frozen=True):
    """A worker's configuration. `parent` is the process that started it; `memory` bounds its address space, in bytes.

    `log` is the descriptor of the channel for its events; without one it writes them as text to standard error.
    `arena` is that of the memory for payloads, if there is one.
    `front` is the number that they get, where there are several fronts.
    """

    spec: ReplicaSpec
    generation: int
    parent: int
    memory: int | None
    log_level: str
    log: int | None = None
    log_in_json: bool = False
    arena: int | None = None
    front: int | None = None


def main() -> None:
    """Answer batches until the socket closes."""
    order = msgspec.json.decode(sys.argv[2], type=WorkerConfig)
    restrict(order)
    stderr_capture.forgive(output=True)  # a model that prints must not fail over it
    sink = _events(order.log)
    logs.send_to(sink, order.log_level, as_json=order.log_in_json, front=order.front)
    with socket.socket(fileno=int(sys.argv[1])) as sock:
        Worker(sock, order.generation, None if order.arena is None else mapped(order.arena)).live(order.spec)


def _events(channel: int | None) -> LineSink:
    """The sink for this process's events. It never makes a batch wait."""
    if channel is not None:
        return LogChannel(socket.socket(fileno=channel))
    gap, rendered = (functools.partial(each, as_json=False) for each in (logs.gap_line, logs.rendered))
    sink = LogWriter(2, gap, rendered)
    atexit.register(sink.flush, _LAST_LINES_SECONDS)
    return sink


def restrict(order: WorkerConfig) -> None:
    """Bind this process to its parent and its share of the machine."""
    end_with_parent(order.parent)
    faulthandler.enable(2)
    # A stopping service drains: the front handles Ctrl-C in a terminal, and a supervisor's SIGTERM to the group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if hasattr(signal, "SIGHUP"):  # a closing terminal sends it to the whole group
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if order.spec.allow_code:  # the front ends the children of a model's code, but it may be killed itself
        end_group_with_me()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # inputs are private: none of them goes into a core file
    if order.memory is not None:
        resource.setrlimit(resource.RLIMIT_AS, (order.memory, order.memory))
    if sys.platform == "linux":
        score = Path("/proc/self/oom_score_adj")
        if int(score.read_text()) < 500:  # a container may have been given more, and only root may lower it
            score.write_text("500")  # if the kernel must kill one of us, let it not be the front


class Worker:
    """One replica behind a socket."""

    def __init__(self, sock: socket.socket, generation: int, arena: memoryview | None = None) -> None:
        self._sock = sock
        self._generation = generation
        self._arena = memoryview(b"") if arena is None else arena

    def live(self, spec: ReplicaSpec) -> None:
        """Open the replica, report that it is ready, and answer batches until the socket closes."""
        from flambeau.runners.replica import open_replica  # after `restrict`: this imports the engine's libraries

        try:
            replica = open_replica(spec)
            replica.warm_up()
            give_memory_back()  # of what only the start needed: the probes, and the graph as read
        except SetupError as error:
            self._send(wire.pack_failed(self._generation, Failed(type(error).__name__, str(error))))
            return
        except BaseException as error:  # of the model's own making: Ctrl-C never arrives here
            logs.LOGGER.debug("%s cannot be loaded", spec.name, exc_info=error)
            message = f"{spec.name} cannot be loaded: {type(error).__name__}: {error}"
            self._send(wire.pack_failed(self._generation, Failed(EngineError.__name__, message)))
            return
        self._send(wire.pack_ready(self._generation, ReplicaInfo(replica.device, replica.cost)))
        for header, body, payloads in self._frames():
            received = time.monotonic()
            outcomes: dict[int, Outcome] = {}
            waiting: list[tuple[int, Item]] = []
            for index, work in enumerate(wire.unpack_batch(body, payloads)):
                if work.seconds_left <= time.monotonic() - received:  # an expired item is never computed
                    outcomes[index] = Outcome(EXPIRED)
                else:
                    waiting.append((index, work.item))
            answered = replica.run([item for _, item in waiting], wide=header.wide)
            outcomes |= {index: outcome for (index, _), outcome in zip(waiting, answered, strict=True)}
            ordered = [outcomes[index] for index in range(len(outcomes))]
            self._send(
                wire.pack_outcomes(self._generation, header.batch, [_bounded(each, ordered) for each in ordered])
            )

    def _frames(self) -> Iterator[tuple[Header, bytearray, memoryview]]:
        """The batches of this generation, until the front closes its end. Payloads hold until the next is asked for."""
        while head := self._receive(wire.HEADER_SIZE):
            header = wire.unpack_header(head)
            body = self._receive(header.body)
            if header.in_arena:
                payloads = self._arena[: header.payloads]
            elif (received := self._receive(header.payloads)) is not None:
                payloads = memoryview(received)
            else:
                return
            if body is None:
                return
            if header.kind is FrameKind.BATCH and header.generation == self._generation:
                yield header, body, payloads

    def _receive(self, size: int) -> bytearray | None:
        """Exactly `size` bytes, or `None` when the front has closed its end."""
        data = bytearray(size)
        view = memoryview(data)
        while view:
            count = self._sock.recv_into(view)
            if not count:
                return None
            view = view[count:]
        return data

    def _send(self, frame: bytes) -> None:
        try:
            self._sock.sendall(frame)
        except OSError:
            os._exit(0)  # the front is gone


def _bounded(outcome: Outcome, batch: list[Outcome]) -> Outcome:
    """The outcome, or an error if it takes more than its share of the largest frame."""
    result = outcome.result
    if not isinstance(result, RequestError) and result.size > _LARGEST_ANSWERS // len(batch):
        logs.event("the model's answer is too large to be sent", level=logging.ERROR, bytes=result.size)
        return Outcome(RequestError("the model gave an answer that cannot be sent", code="model_output_invalid"))
    return outcome


if __name__ == "__main__":
    main()
