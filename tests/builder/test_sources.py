"""From a file to its bundle while things go wrong: files that change meanwhile, builds that are killed, folders that
take nothing.
"""

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file

import flambeau
from flambeau.bundle.storage import Bundle
from flambeau.errors import ConfigError
from flambeau.settings.source import SourceOptions
from flambeau.sources import build_cache
from flambeau.sources.request import Note
from flambeau.system import staging
from tests.support.scaled_graph import answered, scaled
from tests.support.warm import run_with_torch

Change = Callable[[], None]


class Opened:
    """Opens sources, with a change made at the first word of the first build; keeps what was said."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.builds = 0

    def __call__(self, source: Path | str, change: Change | None = None, **options: Any) -> Bundle:
        waiting = [change] if change else []

        def progress(event: object) -> None:
            self.builds += getattr(event, "number", 0) == 1
            if isinstance(event, Note):
                self.notes.append(event.text)
            elif waiting:
                waiting.pop()()

        return build_cache.open_source(SourceOptions(source=str(source), **options), progress=progress)


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warm_build: None) -> Opened:
    monkeypatch.setenv("FLAMBEAU_CACHE", str(tmp_path / "cache"))
    return Opened()


def left_in_cache(tmp_path: Path) -> list[str]:
    """What lies in the cache beside bundles and the locks."""
    return [path.name for path in (tmp_path / "cache" / "bundles").glob(".*unfinished*")]


@pytest.mark.long
def test_weights_that_are_replaced_while_they_are_built_never_answer_for_others_a7(
    tmp_path: Path, opened: Opened
) -> None:
    """The new file's bundle once lay under the old file's key: the old file answered as the new one for ever."""
    file, new = scaled(tmp_path / "m.onnx", 4.0), scaled(tmp_path / "new.onnx", 20.0)
    old = file.read_bytes()
    first = opened(file, change=lambda: os.replace(new, file))
    assert answered(first) == 20.0
    assert any("m.onnx was changed while it was being built" in note for note in opened.notes)
    assert opened.builds == 2
    file.write_bytes(old)
    assert answered(opened(file)) == 4.0
    assert left_in_cache(tmp_path) == []


@pytest.mark.long
def test_a_file_that_came_and_went_while_it_was_built_is_seen_a7(tmp_path: Path, opened: Opened) -> None:
    """The contents are the old ones before and after, and those of another file in between."""
    file, aside = scaled(tmp_path / "m.onnx", 4.0), tmp_path / "aside.onnx"
    other = scaled(tmp_path / "other.onnx", 20.0)

    def swap() -> None:
        file.rename(aside)
        other.rename(file)

    def swap_back(event: object) -> None:
        if getattr(event, "number", 0) == 1 and not aside.exists() and other.exists():
            swap()
        elif getattr(event, "number", 0) == 3 and aside.exists():
            file.rename(tmp_path / "gone.onnx")
            aside.rename(file)

    made = build_cache.open_source(SourceOptions(source=str(file)), progress=swap_back)
    assert answered(made) == 4.0


@pytest.mark.long
def test_weights_beside_a_graph_belong_to_it_a7(tmp_path: Path, opened: Opened) -> None:
    file = scaled(tmp_path / "m.onnx", 4.0, outside=True)
    assert answered(opened(file)) == 4.0
    (tmp_path / "weights.bin").write_bytes(np.full(4, 20.0, np.float32).tobytes())
    assert answered(opened(file)) == 20.0
    change = lambda: (tmp_path / "weights.bin").write_bytes(np.full(4, 3.0, np.float32).tobytes())  # noqa: E731
    (tmp_path / "weights.bin").write_bytes(np.full(4, 2.0, np.float32).tobytes())
    assert answered(opened(file, change=change)) == 3.0  # type: ignore[arg-type]


LAYERS = """
from torch import nn

class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.line = nn.Linear(4, 4, bias=False)

    def forward(self, rows):
        return self.line(rows) * FACTOR
"""
NET = """
from layers import Scale

class Net(Scale):
    pass
