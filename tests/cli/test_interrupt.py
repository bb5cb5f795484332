"""Ctrl-C ends every command with one line and the exit code 130, without a traceback, and leaves nothing (U15)."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flambeau.bundle.storage import Bundle
from tests.support.photographs import encoded, photograph
from tests.support.server import FLAMBEAU, STARTUP_SECONDS

pytestmark = pytest.mark.long


def children(pid: int) -> list[int]:
    """All descendants of a process."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for each in map(int, (task / "children").read_text().split()):
                found += [each, *children(each)]
    return found


def maps(library: str) -> Callable[[int], bool]:
    """Whether one of its descendants has begun to load that library."""

    def holds(pid: int) -> bool:
        for each in children(pid):
            with contextlib.suppress(OSError):
                if library in Path(f"/proc/{each}/maps").read_text():
                    return True
        return False

    return holds


def has_children(pid: int) -> bool:
    return bool(children(pid))


def has_started(pid: int) -> bool:
    """Whether it is the command by now, and not yet its end."""
    with contextlib.suppress(OSError):
        return "msgspec" in Path(f"/proc/{pid}/maps").read_text()
    return False


@contextlib.contextmanager
def sigint_is_heard() -> Iterator[None]:
    """Commands begun meanwhile hear Ctrl-C, as those of a terminal do, also if the tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def interrupted(arguments: list[object], when: Callable[[int], bool], folder: Path) -> "tuple[int, str, list[int]]":
    """Run a command as a terminal does, and press Ctrl-C when it is time. Gives code, errors, and who is left."""
    with sigint_is_heard(), subprocess.Popen(
        [*FLAMBEAU, *map(str, arguments)], start_new_session=True, cwd=folder, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"FLAMBEAU_CACHE": str(folder / "cache")},
    ) as process:  # fmt: skip
        deadline = time.monotonic() + STARTUP_SECONDS
        while not when(process.pid):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        family = children(process.pid)
        os.killpg(process.pid, signal.SIGINT)  # as the terminal: to all of its foreground group
        _, errors = process.communicate(timeout=STARTUP_SECONDS)
    ends = time.monotonic() + 60  # the kernel takes a moment to end who has lost its parent
    while (left := [each for each in family if Path(f"/proc/{each}").exists()]) and time.monotonic() < ends:
        time.sleep(0.02)
    return process.returncode, errors, left


COMMANDS: dict[str, tuple[list[object], Callable[[int], bool]]] = {
    "build, while torch is imported": (["build", "default", "-o", "bundle"], maps("libtorch_cpu")),
    "build, at once": (["build", "default", "-o", "bundle"], has_children),
    "serve, while it builds": (["serve", "--port", "0"], maps("libtorch_cpu")),
    "serve, while its workers start": (["serve", "BUNDLE", "--port", "0"], has_children),
    "serve, with threads that start": (["serve", "BUNDLE", "--runner", "threads", "--port", "0"], has_started),
    "bench, while engines load": (["bench", "BUNDLE"], maps("onnxruntime")),
    "predict": (["predict", "BUNDLE", "cat.png"], has_children),
    "doctor": (["doctor"], has_children),
    "inspect": (["inspect", "large.pth"], has_started),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_ctrl_c_is_one_line_and_130_u15(name: str, tmp_path: Path, default_bundle: Bundle) -> None:
    arguments, when = COMMANDS[name]
    (tmp_path / "cat.png").write_bytes(encoded(photograph("chelsea")))
    with (tmp_path / "large.pth").open("wb") as large:
        large.truncate(300_000_000)
    code, errors, left = interrupted(
        [default_bundle.path if each == "BUNDLE" else each for each in arguments], when, tmp_path
    )
    assert "Traceback" not in errors
    assert "KeyboardInterrupt" not in errors
    if name != "inspect" or code != 1:  # which may have come to its end
        assert (code, errors.splitlines()[-1]) == (130, "flambeau: interrupted")
    assert left == []
    assert not (tmp_path / "bundle").exists()
    assert not [each for each in tmp_path.iterdir() if each.name.startswith(".")]
