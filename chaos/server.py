"""The real server: `flambeau serve` in a process of its own, watched from outside, and what it leaves behind (I5)."""

import asyncio
import os
import re
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from chaos import proc

STARTUP_SECONDS = 60.0
MODEL = Path(__file__).with_name("model.py")
"""The file of the models that servers are started with."""

_URL = re.compile(rb"http://127\.0\.0\.1:(\d+)\s*$")
_POLL = 0.01


class ServerError(Exception):
    """The server did not do what every run needs of it."""


async def eventually(condition: Callable[[], bool], within: float) -> bool:
    """Whether a condition that only polling can see comes true in that many seconds."""
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(_POLL)
    return True


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Server:
    """One server process in a folder of its own, with a bundle cache that the run shares."""

    def __init__(
        self, folder: Path, cache: Path, model: str, *flags: str, port: int = 0, stderr: int | None = None
    ) -> None:
        """`stderr`: a descriptor for its log, which is else a file in the folder."""
        self._folder = folder
        self._cache = cache
        source = (f"model.py:{model}", "--allow-code") if model else ()  # without one it serves its default
        self._flags = (*source, "--port", str(port), *flags)
        self._shared_memory = proc.shared_memory()
        self._log = folder / "stderr.log"
        self._stderr = stderr
        self.port = port
        self.seen: set[int] = set()
        self._first: list[int] = []
        self.exit_code: int | None = None

    async def begin(self) -> None:
        """Start the process; it is not ready yet."""
        self._folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(MODEL, self._folder / "model.py")
        environment = os.environ | {
            "FLAMBEAU_CACHE": str(self._cache), "FLAMBEAU_LOG_FORMAT": "text", "TMPDIR": str(self._folder)
        }  # fmt: skip
        with self._log.open("wb") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "flambeau", "serve", *self._flags,
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
                stderr=log if self._stderr is None else self._stderr,
                cwd=self._folder, env=environment,
            )  # fmt: skip

    async def ready(self) -> None:
        """Return when it has printed its address. Raises `ServerError` with its log when it does not."""
        assert self.process.stdout is not None
        try:
            async with asyncio.timeout(STARTUP_SECONDS):
                line = await self.process.stdout.readline()
        except TimeoutError:
            await self.kill()
            raise ServerError(f"not ready in {STARTUP_SECONDS:g} s: {self.log()[-2000:]}") from None
        if not (found := _URL.search(line)):
            await self.kill()
            raise ServerError(f"it printed {line!r}: {self.log()[-2000:]}")
        self.port = int(found[1])
        self._first = self.workers()

    @property
    def pid(self) -> int:
        """Of the front process."""
        return self.process.pid

    def workers(self) -> list[int]:
        """The worker processes alive now."""
        found = proc.children(self.pid)
        self.seen.update(found)
        return found

    def warm_workers(self) -> list[int]:
        """Those that have been there from the start, or of which its log says that they are ready."""
        log = self.log()
        ready = {line for line in log.splitlines() if "worker ready" in line}
        return [
            pid for pid in self.workers() if pid in self._first or any(f"pid={pid} " in line + " " for line in ready)
        ]

    def look(self) -> None:
        """Remember which workers there are."""
        self.workers()

    def log(self) -> str:
        """What it wrote to standard error so far."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def logged(self, text: str) -> int:
        """How often its log holds a text."""
        return self.log().count(text)

    def flag(self, name: str) -> Path:
        """A file in the TMPDIR of its workers."""
        return self._folder / name

    def signal(self, number: signal.Signals) -> None:
        """Send the front process a signal."""
        self.process.send_signal(number)

    async def ended(self, within: float) -> int | None:
        """Its exit code, or `None` if it still runs after that many seconds."""
        try:
            async with asyncio.timeout(within):
                self.exit_code = await self.process.wait()
        except TimeoutError:
            return None
        return self.exit_code

    async def stop(self, within: float = 35.0) -> int | None:
        """SIGTERM, and its exit code; `None` if it had to be killed."""
        if self.process.returncode is None:
            self.signal(signal.SIGTERM)
        code = await self.ended(within)
        if code is None:
            await self.kill()
        return code

    async def kill(self) -> None:
        """End it at once."""
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()

    async def leftovers(self) -> list[str]:
        """What it left behind once it has ended: processes and shared memory (I5)."""
        here = str(self._cache)

        def ours() -> list[int]:
            mentioned = set(proc.mentioning(here))
            return [pid for pid in self.seen | mentioned if pid in mentioned and proc.alive(pid)]

        found = []
        if not await eventually(lambda: not ours(), 2.0):
            found.append(f"processes left: {ours()}")
        if not await eventually(lambda: not self._new_shared_memory(), 1.0):
            found.append(f"shared memory left: {sorted(self._new_shared_memory())[:5]}")
        return found

    def _new_shared_memory(self) -> set[str]:
        return proc.shared_memory() - self._shared_memory