"""


@pytest.fixture
def net(tmp_path: Path, warm_build: None) -> Path:
    """The folder of a network in `net.py`, most of it in `layers.py` beside it, and its weights."""
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "net.py").write_text(NET)
    (folder / "layers.py").write_text(LAYERS.replace("FACTOR", "2"))
    save_file({"line.weight": torch.eye(4)}, folder / "m.safetensors")
    return folder


def test_code_that_own_code_imports_is_part_of_what_was_built_p14(net: Path, opened: Opened) -> None:
    options: dict[str, Any] = {"arch": f"{net / 'net.py'}:Net", "allow_code": True}
    assert answered(opened(net / "m.safetensors", **options)) == 2.0
    assert answered(opened(net / "m.safetensors", **options)) == 2.0
    assert opened.builds == 1
    (net / "layers.py").write_text(LAYERS.replace("FACTOR", "5"))
    assert answered(opened(net / "m.safetensors", **options)) == 5.0
    assert any("layers.py has changed since" in note for note in opened.notes)
    (net / "layers.py").write_text(LAYERS.replace("FACTOR", "7"))
    (net / "unrelated.py").write_text("")
    assert answered(opened(net / "m.safetensors", **options)) == 7.0
    assert opened.builds == 3


@pytest.mark.long
def test_code_is_hashed_as_it_was_when_it_was_built_a7(net: Path, opened: Opened) -> None:
    options: dict[str, Any] = {"arch": f"{net / 'net.py'}:Net", "allow_code": True}
    change = lambda: (net / "layers.py").write_text(LAYERS.replace("FACTOR", "5"))  # noqa: E731
    opened(net / "m.safetensors", change=change, **options)  # type: ignore[arg-type]
    assert answered(opened(net / "m.safetensors", **options)) == 5.0


@pytest.mark.long
def test_a_build_that_is_killed_when_its_bundle_stands_has_listed_its_code_p14(
    net: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list once came after the bundle: a bundle without one answered with old code for ever."""
    options: dict[str, Any] = {"arch": f"{net / 'net.py'}:Net", "allow_code": True}
    rename = Path.rename

    def rename_and_end(self: Path, target: Path) -> None:
        rename(self, target)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", rename_and_end)
        with pytest.raises(KeyboardInterrupt):
            opened(net / "m.safetensors", **options)
    (net / "layers.py").write_text(LAYERS.replace("FACTOR", "5"))
    assert answered(opened(net / "m.safetensors", **options)) == 5.0


