"""What each test costs: seconds of processor time, of the tests' process and of every process below it.

`python -m pytest -p tests.support.processor_time --processor-time=FOLDER ...` writes a line of JSON for each test into
FOLDER, a file for each process of the run: its own seconds, and those of each fixture that was made for it, which are
not among its own. Processor time hardly depends on what else the machine does. What a server does while another test
runs is counted to that test; a process whose parent has ended is not found.
"""

import contextlib
import json
import os
import resource
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_TICKS = os.sysconf("SC_CLK_TCK")

_lines: list[dict[str, Any]] = []
_fixtures: list[dict[str, float]] = [{}]
_inner: list[float] = []


def spent() -> float:
    """Seconds that this process and all below it have used, whether they have ended or run."""
    used = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return used
    children: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
            children[int(fields[1])].append((int(name), sum(map(int, fields[11:15]))))
    below = [*children[os.getpid()]]
    while below:
        pid, ticks = below.pop()
        used += ticks / _TICKS
        below += children[pid]
    return used


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where the lines go."""
    parser.addoption("--processor-time", metavar="FOLDER", help="write what each test costs into files there")


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Iterator[None]:
    """Count what making a fixture costs, without those that it asks for while it is made."""
    _inner.append(0.0)
    before = spent()
    try:
        return (yield)
    finally:
        whole = spent() - before
        own = whole - _inner.pop()
        if _inner:
            _inner[-1] += whole
        name = f"{fixturedef.scope}:{fixturedef.argname}"
        _fixtures[-1][name] = _fixtures[-1].get(name, 0.0) + own


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Count what a test costs, without what was made for it."""
    _fixtures.append({})
    before = spent()
    try:
        return (yield)
    finally:
        made = {name: round(seconds, 2) for name, seconds in _fixtures.pop().items() if seconds >= 0.02}
        own = spent() - before - sum(made.values())
        _write(item.config, {"test": item.nodeid, "seconds": round(own, 3), "made": made})


def pytest_collection_finish(session: pytest.Session) -> None:
    """What it costs to get here: imports and collection."""
    _write(session.config, {"test": "collection", "seconds": round(spent(), 3), "made": {}})


def pytest_sessionfinish(session: pytest.Session) -> None:
    """All of it, what ends with the run included as far as it has ended."""
    _write(session.config, {"test": "whole", "seconds": round(spent(), 3), "made": {}})


def _write(config: pytest.Config, line: dict[str, Any]) -> None:
    folder = config.getoption("--processor-time")
    if folder:
        with Path(folder, f"{os.environ.get('PYTEST_XDIST_WORKER', 'main')}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
