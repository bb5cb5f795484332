"""Real worker processes for tests: a Python model that does as it is told, and a loop's view of its runner."""

import asyncio
import contextlib
import gc
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import TracebackType

import pytest

from flambeau.bundle import storage
from flambeau.bundle.storage import CodeReference, Manifest, PythonConfig, Source
from flambeau.errors import RequestError
from flambeau.runners.base import ReplicaSpec, Slot, Work, WorkerLostError
from flambeau.runners.processes import ProcessesRunner
from flambeau.settings.service import Settings
from flambeau.types import Item, Options, Payload, Value

TIMEOUT = 60.0  # seconds until a test gives up on a condition
MODEL = """
import ctypes, os, resource, signal, subprocess, sys, time
from pathlib import Path
import flambeau

HERE = Path({folder!r})

class Commands(flambeau.PythonModel):
    def load(self):
        while (HERE / "slow").exists():
            time.sleep(0.01)
        if (HERE / "broken").exists():
            raise FileNotFoundError("weights.bin is not here")

    def predict(self, batch):
        return [getattr(self, item["do"])(**item) for item in batch]

    def echo(self, do, value): return value
    def exit(self, do): os._exit(3)
    def segv(self, do): ctypes.string_at(0)
    def abort(self, do): os.abort()
    def hang(self, do):
        while True: pass
    def big(self, do, size): return len(bytearray(size))
    def start(self, do): return subprocess.Popen(["sleep", "600"]).pid
    def fork(self, do):
        if child := os.fork():
            return child
        time.sleep(600)
        os._exit(0)
    def wait(self, do, name):
        (HERE / (name + ".begun")).touch()
        while not (HERE / name).exists():
            time.sleep(0.01)
        return name
    def about(self, do):
        return dict(
            pid=os.getpid(), environment=dict(os.environ), core=resource.getrlimit(resource.RLIMIT_CORE),
            ignored=[signal.getsignal(each) == signal.SIG_IGN for each in (signal.SIGTERM, signal.SIGINT)],
            oom=int(Path("/proc/self/oom_score_adj").read_text()), modules=sorted(sys.modules),
            descriptors=len(os.listdir("/proc/self/fd")) - 1,
        )
"""


def make_bundle(folder: Path) -> ReplicaSpec:
    """A bundle of the obedient model, written without a build process."""
    (folder / "model.py").write_text(MODEL.format(folder=str(folder)))
    pipeline = PythonConfig(CodeReference("Commands", file="model.py"))
    source = Source(kind="python", name="model.py")
    storage.write_manifest(
        folder,
        Manifest(
            format=storage.FORMAT, name="commands", flambeau="0", source=source, pipeline=pipeline, engine="python"
        ),
    )
    return ReplicaSpec(
        str(folder), "commands", "python", "cpu", threads=1, allow_code=True, threshold=None, max_image_pixels=1
    )


class Fleet:
    """A started runner. Leaving it closes the runner."""

    def __init__(self, spec: ReplicaSpec, *, replicas: int = 1, **settings: object) -> None:
        self.folder = Path(spec.bundle)
        self.runner = ProcessesRunner(spec, Settings(**settings), replicas=replicas)  # type: ignore[arg-type]
        self.changed = asyncio.Event()
        self.device = ""

    async def __aenter__(self) -> "Fleet":
        self.device = (await self.runner.start(self.changed.set)).device
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.runner.close(timeout=1.0)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return when the condition holds; it is looked at whenever the runner has changed."""
        async with asyncio.timeout(TIMEOUT):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    async def slot(self) -> Slot:
        """The next free slot."""
        found: list[Slot] = []

        def reserve() -> bool:
            slot = self.runner.reserve()
            found.extend([slot] if slot else [])
            return bool(found)

        await self.until(reserve)
        return found[0]

    async def ask(self, *commands: dict[str, object]) -> list[object]:
        """The answers to a batch of commands, or the codes of their errors."""
        slot = await self.slot()
        return await _answers(slot, commands)

    async def ask_later(self, name: str) -> "asyncio.Task[list[object]]":
        """A batch that a worker has in hand, and answers when the file of that name is there."""
        task = asyncio.create_task(self.ask({"do": "wait", "name": name}))
        await eventually((self.folder / f"{name}.begun").exists)
        return task

    async def pid(self) -> int:
        """The process of the worker that is first asked."""
        [about] = await self.ask({"do": "about"})
        assert isinstance(about, dict)
        return int(about["pid"])


def echo(value: object) -> dict[str, object]:
    """A command that is answered with the value."""
    return {"do": "echo", "value": value}


async def _answers(slot: Slot, commands: tuple[dict[str, object], ...]) -> list[object]:
    outcomes = await slot([Work(Item(Payload("json", json.dumps(c).encode()), Options()), 60.0) for c in commands])
    found: list[object] = []
    for outcome in outcomes:
        assert isinstance(outcome.result, Value | RequestError)
        found.append(
            outcome.result.code if isinstance(outcome.result, RequestError) else json.loads(outcome.result.json)
        )
    return found


async def eventually(condition: Callable[[], bool]) -> None:
    """Return when something outside this process has become so."""
    async with asyncio.timeout(TIMEOUT):
        while not condition():
            await asyncio.sleep(0.005)


def wait_for(condition: Callable[[], object], *, seconds: float = TIMEOUT) -> None:
    """The same for a thread."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.005)


