"""One worker process as the front's loop sees it: spawned, given batches, watched, and reaped.

It knows no queue and starts no successor; `flambeau.runners.processes` does.
"""

import asyncio
import contextlib
import logging
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import msgspec

from flambeau import errors
from flambeau.errors import EngineError, SetupError
from flambeau.runners import arena, wire
from flambeau.runners.base import Batch, Loss, ReplicaInfo, ReplicaSpec, WorkerLostError
from flambeau.runners.watchdog import Watchdog
from flambeau.runners.wire import Failed, FrameError, FrameKind, Header
from flambeau.runners.worker import WorkerConfig
from flambeau.runners.worker_pipe import WorkerPipe
from flambeau.settings.service import Settings
from flambeau.system import machine
from flambeau.system.process import spawn_child
from flambeau.telemetry import logs
from flambeau.types import Outcome

_PIECE = 256 * 1024  # bytes handed to the system at a time
_COPIED = 1024 * 1024  # bytes copied at a time: a tenth of a millisecond
_JOINED = 32 * 1024  # bytes: a shorter frame is joined, which costs less than to hand over its parts
_IN_ARENA = range(_JOINED + 1, arena.SIZE + 1)  # bytes of payloads that go through the arena
_NOWHERE = range(0)
_ABORT_GRACE = 1.0  # seconds for a hung worker to print its stack
_LAST_WORDS = 1.0  # seconds to read what a worker sent before it died, and for one that closed its socket to die
_END_SECONDS = 5.0  # to reap a killed worker
_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "HOME", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "PYTHONPATH")
_ENVIRONMENT_PREFIXES = ("CUDA_", "NVIDIA_", "OMP_", "MKL_", "ORT_", "TORCH_", "PYTORCH_", "COVERAGE_")
_SECRET = re.compile("TOKEN|KEY|SECRET|PASSW|CREDENTIAL")


