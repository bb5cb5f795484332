"""Bodies within every limit that are made to hurt: those that take long to read (A11), and many large ones (A12)."""

import asyncio
import contextlib
import random
import socket
import time
from collections.abc import Mapping

from chaos import proc
from chaos.client import Ask, nonce
from chaos.ledger import percentile
from chaos.run import Report, Run, Stage, passing
from chaos.wire import Connection, LostError, Times, UnsentError, request

_MIB = 2**20
_LARGEST = 32 * _MIB  # --max-body-bytes
_ROUND = 3.0  # seconds at least for each attack
_ATTACKERS = 2
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
    phase = "alone"

    def make(rng: random.Random) -> Ask:
        return Ask(nonce(rng), group=phase)

    pings: dict[str, float] = {}
    seconds = max(run.seconds / 4, _ROUND)
    flags = ("--replicas", "2", "--max-batch-size", "8")
    async with run.stage("Slow20", *flags) as stage, stage.load(make, clients=max(2, run.clients // 4)):
        await passing(1.0)
        stage.ledger.rows.clear()
        pings[phase] = await _ping(stage, seconds)
        for phase, data in _attacks().items():
            sending = [asyncio.create_task(asyncio.to_thread(_send, stage, data, seconds)) for _ in range(_ATTACKERS)]
            pings[phase] = await _ping(stage, seconds)
            await asyncio.gather(*sending)
        phase = "after"
    figures = [
        f"{name}: /livez at most {1000 * ping:.0f} ms, others' p99 {1000 * stage.latency(group=name):.0f} ms"
        for name, ping in pings.items()
    ]
    for name, ping in pings.items():
        stage.require(ping < _LONGEST_PING, f"/livez took {ping:.1f} s beside {name}")
    return run.report("A11", what, f"{'; '.join(figures)}; {stage.ledger.summary()}", stage)


def _send(stage: Stage, data: bytes, seconds: float) -> None:
    """Send it, read what comes of it, and send it again."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        with socket.create_connection(("127.0.0.1", stage.server.port), timeout=30) as sock:
            try:
                sock.sendall(data)
                while sock.recv(65536):
                    pass
            except OSError:
                continue


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
    phase = "alone"

    def make(rng: random.Random) -> Ask:
        return Ask(nonce(rng), group=phase)

    held: list[socket.socket] = []
    flags = ("--replicas", "2", "--max-batch-size", "8", "--max-inflight-bytes", str(_BUDGET), "--body-timeout", "60")
    async with run.stage("Slow20", *flags) as stage, stage.load(make, clients=max(2, run.clients // 4)):
        await passing(1.0)
        stage.ledger.rows.clear()
        await passing(max(run.seconds / 4, _ROUND))
        before, most = proc.resident(stage.server.pid), 0
        phase = "beside"
        for _ in range(_UPLOADS):
            held.append(await asyncio.to_thread(_upload, stage))
            most = max(most, proc.resident(stage.server.pid) - before)
        refused = sum(map(_is_refused, held))
        for sock in held:
            sock.close()
        await passing(1.0)
        phase = "after"
        await passing(1.0)
        left = proc.resident(stage.server.pid) - before
    stage.require(most < 1.5 * _BUDGET, f"the front grew by {most / _MIB:.0f} MiB")
    stage.require(left < 32 * _MIB, f"{left / _MIB:.0f} MiB are left in the front")
    stage.require(refused >= _UPLOADS - _BUDGET // _LARGEST - 1, f"only {refused} uploads were refused")
    p99 = {name: 1000 * percentile((row.seconds for row in stage.ledger.rows if row.group == name), 0.99)
           for name in ("alone", "beside")}  # fmt: skip
    figures = (
        f"front +{most / _MIB:.0f} MiB, and {left / _MIB:+.0f} MiB when they had left; {refused} uploads told 503; "
        f"others' p99 {p99['alone']:.0f} ms alone, {p99['beside']:.0f} ms beside; {stage.ledger.summary()}"
    )
    return run.report("A12", what, figures, stage)


def _upload(stage: Stage) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", stage.server.port), timeout=30)
    with contextlib.suppress(OSError):  # it may be refused meanwhile
        sock.sendall(_HEAD.format("application/octet-stream", _LARGEST).encode() + bytes(_LARGEST * 99 // 100))
    return sock


def _is_refused(sock: socket.socket) -> bool:
    sock.settimeout(0.05)
    try:
        return sock.recv(64).startswith(b"HTTP/1.1 503 ")
    except OSError:
        return False