def settle(pid: int, *, seconds: float = 1.0) -> None:
    """Return when no thread of a process has anything to do; or after those seconds, where requests give it no rest."""
    deadline = time.monotonic() + seconds
    before: list[str] = []
    while time.monotonic() < deadline:
        now = _threads(pid)
        if now == before and all("State:\tS" in each for each in now):  # between the two looks none of them has run
            return
        before = now
        time.sleep(0.012)  # longer than the log's thread ever sleeps with lines that it has not written


def _threads(pid: int) -> list[str]:
    """Of each thread whether it sleeps, and how often it has; nothing of a process that has ended."""
    found = []
    with contextlib.suppress(OSError):
        for task in sorted(Path(f"/proc/{pid}/task").iterdir()):
            with contextlib.suppress(OSError):
                lines = (task / "status").read_text().splitlines()
                found.append(
                    "\n".join(line for line in lines if line.startswith(("State", "voluntary", "nonvoluntary")))
                )
    return found


_others: set[int] = set()
"""The children that this process had before the test: servers that tests share, and zombies that nobody reaps."""


def children(pid: int | str = "self") -> list[int]:
    """The workers that a process has started and not reaped, zombies among them; of this one, since the test began."""
    started = _started(pid)
    if pid == "self":
        started = [child for child in started if child not in _others]
    return sorted(child for child in started if _is_worker(child))


def _started(pid: int | str) -> list[int]:
    threads = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for thread in threads for child in _read(thread).split()]


def _read(file: Path) -> str:
    """A file of a process or thread that may end meanwhile."""
    try:
        return file.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _is_worker(pid: int) -> bool:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return "flambeau.runners.worker" in command or not command  # a zombie has none


def ended(pid: int) -> bool:
    """Whether a process has ended, reaped or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def nothing_left() -> Iterator[None]:
    """I5: nothing is there after a test that was not there before it, of descriptors, threads and children."""
    gc.collect()  # what the tests before it let go of is theirs
    _others.clear()
    _others.update(_started("self"))
    before = _possessions()
    yield
    gc.collect()
    with contextlib.suppress(AssertionError):  # a thread that was told to end takes a moment
        wait_for(lambda: not _possessions() - before, seconds=30)
    left = _possessions() - before
    assert not left


def _possessions() -> "Counter[str]":
    descriptors = [os.readlink(f"/proc/self/fd/{each}") for each in os.listdir("/proc/self/fd") if _is_open(each)]
    kinds = [each.partition(":")[0] for each in descriptors]
    return Counter([*kinds, *(f"thread {each.name}" for each in threading.enumerate()), *map(str, children())])


def _is_open(descriptor: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{descriptor}")


def run(test: Awaitable[None]) -> None:
    """Run a test on a loop of its own."""

    async def whole() -> None:
        async with asyncio.timeout(2 * TIMEOUT):
            await test

    asyncio.run(whole())


def fake_worker(folder: Path, body: str) -> str:
    """An executable in the place of Python whose first run is `body` and whose later ones are real workers.

    `body` sees `sock`, `order` (a `WorkerConfig`), `wire`, and `batch()`, which returns the header of the next batch.
    """
    script = folder / "fake"
    script.write_text(
        f"#!{sys.executable}\n"
        "import os, signal, socket, sys, time\n"
        f"if os.path.exists({str(folder / 'ran')!r}):\n"
        f"    os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[1:]])\n"
        f"open({str(folder / 'ran')!r}, 'w').close()\n"
        "import msgspec\n"
        "from flambeau.runners import wire\n"
        "from flambeau.runners.wire import *\n"
        "from flambeau.runners.worker import WorkerConfig\n"
        "from flambeau.types import Outcome, Value\n"
        "sock = socket.socket(fileno=int(sys.argv[-2]))\n"
        "order = msgspec.json.decode(sys.argv[-1], type=WorkerConfig)\n"
        "def batch():\n"
        "    header = wire.unpack_header(sock.recv(wire.HEADER_SIZE, socket.MSG_WAITALL))\n"
        "    sock.recv(header.body + header.payloads, socket.MSG_WAITALL)\n"
        "    return header\n"
        f"{body}\n"
    )
    script.chmod(0o755)
    return str(script)


async def loss(answer: "asyncio.Task[list[object]]") -> str:
    """How the worker of a batch was lost."""
    with pytest.raises(WorkerLostError) as found:
        await answer
    return found.value.how
