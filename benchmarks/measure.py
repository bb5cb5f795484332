"""One turn of a server, from its start to its end, and the machine's limit. It compares nothing and prints nothing."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from benchmarks import load
from benchmarks.apps.order import Engine, Order
from benchmarks.environments import WORK, folder, python
from benchmarks.load import Window
from benchmarks.peers import Peer
from benchmarks.processes import Server, free_port
from benchmarks.work import CACHE, FILES, Work, request, right_text

_ROOT = Path(__file__).parents[1]
_STARTUP = 90.0  # seconds to the first answer
_ANSWER = 30.0  # seconds for one answer, while none came yet
_POLL = 0.02
_SETTLE = 1.0  # seconds of quiet before the idle memory is read
_LONGEST = 4  # windows: how far a slow server's window is prolonged
_FEWEST = 5  # answers for each client, if the window can be prolonged for them
_QUIET = {
    "PYTHONUNBUFFERED": "1",
    "BENTOML_DO_NOT_TRACK": "True",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
}


class MeasureError(Exception):
    """A server did not start or did not answer right; the message is the reason, for the table."""


class Turn(msgspec.Struct, frozen=True):
    """What one turn measured: seconds from its start to its first right answer, memory in bytes, a window per client
    count. `loaded` is read right after the last window."""

    cold: float
    idle: int
    loaded: int
    windows: tuple[Window, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """How long. `clients` are the numbers of connections; empty for a cold start alone."""

    seconds: float
    warmup: float
    clients: tuple[int, ...]


def turn(peer: Peer, work: Work, engine: Engine, plan: Plan, *, fresh_cache: bool = False) -> Turn:
    """Start a peer, ask it, load it with each number of clients, and stop it. Raises `MeasureError`.

    `fresh_cache`: Flambeau builds its bundle first, as on the very first start.
    """
    port = free_port()
    order = peer.order(work, engine, port)
    text = right_text(work)
    wire = request(work, peer.encoding, peer.path, port)
    log = WORK / "logs" / f"{peer.name} {work.name} {engine}.log".replace(" ", "-")
    log.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as name:
        scratch = Path(name)
        (scratch / "request").write_bytes(wire)
        environment = _environment(peer, order, scratch, fresh_cache=fresh_cache)
        command = peer.start(order, scratch)
        begun = time.monotonic()
        inside = scratch if peer.name == "TorchServe" else _ROOT
        server = Server(command, environment=environment, folder=inside, log=log)
        try:
            _first_answer(server, wire, text, port, log)
            cold = time.monotonic() - begun
            time.sleep(_SETTLE)
            idle = server.memory()
            windows = tuple(
                load.run(
                    scratch / "request", port=port, clients=clients, text=text, seconds=plan.seconds,
                    warmup=plan.warmup, fewest=_FEWEST * clients, longest=_LONGEST * plan.seconds,
                )
                for clients in plan.clients
            )  # fmt: skip
            return Turn(cold, idle, server.memory(), windows)
        finally:
            server.stop()


def limit(order: Order, seconds: float) -> float:
    """Images per second of the engine with its preparation in a bare loop. Raises `MeasureError`."""
    interpreter = python("flask") if order.engine == "eager" else sys.executable
    environment = os.environ | order.environment() | {"PYTHONPATH": _python_path()}
    command = [interpreter, "-m", "benchmarks.apps.limit", str(FILES / "photograph.jpg"), str(seconds)]
    done = subprocess.run(command, env=environment, cwd=_ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MeasureError(f"the bare loop ended with {done.returncode}: {done.stderr[-200:]}")
    return float(done.stdout.split()[-1])  # the network's package prints, too


def _environment(peer: Peer, order: Order, scratch: Path, *, fresh_cache: bool) -> Mapping[str, str]:
    told = order.environment()
    if not peer.tuned or not peer.environment:  # the recipe as written, and Flambeau, are told nothing of threads
        told = {name: value for name, value in told.items() if name.startswith("BENCH_")}
    programs = [str(folder(peer.environment) / "bin")] if peer.environment else []
    own = {
        "PATH": os.pathsep.join([*programs, os.environ.get("PATH", os.defpath)]),
        "PYTHONPATH": _python_path(),
        "FLAMBEAU_CACHE": str(scratch / "cache" if fresh_cache else CACHE),
        "BENTOML_HOME": str(scratch / "bentoml"),
        "RAY_TMPDIR": str(scratch),
    }
    return os.environ | _QUIET | told | own


def _python_path() -> str:
    return os.pathsep.join([str(_ROOT), str(_ROOT / "src")])


def _first_answer(server: Server, wire: bytes, text: str, port: int, log: Path) -> None:
    deadline = time.monotonic() + _STARTUP
    said = b""
    while time.monotonic() < deadline and not server.ended:
        said = _ask(wire, text, port) or said
        if text.encode() in said:
            return
        time.sleep(_POLL)
    what = "ended" if server.ended else f"gave no right answer in {_STARTUP:g} s"
    last = (said.decode(errors="replace") or log.read_text(errors="replace")).replace(str(_ROOT), ".")
    raise MeasureError(f"it {what}; it said last: …{last[-200:].strip()}")


def _ask(wire: bytes, text: str, port: int) -> bytes:
    """The answer, as far as it came; empty if nobody listens. A right one is not read to its end."""
    said = b""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=_ANSWER) as connection:
            connection.sendall(wire)
            while text.encode() not in said and (more := connection.recv(65536)):
                said += more
                if b" 200 " not in said[:20]:
                    break
    except OSError:
        pass
    return said