def worker_environment(threads: int, packages: str = "") -> dict[str, str]:
    """The environment of a worker: no tokens and no keys, whatever the operator's shell holds.

    `packages`: the folder that imports look in before all others.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in _ENVIRONMENT or (name.startswith(_ENVIRONMENT_PREFIXES) and not _SECRET.search(name))
    }
    if packages:
        kept["PYTHONPATH"] = os.pathsep.join(filter(None, (packages, kept.get("PYTHONPATH"))))
    return {"OMP_NUM_THREADS": str(threads)} | kept


class OomKills:
    """Counts the kernel's out-of-memory kills in this control group. Each kill explains one worker's death."""

    def __init__(self) -> None:
        self._explained = machine.oom_kills()

    def explain_one(self) -> bool:
        """Whether there was a kill that has not explained a death yet; it now explains this one."""
        if machine.oom_kills() <= self._explained:
            return False
        self._explained += 1
        return True


class WorkerProcess:
    """One worker process as the loop sees it."""

    def __init__(self, spec: ReplicaSpec, settings: Settings, oom_kills: OomKills, *, generation: int) -> None:
        loop = asyncio.get_running_loop()
        self.generation = generation
        self.busy = False
        self.wide = spec.wide_threads > 0
        self.started: asyncio.Future[ReplicaInfo] = loop.create_future()
        self.started.add_done_callback(lambda started: started.cancelled() or started.exception())  # if nobody asks
        self.lost: asyncio.Future[Loss] = loop.create_future()
        self.gone = asyncio.Event()  # dead, reaped, and its socket closed
        self._startup = Watchdog(settings.startup_timeout, self._start_too_slow)
        self._batches: dict[int, asyncio.Future[list[Outcome]]] = {}
        self._last_batch = 0
        self._pipe: WorkerPipe | None = None
        self._funeral: asyncio.Task[None] | None = None
        self._oom_kills = oom_kills
        mine, theirs = socket.socketpair()
        with theirs, contextlib.ExitStack() as undo:
            undo.callback(mine.close)
            self._arena = arena.opened()
            undo.callback(self._close_arena)
            self._in_arena = _NOWHERE if self._arena is None else _IN_ARENA
            log = logs.descriptor()
            passed = [theirs.fileno(), *([] if log is None else [log])]
            if self._arena is not None:
                passed.append(self._arena.descriptor)
            order = WorkerConfig(
                spec, generation, os.getpid(), settings.max_worker_memory, settings.log_level, log, logs.in_json(),
                None if self._arena is None else self._arena.descriptor,
                logs.front(),
            )  # fmt: skip
            # On the loop's own thread, not in a pool: a worker ends with the thread that spawned it (PDEATHSIG).
            self._process = spawn_child(
                "flambeau.runners.worker",
                str(theirs.fileno()),
                msgspec.json.encode(order).decode(),
                environment=worker_environment(spec.threads, spec.packages),
                stdout=sys.stderr if _has_descriptor(sys.stderr) else subprocess.DEVNULL,
                pass_fds=passed,
                warnings=True,
            )
            undo.callback(self._process.wait)
            undo.callback(self._kill)  # which comes first
            self._sentinel = os.pidfd_open(self._process.pid) if hasattr(os, "pidfd_open") else -1
            undo.pop_all()  # it has come about
        self.pid = self._process.pid
        self._sock = mine
        if self._sentinel >= 0:
            loop.add_reader(self._sentinel, self._on_death)

    async def connect(self) -> None:
        """Start listening to the worker."""
        pipe = WorkerPipe(self._take, self._on_silence)
        await asyncio.get_running_loop().create_connection(lambda: pipe, sock=self._sock)
        self._pipe = pipe

    @property
    def alive(self) -> bool:
        """Whether the worker can take a batch."""
        return not self.lost.done() and self._funeral is None

    def unanswered(self) -> list["asyncio.Future[list[Outcome]]"]:
        """The futures of the batches that the worker has not answered."""
        return list(self._batches.values())

    async def answer(self, batch: Batch, *, timeout: float, wide: bool = False) -> list[Outcome]:
        """Send a batch and return its outcomes; `wide` uses all cores. Raises `WorkerLostError`."""
        loop = asyncio.get_running_loop()
        if not self.alive:
            raise WorkerLostError("killed")  # this batch had no part in the loss
        self._last_batch += 1
        identity = self._last_batch
        future = self._batches[identity] = loop.create_future()
        watchdog = Watchdog(timeout, self._hang)
        try:
            await self._send(wire.pack_batch(self.generation, identity, batch, wide=wide, arena=self._in_arena))
            outcomes: list[Outcome] = await future
        finally:
            watchdog.cancel()
            self._batches.pop(identity, None)
        if len(outcomes) != len(batch):
            self._misbehaved()
            raise WorkerLostError("crashed")
        return outcomes

    async def _send(self, frame: list[wire.Buffer]) -> None:
        """Send a batch. A long one goes piece by piece, so that the loop can do other work in between.

        A worker that is lost meanwhile shows in `lost`; nothing is raised.
        """
        pipe = self._pipe
        assert pipe is not None
        size = sum(map(len, frame))
        if self._arena is not None and size - len(frame[0]) in self._in_arena:
            await self._fill(self._arena, frame[1:])
            pipe.write(frame[0])
            return
        if size <= _JOINED:
            pipe.write(b"".join(frame))
            return
        if size <= _PIECE:
            pipe.write(*frame)
            return
        for each in frame:
            view = memoryview(each)
            for start in range(0, len(view), _PIECE):
                if self.lost.done():
                    return
                pipe.write(view[start : start + _PIECE])
                await pipe.drain()

    async def _fill(self, memory: arena.Arena, payloads: list[wire.Buffer]) -> None:
        """Copy payloads into the arena, which is closed once the worker is lost."""
        place, pause = 0, _COPIED
        for each in payloads:
            view = memoryview(each)
            for start in range(0, len(view), _COPIED):
                if place >= pause:
                    pause = place + _COPIED
                    await asyncio.sleep(0)
                if self.lost.done():
                    return
                memory.write(place, view[start : start + _COPIED])
                place += len(view[start : start + _COPIED])

    def _close_arena(self) -> None:
        if self._arena is not None:
            self._arena.close()

    async def end(self) -> None:
        """Kill the worker now, and return when it is reaped. A second call does nothing."""
        self._startup.cancel()
        self._kill()
        self._lose("killed")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.gone.wait(), _END_SECONDS)

    def _on_silence(self, error: Exception | None) -> None:
        """The worker's socket is closed, or what came over it cannot be trusted: `error`."""
        if error is None:
            # Dead, dying, or alive without a socket: the sentinel reports a death; without one the worker is killed.
            Watchdog(_LAST_WORDS, self._misbehaved)
            if self._sentinel < 0 and self._funeral is None:  # no sentinels on this system
                waiting = asyncio.get_running_loop().run_in_executor(None, self._process.wait)
                waiting.add_done_callback(lambda _: self._on_death())
        elif isinstance(error, FrameError):
            logs.event(
                "a worker does not keep to the protocol and is killed", level=logging.ERROR, pid=self.pid, error=error
            )
            self._misbehaved()
        else:  # our own failure, which must not look like a hang of the worker
            logs.failure("a worker cannot be listened to and is killed", error)
            self._lose("killed")
            self._kill()

    def _take(self, header: Header, body: wire.Buffer) -> None:
        if header.generation != self.generation or self.lost.done():
            return
        if header.kind is FrameKind.ANSWER:
            future = self._batches.get(header.batch)
            if future is not None and not future.done():
                future.set_result(wire.unpack_outcomes(body))
            return
        begun = wire.unpack_start(header.kind, body)
        self._startup.cancel()
        if self.started.done():
            return
        if isinstance(begun, Failed):
            kind = getattr(errors, begun.error, None)
            if not (isinstance(kind, type) and issubclass(kind, SetupError)):
                kind = EngineError
            self.started.set_exception(kind(begun.message))
        else:
            self.started.set_result(begun)

    def _start_too_slow(self) -> None:
        if not self.started.done():
            self.started.set_exception(EngineError("the model was not warm within --startup-timeout: give it more"))
        self._kill()

    def _hang(self) -> None:
        """The batch had its time: the worker counts as lost now, and may print its stack before it is killed.

        A worker that somebody stopped (SIGSTOP, a debugger) does not hang over its batch: that is a kill from outside.
        """
        how: Loss = "killed" if self._is_stopped() else "hung"
        self._signal(signal.SIGABRT)
        asyncio.get_running_loop().call_later(_ABORT_GRACE, self._kill)
        self._lose(how)

    def _is_stopped(self) -> bool:
        try:  # proc(5): pid (name) state ...; the name may hold anything, so the last parenthesis counts
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] in ("T", "t")
        except OSError:  # no such file on this system
            return False

    def _misbehaved(self) -> None:
        if self._process.returncode is None:
            self._lose("crashed")
            self._kill()

    def _kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self._process.returncode is None:
            self._process.send_signal(number)

    def _on_death(self) -> None:
        if self._sentinel >= 0:
            asyncio.get_running_loop().remove_reader(self._sentinel)
            os.close(self._sentinel)
            self._sentinel = -1
        self._startup.cancel()
        if self._process.returncode is None:  # not reaped yet: its number, and its group's, are nobody else's
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)  # the children that a model's code has left behind
        code = self._process.wait()
        self._funeral = asyncio.get_running_loop().create_task(self._bury(code))

    async def _bury(self, code: int) -> None:
        """Read the dead worker's last frames: an answer, or why it cannot start. Then unanswered batches are lost."""
        try:
            if self._pipe is None:  # it was ended before `connect`
                self._lose(self._cause(code))
                self._sock.close()
                return
            await asyncio.wait([self._pipe.ended], timeout=_LAST_WORDS)
            self._lose(self._cause(code))
            await self._pipe.close()
        except Exception as error:
            logs.failure("a worker cannot be reaped", error)
        finally:  # whatever went wrong, its successor must be started
            self._lose("crashed")
            self._close_arena()
            self.gone.set()

    def _cause(self, code: int) -> Loss:
        if code != -signal.SIGKILL:
            return "crashed"
        return "out_of_memory" if self._oom_kills.explain_one() else "killed"

    def _lose(self, how: Loss) -> None:
        if self.lost.done():
            return
        self.lost.set_result(how)
        if not self.started.done():
            self.started.set_exception(WorkerLostError(how))
        for future in self._batches.values():
            if not future.done():
                future.set_exception(WorkerLostError(how))


def _has_descriptor(stream: object) -> bool:
    try:
        return stream.fileno() >= 0  # type: ignore[attr-defined,no-any-return]
    except (AttributeError, OSError, ValueError):
        return False
