"""What tests of several fronts look at: who is there, who has which connections, and what the service has counted."""

import contextlib
import http.client
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

from tests.support.server import ServerProcess

PATIENCE = 60.0


def children(pid: int) -> list[int]:
    """The processes that a process has started and that are alive."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
                if int(parent) == pid and state != "Z":
                    found.append(int(folder.name))
    return sorted(found)


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def eventually(holds: Callable[[], object], *, within: float = PATIENCE) -> None:
    """Return when it holds; an `AssertionError` if it does not within so many seconds."""
    deadline = time.monotonic() + within
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def presence(server: ServerProcess) -> dict[str, int]:
    """How many fronts are ready, and of how many; none where nobody answers."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        found: dict[str, int] = server.get("/readyz").json()["fronts"]
        return found
    return {}


def all_ready(server: ServerProcess) -> bool:
    found = presence(server)
    return bool(found) and found["ready"] == found["of"]


def replaced(server: ServerProcess, victim: int, *, fronts: int = 2) -> None:
    """Return when another front is ready in the place of one that was killed."""
    eventually(lambda: not alive(victim) and len(children(server.process.pid)) == fronts)
    eventually(lambda: all_ready(server))


def samples(server: ServerProcess) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample of /metrics, by name and labels. No two may have the same."""
    found: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for family in text_string_to_metric_families(server.get("/metrics").text):
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


def answered(server: ServerProcess, status: str = "200") -> float:
    """How many predictions were answered so."""
    return sum(
        value
        for (name, labels), value in samples(server).items()
        if name == "flambeau_requests_total"
        and dict(labels)["status"] == status
        and dict(labels)["model"] != "_other"
        and dict(labels)["protocol"] == "native"
    )


class KeepAlive:
    """A client with one connection, which it keeps; `again` opens a new one when it has been lost."""

    def __init__(self, server: ServerProcess) -> None:
        where = urlsplit(server.url)
        self._where = where.hostname or "", where.port or 0
        self.connection = http.client.HTTPConnection(*self._where, timeout=60)

    def ask(self, value: object) -> tuple[int, object]:
        """One prediction of the obedient model (`tests.support.fleet`). Raises `OSError` or `HTTPException`."""
        body = json.dumps({"input": {"do": "echo", "value": value}})
        self.connection.request("POST", "/predict", body, {"Content-Type": "application/json"})
        response = self.connection.getresponse()
        found = json.loads(response.read())
        return response.status, found.get("output", found)

    def again(self) -> None:
        self.connection.close()
        self.connection = http.client.HTTPConnection(*self._where, timeout=60)

    def close(self) -> None:
        self.connection.close()


def end(pid: int, number: int) -> None:
    """Send a signal to a process that may have ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
