"""Bodies within every limit that are made to hurt: those that take long to read (A11), and many large ones (A12)."""

import asyncio
import contextlib
import random
import socket
import sys
import time
from collections.abc import AsyncIterator, Mapping

from chaos import proc
from chaos.client import Ask, nonce
from chaos.run import Report, Run, Stage, passing
from chaos.wire import Connection, LostError, Times, UnsentError, request

_MIB = 2**20
_LARGEST = 32 * _MIB  # --max-body-bytes
_ROUND = 3.0  # seconds at least for each attack
_ATTACKERS = 2
_FLAGS = ("--replicas", "2", "--max-batch-size", "8")
_BETWEEN = 0.5  # seconds in which what was asked before is answered
_LONGEST_PING = 1.0  # seconds; the loop once stood still for 7.5
_UPLOADS, _BUDGET = 48, 256 * _MIB
_FORM = "multipart/form-data; boundary=b"
_PART = b'--b\r\nContent-Disposition: form-data; name="file"'
_HEAD = (
    "POST /predict HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: {}\r\nContent-Length: {}\r\n\r\n"
)


def _post(body: bytes, kind: str = "application/json") -> bytes:
    return _HEAD.format(kind, len(body)).encode() + body


def _attacks() -> Mapping[str, bytes]:
    """Requests by what is in them. Some are refused and some answered; none may take time from others."""
    room = _LARGEST - 1024
    return {
        "broken JSON": _post(b'{"input":[[' + b'"\\"",' * (room // 5) + b"0]]" + b"[]" * 40),
        "commas": _post(b'{"input":[' + b"[0,]," * (room // 5)),
        "semicolons": _post((_PART + b";" * 8000 + b"\r\n\r\nx\r\n") * 62 + b"--b--\r\n", _FORM),
        "line ends": _post(_PART + b"\r\n\r\n" + b"\r\n--a" * (room // 5), _FORM),
    }


async def long_reads(run: Run) -> Report:
    """Two clients that send such a body again and again, beside clients that predict."""
    what = f"{_ATTACKERS} clients send, again and again, JSON and forms made to take long to read, up to 32 MiB"
    others = _Others(run)
    seconds = max(run.seconds / 4, _ROUND)
    figures: list[str] = []
    async with run.stage("Slow20", *_FLAGS) as stage, others.on(stage), _sink() as sink:
        await passing(1.0)
        async with others.during("alone"):
            ping = await _ping(stage, seconds)
        stage.require(ping < _LONGEST_PING, f"/livez took {ping:.1f} s")
        figures.append(f"alone: /livez at most {1000 * ping:.0f} ms, others' p99 {others.p99('alone'):.0f} ms")
        for name, data in _attacks().items():
            async with others.during(name):
                sent, ping = await _attack(stage, data, seconds)
            async with others.during(f"{name}, to a sink"):
                await _send_all(sink, data, seconds, rest=seconds * _ATTACKERS / max(1, sent))
            stage.require(ping < _LONGEST_PING, f"/livez took {ping:.1f} s beside {name}")
            figures.append(
                f"{name}: {sent} sent, /livez at most {1000 * ping:.0f} ms, others' p99 {others.p99(name):.0f} ms; "
                f"beside the same to a sink {others.p99(f'{name}, to a sink'):.0f} ms"
            )
    for name in _attacks():
        others.judge(name, beside=("alone", f"{name}, to a sink"))
    return run.report("A11", what, f"{'; '.join(figures)}; {stage.ledger.summary()}", stage)


class _Others:
    """The clients that predict, and what they wait for in each part of a fault."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._phase = ""
        self._stage: Stage | None = None

    @contextlib.asynccontextmanager
    async def on(self, stage: Stage) -> AsyncIterator[None]:
        """They ask that stage's server, and their answers are in its ledger."""
        self._stage = stage
        async with stage.load(self._make, clients=max(2, self._run.clients // 4)):
            yield

    def _make(self, rng: random.Random) -> Ask:
        return Ask(nonce(rng), group=self._phase)

    @contextlib.asynccontextmanager
    async def during(self, phase: str) -> AsyncIterator[None]:
        """What they ask in here counts for that phase; and what they asked in it is answered before the next begins."""
        self._phase = phase
        try:
            yield
        finally:
            self._phase = ""
            await passing(_BETWEEN)

    def p99(self, phase: str) -> float:
        """Milliseconds, at the 99th percentile."""
        assert self._stage is not None
        return 1000 * self._stage.latency(group=phase)

    def judge(self, phase: str, *, beside: tuple[str, ...]) -> None:
        """Complain where they wait for more than twice what they wait for in the worst of those other phases.

        A machine of two cores has none to spare for the clients that attack: beside them everybody waits, whatever
        reads what they send. So the same bytes sent to a sink are one of the others.
        """
        assert self._stage is not None
        most = 2 * max(map(self.p99, beside))
        found = self.p99(phase)
        self._stage.require(found <= most, f"others' p99 beside {phase} is {found:.0f} ms: at most {most:.0f}")


async def _attack(stage: Stage, data: bytes, seconds: float) -> tuple[int, float]:
    """How many such requests were sent in that time, and the longest that /livez took."""
    sending = asyncio.create_task(_send_all(stage.server.port, data, seconds))
    ping = await _ping(stage, seconds)
    return await sending, ping


async def _send_all(port: int, data: bytes, seconds: float, *, rest: float = 0.0) -> int:
    """All attackers at once; how many requests they sent."""
    return sum(await asyncio.gather(*(
        asyncio.to_thread(_send, port, data, seconds, rest) for _ in range(_ATTACKERS)
    )))  # fmt: skip


def _send(port: int, data: bytes, seconds: float, rest: float) -> int:
    """Send it, read what comes of it, and send it again, `rest` seconds after the last time at the earliest."""
    ends, sent = time.monotonic() + seconds, 0
    while (now := time.monotonic()) < ends:
        with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
            sent += 1
            with contextlib.suppress(OSError):
                sock.sendall(data)
                if rest:  # a sink gives no answer, and ends when there is no more
                    sock.shutdown(socket.SHUT_WR)
                while sock.recv(65536):
                    pass
        time.sleep(max(0.0, min(now + rest, ends) - time.monotonic()))
    return sent


_SINK = """
import socket, threading
listening = socket.create_server(("127.0.0.1", 0))
print(listening.getsockname()[1], flush=True)
def read(sock):
    space = bytearray(1 << 18)
    with sock:
        while sock.recv_into(space):
            pass
while True:
    threading.Thread(target=read, args=(listening.accept()[0],), daemon=True).start()
"""


@contextlib.asynccontextmanager
async def _sink() -> AsyncIterator[int]:
    """The port of a process that reads whatever it is sent, and looks at none of it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _SINK, stdout=asyncio.subprocess.PIPE, stdin=asyncio.subprocess.DEVNULL
    )
    try:
        assert process.stdout is not None
        yield int(await process.stdout.readline())
    finally:
        process.kill()
        await process.wait()


async def _ping(stage: Stage, seconds: float) -> float:
    """The longest that /livez took in that time, asked fifty times a second."""
    ends, longest = time.monotonic() + seconds, 0.0
    connection = await Connection.open(stage.server.port)
    try:
        while time.monotonic() < ends:
            times = Times()
            await connection.ask(request("GET", "/livez"), times, give_up=60.0)
            longest = max(longest, times.done - times.send)
            await asyncio.sleep(0.02)
    except (LostError, UnsentError) as error:
        stage.complaints.append(f"/livez: {error}")
    finally:
        connection.close()
    return longest


async def many_uploads(run: Run) -> Report:
    """Uploads that stop just before their end, beside clients that predict; then they leave."""
    what = f"{_UPLOADS} uploads of 32 MiB that stop at 99 %, --max-inflight-bytes {_BUDGET // _MIB} MiB"
    others = _Others(run)
    flags = (*_FLAGS, "--max-inflight-bytes", str(_BUDGET), "--body-timeout", "60")
    data = _HEAD.format("application/octet-stream", _LARGEST).encode() + bytes(_LARGEST * 99 // 100)
    held: list[socket.socket] = []
    async with run.stage("Slow20", *flags) as stage, others.on(stage), _sink() as sink:
        await passing(1.0)
        async with others.during("alone"):
            await passing(max(run.seconds / 4, _ROUND))
        async with others.during("to a sink"):
            for _ in range(_UPLOADS):
                (await asyncio.to_thread(_upload, sink, data)).close()
        before, most = proc.resident(stage.server.pid), 0
        async with others.during("beside"):
            for _ in range(_UPLOADS):
                held.append(await asyncio.to_thread(_upload, stage.server.port, data))
                most = max(most, proc.resident(stage.server.pid) - before)
            refused = await asyncio.to_thread(lambda: sum(map(_is_refused, held)))
            for sock in held:
                sock.close()
            await passing(1.0)
        await passing(1.0)
        left = proc.resident(stage.server.pid) - before
    stage.require(most < 1.5 * _BUDGET, f"the front grew by {most / _MIB:.0f} MiB")
    stage.require(left < 32 * _MIB, f"{left / _MIB:.0f} MiB are left in the front")
    stage.require(refused >= _UPLOADS - _BUDGET // _LARGEST - 1, f"only {refused} uploads were refused")
    others.judge("beside", beside=("alone", "to a sink"))
    figures = (
        f"front +{most / _MIB:.0f} MiB, and {left / _MIB:+.0f} MiB when they had left; {refused} uploads told 503; "
        f"others' p99 {others.p99('alone'):.0f} ms alone, {others.p99('beside'):.0f} ms beside them, "
        f"{others.p99('to a sink'):.0f} ms beside the same to a sink; {stage.ledger.summary()}"
    )
    return run.report("A12", what, figures, stage)


def _upload(port: int, data: bytes) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=30)
    with contextlib.suppress(OSError):  # it may be refused meanwhile
        sock.sendall(data)
    return sock


def _is_refused(sock: socket.socket) -> bool:
    sock.settimeout(0.05)
    try:
        return sock.recv(64).startswith(b"HTTP/1.1 503 ")
    except OSError:
        return False
