"""T-01, T-02, T-04: torch files are read by a process that has nothing to lose, and come back bit for bit or not."""

import ast
import contextlib
import io
import json
import os
import select
import signal
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from flambeau.builder.requirements import require_torch
from flambeau.builder.sandbox import checkpoint, reader, safetensors_writer
from flambeau.builder.sandbox.reader import FileReading
from flambeau.checkpoints import permitted_globals
from flambeau.checkpoints.report import Report, TensorInfo, TensorMapping
from flambeau.errors import SetupError, SourceError

linux = pytest.mark.skipif(sys.platform != "linux", reason="the walls are Linux'")
HELD = "no network, no new files, no processes, no other files, at most 0.3 GB, limited time"


def every_kind() -> "dict[str, torch.Tensor]":
    """Tensors in all the ways that they lie in files."""
    base = torch.randn(6, 8)
    dtypes = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8)
    return {
        "z.weight": base,
        "tied": base,
        "a.turned": base.t(),
        "part": base[1:3, ::2],
        "odd.bytes": torch.arange(3, dtype=torch.uint8),
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "flags": torch.tensor([True, False, True]),
        "parameter": nn.Parameter(torch.randn(3)),
        "nan": torch.tensor([float("nan"), -0.0, float("inf")]),
        'schlüssel mit "zeichen"': torch.ones(1),
        **{str(dtype): torch.arange(5).to(dtype) for dtype in dtypes},
    }