@pytest.mark.parametrize("into", ["cache", "folder"])
def test_what_a_killed_build_leaves_is_cleared_away_a15(tmp_path: Path, into: str) -> None:
    file = scaled(tmp_path / "m.onnx", 4.0)
    (tmp_path / "out").mkdir()
    arguments = ["build", file, "-o", tmp_path / "out" / "b"] if into == "folder" else ["serve", file, "--port", "0"]
    environment = os.environ | {"FLAMBEAU_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "flambeau", *map(str, arguments)]
    places = tmp_path / "out" if into == "folder" else tmp_path / "cache" / "bundles"
    mine = places / ".b-mine"

    def unfinished() -> list[Path]:
        return list(places.glob(".*unfinished*"))

    building = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not unfinished() and time.monotonic() < deadline:
        assert building.poll() is None
        time.sleep(0.02)
    building.kill()
    building.wait()
    assert unfinished()
    deadline = time.monotonic() + 60
    mine.mkdir()
    other = unfinished()[0]
    held = os.open(places, os.O_RDONLY)
    try:  # one that a living process fills
        with staging.filling(places / "b") as alive:
            while other.exists() and time.monotonic() < deadline:  # the process that filled it may still be ending
                staging.clear(places)
            assert unfinished() == [alive]
    finally:
        os.close(held)
    assert unfinished() == [alive]
    alive.rmdir()
    assert mine.exists()
    assert staging._MARK in alive.name


@pytest.mark.long
def test_a_build_clears_away_what_others_left_a15(tmp_path: Path, opened: Opened) -> None:
    left = tmp_path / "cache" / "bundles" / f".old-0123{staging._MARK}xyz"
    left.mkdir(parents=True)
    (left / "model.onnx").write_bytes(b"half of it")
    opened(scaled(tmp_path / "m.onnx", 4.0))
    assert left_in_cache(tmp_path) == []


NOBODY = 54321
"""A user id without a name, as containers have it."""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
@pytest.mark.parametrize("home", ["", "/nowhere"])
def test_a_cache_that_cannot_be_written_is_one_line_that_names_the_setting_p7(tmp_path: Path, home: str) -> None:
    """No HOME and an unknown user, or a home on a root that is read-only."""
    environment = {"PATH": os.environ["PATH"]} | ({"HOME": home} if home else {})
    done = subprocess.run(
        ["setpriv", f"--reuid={NOBODY}", "--clear-groups", sys.executable, "-m", "flambeau", "serve", "--port", "0"],
        env=environment, capture_output=True, text=True, check=False, cwd="/",
    )  # fmt: skip
    assert done.returncode == 78, done.stderr
    assert "FLAMBEAU_CACHE" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_an_application_says_the_same_p7(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FLAMBEAU_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ConfigError, match="name another folder with FLAMBEAU_CACHE"):
        flambeau.create_app("default")


@pytest.mark.long
def test_a_cached_bundle_is_read_where_nothing_can_be_written_p7(
    tmp_path: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache that was filled while an image was made, on a root that is read-only then."""
    file = scaled(tmp_path / "m.onnx", 4.0)
    opened(file)

    def read_only(home: Path, name: str) -> Iterator[None]:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(staging, "lock", read_only)
    assert answered(opened(file)) == 4.0
    assert opened.builds == 1
    with pytest.raises(ConfigError, match="Read-only file system"):
        opened(scaled(tmp_path / "other.onnx", 5.0))


def _small_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


@pytest.mark.long
@pytest.mark.parametrize("source", ["default", "onnx", "torch"])
def test_a_limit_on_the_size_of_files_is_told_as_what_it_is_a19(tmp_path: Path, source: str) -> None:
    made: dict[str, list[str]] = {"default": ["default"]}
    large = {"line.weight": torch.zeros(400, 400)}
    if source == "torch":
        (tmp_path / "net.py").write_text(NET.replace("layers", "l400"))
        (tmp_path / "l400.py").write_text(LAYERS.replace("FACTOR", "2").replace("4, 4", "400, 400"))
        torch.save(large, tmp_path / "m.pth")
        made["torch"] = [str(tmp_path / "m.pth"), "--arch", f"{tmp_path / 'net.py'}:Net", "--allow-code"]
    if source == "onnx":
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [value("x", TensorProto.FLOAT, ["n", 400])],
            [value("y", TensorProto.FLOAT, ["n", 400])],
            [numpy_helper.from_array(large["line.weight"].numpy(), "w")],
        )  # fmt: skip
        onnx.save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "m.onnx"
        )
        made["onnx"] = [str(tmp_path / "m.onnx")]
    done = subprocess.run(
        [sys.executable, "-m", "flambeau", "build", *made[source], "-o", tmp_path / "out"],
        capture_output=True, text=True, check=False, preexec_fn=_small_files,
    )  # fmt: skip
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert f"{tmp_path} has no space left for the bundle, or a limit on the size of files is set" in last, done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of half a megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    mounting = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", place], capture_output=True, check=False
    )
    if mounting.returncode:
        pytest.skip("no disk can be mounted here")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_is_told_as_what_it_is_a19(disk: Path) -> None:
    done = run_with_torch("build", "default", "-o", disk / "out")
    assert done.returncode == 1
    assert f"{disk} has no space left for the bundle" in done.stderr.strip().splitlines()[-1]


def test_a_cache_on_a_full_disk_is_told_as_what_it_is_a19(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAMBEAU_CACHE", str(disk))
    done = run_with_torch("serve", "default", "--port", 0)
    assert done.returncode == 1
    assert "has no space left for the bundle" in done.stderr.strip().splitlines()[-1]