def same(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Bit for bit."""
    if (left.dtype, left.shape) != (right.dtype, right.shape):
        return False
    return bool((as_bytes(left) == as_bytes(right)).all())


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """What it consists of, shape (bytes,)."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


@contextlib.contextmanager
def reading(path: Path, folder: Path, *where: str) -> Iterator[FileReading]:
    """A reading in a folder of its own that is surely ended."""
    folder.mkdir()
    begun = reader.start(path, folder=folder, where=where)
    try:
        yield begun
    finally:
        begun.close()  # keeps what is whole


@pytest.mark.long
def test_tensors_come_back_bit_for_bit_from_every_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever they lie in the file, whatever lies beside them, and whoever's folder the user stands in."""
    tensors = every_kind()
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    module.register_buffer("again", module.get_parameter("0.weight"))
    training = {
        "state_dict": {"model": module.state_dict()},
        "best_acc": np.float64(0.75),
        "epochs": {1, 2},
        "about": (b"\xff", "ü", 1j, torch.Size([3]), torch.float16, torch.device("cpu"), np.bool_(True), np.int32(2)),
    }
    torch.save(tensors, tmp_path / "zip.pth")
    torch.save(OrderedDict(tensors), tmp_path / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(training, tmp_path / "nested.ckpt")
    trap = tmp_path / "downloaded"
    trap.mkdir()
    for name in ("torch", "msgspec", "flambeau"):
        (trap / f"{name}.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")
    monkeypatch.chdir(trap)
    monkeypatch.setenv("MY_TOKEN", "secret")

    with (
        reading(tmp_path / "zip.pth", tmp_path / "1") as zipped,
        reading(tmp_path / "legacy.pth", tmp_path / "2") as legacy,
        reading(tmp_path / "nested.ckpt", tmp_path / "3", "state_dict", "model") as nested,
    ):
        if sys.platform == "linux":
            assert b"secret" not in Path(f"/proc/{zipped.pid}/environ").read_bytes()
        for each, expected in ((zipped, tensors), (legacy, tensors), (nested, module.state_dict())):
            file = each.result()
            found = load_file(file)
            assert sorted(found) == sorted(expected)
            assert [key for key in expected if not same(expected[key], found[key])] == []
            assert file.stat().st_mode & 0o777 == 0o600
            if sys.platform == "linux":
                assert each.sandbox == HELD
    assert not (tmp_path / "canary").exists()


LARGE = 80_000_000
MEASURE = """
import sys
from pathlib import Path
from flambeau.builder.sandbox import checkpoint, safetensors_writer
from flambeau.checkpoints.report import Report

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

def most(name, kind):
    held = [anonymous()]
    with open(name, "rb") as file, open(name + ".out", "wb") as output:
        report = Report(format=kind, verdict="data", size=1)
        loaded = checkpoint.load(file, Path(name), report, name=name, permitted=[])
        safetensors_writer.write(loaded, output, say=lambda done, total: held.append(anonymous()))
    return max(held) - held[0]

print(most("zip.pt", "torch-zip"), most("legacy.pt", "torch-legacy"))
"""


@pytest.mark.long
def test_a_large_file_says_how_far_it_is_and_takes_little_memory(tmp_path: Path) -> None:
    """A zip is mapped and takes none; a legacy file is held once."""
    halves = {"a": torch.rand(LARGE // 8), "b": torch.rand(LARGE // 8)}
    torch.save(halves, tmp_path / "zip.pt")
    torch.save(halves, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    heard: list[tuple[int, int]] = []
    with reading(tmp_path / "zip.pt", tmp_path / "out") as begun:
        measured = subprocess.run([sys.executable, "-c", MEASURE], cwd=tmp_path, capture_output=True, text=True)
        found = load_file(begun.result(progress=lambda done, total: heard.append((done, total))))
    assert all(same(halves[key], found[key]) for key in halves)
    assert heard == sorted(heard)
    assert len(heard) >= 5
    assert heard[-1] == (LARGE, LARGE)
    if sys.platform == "linux":
        zipped, legacy = map(int, measured.stdout.split())
        assert zipped < 0.1 * LARGE
        assert 0.9 * LARGE < legacy < 1.1 * LARGE


def test_what_would_run_is_refused_by_name_and_does_not_t01(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'canary'}",)

    torch.save({"weight": torch.ones(2), "evil": Evil()}, tmp_path / "evil.pth")
    with (
        reading(tmp_path / "evil.pth", tmp_path / "out") as begun,
        pytest.raises(SourceError, match=r"^evil\.pth .*\b(os|posix)\.system\b"),
    ):
        begun.result()
    assert not (tmp_path / "canary").exists()
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("protocol", [2, 4])
def test_where_the_report_is_wrong_torch_refuses_too_t01(tmp_path: Path, protocol: int) -> None:
    """Two locks, one behind the other: here the first is left open."""

    class Evil:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'canary'}",)

    data = io.BytesIO()
    torch.save({"weight": Evil()}, data, pickle_protocol=protocol)
    data.seek(0)
    report = Report(format="torch-zip", verdict="data", size=len(data.getvalue()))
    with pytest.raises(SourceError, match=r"^x\.pth holds more than weights.* could run code: save the weights alone"):
        checkpoint.load(data, None, report, name="x.pth", permitted=permitted_globals())
    assert not (tmp_path / "canary").exists()


def test_what_numpy_leaves_in_checkpoints_is_let_through(tmp_path: Path) -> None:
    data = io.BytesIO()
    torch.save({"best": np.float32(0.5), "epoch": np.int64(3)}, data)
    data.seek(0)
    report = Report(format="torch-zip", verdict="data", size=1)
    loaded = checkpoint.load(data, None, report, name="x.pth", permitted=permitted_globals())
    assert loaded == {"best": 0.5, "epoch": 3}
    data.seek(0)
    with pytest.raises(SourceError, match="numpy"):
        checkpoint.load(data, None, report, name="x.pth", permitted=[])


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04" + bytes(100), b"\x80\x02" + bytes(100), b"hello" * 50])
def test_what_torch_cannot_read_is_refused_in_a_sentence(content: bytes) -> None:
    report = Report(format="torch-zip", verdict="data", size=len(content))
    with pytest.raises(SourceError, match=r"^x\.pth (is not a file that torch can read|holds more than weights)") as e:
        checkpoint.load(io.BytesIO(content), None, report, name="x.pth", permitted=[])
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({}, "'w': nothing by its structure, and float32 of shape [2] when read"),
        ({"w": TensorInfo("float32", (3,))}, "float32 of shape [3] by its structure, and float32 of shape [2]"),
        ({"w": TensorInfo("float16", (2,))}, "float16 of shape [2] by its structure"),
        ({"w": TensorInfo("float32", (2,)), "v": TensorInfo("int8", ())}, "'v': int8 of shape [] by its structure"),
    ],
)
def test_a_file_that_says_two_things_is_refused(told: dict[str, TensorInfo], why: str) -> None:
    loaded = {"net": {"w": torch.ones(2), "epoch": 1}}
    with pytest.raises(SourceError) as caught:
        checkpoint.find(loaded, TensorMapping(("net",), told), name="x.pth")
    assert why in str(caught.value)


def test_what_has_no_plain_numbers_is_refused() -> None:
    sparse = {"w": torch.eye(2).to_sparse()}
    with pytest.raises(SourceError, match="'w' in a form without plain numbers"):
        checkpoint.find(sparse, TensorMapping((), {"w": TensorInfo("float32", (2, 2))}), name="x.pth")
    with pytest.raises(SourceError, match="no mapping of tensors at net"):
        checkpoint.find(sparse, TensorMapping(("net",), {}), name="x.pth")


def test_the_file_that_is_written_is_safetensors(tmp_path: Path) -> None:
    """By safetensors' own reader; each tensor lies where its dtype may lie, in a file that keeps the order of names."""
    tensors = every_kind()
    with (tmp_path / "x.safetensors").open("wb") as file:
        safetensors_writer.write(tensors, file, say=lambda done, total: None)
    content = (tmp_path / "x.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert list(header) == list(tensors)
    for key, tensor in tensors.items():
        assert (8 + int.from_bytes(content[:8], "little") + header[key]["data_offsets"][0]) % tensor.element_size() == 0
    with safe_open(tmp_path / "x.safetensors", "pt") as opened:
        assert all(same(tensors[key], opened.get_tensor(key)) for key in tensors)


def test_no_tensor_at_all_is_safetensors_too(tmp_path: Path) -> None:
    with (tmp_path / "x.safetensors").open("wb") as file:
        safetensors_writer.write({}, file, say=lambda done, total: None)
    assert load_file(tmp_path / "x.safetensors") == {}


def test_what_safetensors_cannot_hold_is_refused_by_name() -> None:
    with pytest.raises(SourceError, match="'phase' is of complex64, which safetensors cannot hold"):
        safetensors_writer.plan({"phase": torch.ones(2, dtype=torch.complex64)})
    with pytest.raises(SourceError, match="'__metadata__'"):
        safetensors_writer.plan({"__metadata__": torch.ones(2)})


def test_a_reader_that_is_killed_leaves_a_sentence_and_no_file(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "x.pth")
    with reading(tmp_path / "x.pth", tmp_path / "out") as begun:
        os.kill(begun.pid, signal.SIGKILL)
        with pytest.raises(SourceError, match=r"^the process that read x\.pth was ended by SIGKILL: this machine may"):
            begun.result()
    assert list((tmp_path / "out").iterdir()) == []


def test_a_reader_that_hangs_is_ended_in_time(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "x.pth")
    with reading(tmp_path / "x.pth", tmp_path / "out") as begun:
        os.kill(begun.pid, signal.SIGSTOP)
        with pytest.raises(SourceError, match=r"^x\.pth was not read within 0\.2 s: fetch or save it again$"):
            begun.result(timeout=0.2)
        assert not Path(f"/proc/{begun.pid}").exists()  # ended and reaped


@linux
def test_a_reader_ends_with_its_parent(tmp_path: Path) -> None:
    """Even while it hangs: nobody ever writes into this pipe."""
    os.mkfifo(tmp_path / "never")
    script = (
        "import sys; from pathlib import Path; from flambeau.builder.sandbox import reader\n"
        "folder = Path(sys.argv[1]); begun = reader.start(folder / 'never', folder=folder, where=())\n"
        "print(begun.pid, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", script, tmp_path], stdin=-1, stdout=-1, text=True) as parent:
        assert parent.stdout is not None
        sentinel = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
    try:
        assert select.select([sentinel], [], [], 10)[0]
    finally:
        os.close(sentinel)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("nonsense", "was taken over by it, and was killed"),
        ('{"type":"run","what":"me"}', "was taken over by it, and was killed"),
        ("x" * 100_000, "was taken over by it, and was killed"),
        ('{"type":"read","sandbox":"all is well"}', "did not write safetensors"),
        ('{"type":"refused","reason":"no \\u001b[2J good"}', r"^no \?\[2J good$"),
        ("", "ended with exit code 0 and no message"),
    ],
)
def test_a_reader_that_was_taken_over_is_not_believed_t32(tmp_path: Path, said: str, why: str) -> None:
    (tmp_path / "x.pth").write_bytes(b"")
    output = tmp_path / "out"
    output.write_bytes(b"no safetensors")
    script = "import sys; sys.stdout.write(sys.argv[1]); sys.stdout.flush()"
    process = subprocess.Popen([sys.executable, "-S", "-c", script, said], stdout=subprocess.PIPE)
    with pytest.raises(SourceError, match=why):
        FileReading(tmp_path / "x.pth", output, process).result()
    assert not output.exists()


@pytest.mark.parametrize("version", ["2.9.1", "1.13.0+cu117", "2.5.1"])
def test_an_older_torch_reads_nothing_t01(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.raises(SetupError, match="CVE-2026-24747"):
        require_torch()


def test_without_torch_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SetupError, match=r"pip install '\S+\[torch\]'"):
        require_torch()


def test_nothing_is_unpickled_but_weights_t01() -> None:
    """The one exception stands in the file for formats that carry code, behind --allow-code."""
    for file in Path(reader.__file__).parents[1].rglob("*.py"):
        calls = [ast.unparse(each) for each in ast.walk(ast.parse(file.read_text())) if isinstance(each, ast.Call)]
        assert not [call for call in calls if call.startswith(("pickle.", "_pickle.", "dill.", "joblib."))], file
        loads = [call for call in calls if call.startswith("torch.load(")]
        assert all("weights_only=True" in call for call in loads) or file.name == "programs.py", file
