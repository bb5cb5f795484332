"""`flambeau predict`: files and tables in, rows out, in order, whatever is interrupted or killed on the way."""

import contextlib
import csv
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet
import pytest

from flambeau.bundle.storage import Bundle
from tests.support.photographs import encoded, photograph
from tests.support.server import FLAMBEAU, STARTUP_SECONDS
from tests.support.warm import run_with_torch

CAT, COFFEE = "n02124075", "n07920052"

STALLS = '''
import os
import signal
from pathlib import Path

import flambeau


class Stalls(flambeau.PythonModel):
    """Notes what it computes, and stops at 20 until there is a file of the name `open`."""

    def load(self):
        pass

    def predict(self, batch):
        return [self.answer(item) for item in batch]

    def answer(self, item):
        with open("computed", "a") as file:
            file.write(f"{item}\\n")
        if item == 20 and not Path("open").exists():
            Path("note").write_text(str(os.getpid()))
            Path("note").rename("stalled")
            signal.pause()
        return item * 2


class Crashes(flambeau.PythonModel):
    """Ends its process over numbers below zero."""

    def load(self):
        pass

    def predict(self, batch):
        for item in batch:
            if item < 0:
                os._exit(1)
        return batch
'''


def jsonl(text: str) -> list[dict[str, object]]:
    """The rows of a JSONL file."""
    return [json.loads(line) for line in text.splitlines()]


def csv_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# Images


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, cat: bytes) -> Path:
    """A folder as people have them: pictures in folders, broken ones, others, and tables that name pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    for name in ("photos/deep/er", "photos/.hidden", "more"):
        (folder / name).mkdir(parents=True)
    (folder / "photos/b.png").write_bytes(cat)
    (folder / "photos/a.JPG").write_bytes(encoded(photograph("coffee"), "JPEG"))
    (folder / "photos/deep/er/c.png").write_bytes(cat)
    (folder / "photos/deep/broken.jpg").write_bytes(cat[:5000])
    (folder / "photos/deep/empty.png").touch()
    (folder / "photos/deep/loop").symlink_to(folder / "photos")
    (folder / "photos/notes.txt").write_text("not a picture")
    (folder / "photos/.hidden/d.png").write_bytes(cat)
    (folder / "more/x.dat").write_bytes(cat)
    (folder / "more/caf\udce9.png").write_bytes(cat)  # a name that is not UTF-8
    (folder / "more/table.csv").write_text("label,Path\nkitten,x.dat\nnothing,absent.png\n")
    (folder / "more/table.jsonl").write_text('{"image": "../photos/b.png"}\n"x.dat"\n{"picture": "x.dat"}\n')
    return folder


def test_every_way_to_name_images_gives_rows_in_order(pictures: Path, default_bundle: Bundle) -> None:
    """Rows of a list on standard input come as soon as they are answered, and not when the list ends."""
    arguments = ("-", "photos", "more/*.dat", "more/table.csv", "more/table.jsonl", "missing.png")
    command = [*FLAMBEAU, "predict", str(default_bundle.path), *arguments, "--top-k", "2", "--probabilities"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=pictures
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"photos/b.png\n")
    process.stdin.flush()
    first = process.stdout.readline()
    others, told = process.communicate(b"more/caf\xe9.png\nphotos/deep/er\n", timeout=100)
    assert process.returncode == 3, told
    assert b"passed over: 1 .txt, 1 hidden, 1 links to folders" in told
    assert b"15 rows, 5 errors" in told
    rows = jsonl((first + others).decode())
    assert [(row["input"], row["class_id"] or row["code"]) for row in rows] == [
        ("photos/b.png", CAT),
        ("more/caf\\xe9.png", CAT),
        ("photos/deep/er/c.png", CAT),
        ("photos/a.JPG", COFFEE),
        ("photos/b.png", CAT),
        ("photos/deep/broken.jpg", "image_undecodable"),
        ("photos/deep/empty.png", "empty_body"),
        ("photos/deep/er/c.png", CAT),
        ("more/x.dat", CAT),
        ("x.dat", CAT),
        ("absent.png", "missing_file"),
        ("../photos/b.png", CAT),
        ("x.dat", CAT),
        ("more/table.jsonl:3", "input_rejected"),
        ("missing.png", "missing_file"),
    ]
    assert len({tuple(row) for row in rows}) == 1  # the same keys in all
    best = rows[0]
    vector = best["probabilities"]
    assert isinstance(vector, list)
    assert sum(vector) == pytest.approx(1, abs=1e-5)
    assert best["class_index"] == vector.index(max(vector)) == 285
    assert best["probability"] == max(vector)
    assert [each["class_name"] for each in best["predictions"]] == ["Egyptian_cat", "tabby"]  # type: ignore[attr-defined]
    assert best["recognised"] is True
    assert "no field path, file, image or filename" in str(rows[13]["error"])


@pytest.mark.long
def test_parquet_holds_what_jsonl_holds_and_is_written_once(
    pictures: Path, default_bundle: Bundle, tmp_path: Path
) -> None:
    command = ("predict", default_bundle.path, "photos", "--top-k", 3, "--probabilities", "-o")
    for name in ("rows.jsonl", "rows.parquet"):
        done = run_with_torch(*command, tmp_path / name, cwd=pictures)
        assert done.returncode == 3, done.stderr
    table = pyarrow.parquet.read_table(tmp_path / "rows.parquet")
    expected = jsonl((tmp_path / "rows.jsonl").read_text())
    assert str(table.schema.field("probabilities").type) == "list<element: float>"
    found = table.to_pylist()
    assert [each["input"] for each in found] == [each["input"] for each in expected]
    assert len(found) == 5
    for row, other in zip(found, expected, strict=True):  # not the numbers alone: the replicas may batch otherwise
        assert row.keys() == other.keys()
        assert row["class_id"] == other["class_id"]
        assert row["code"] == other["code"]
        assert (row["probabilities"] is None) == (other["probabilities"] is None)
        if row["probabilities"] is not None:
            assert row["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)
            assert row["probability"] == max(row["probabilities"])
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"rows.jsonl", "rows.jsonl.run.json", "rows.parquet", "rows.parquet.run.json"}
    before = (tmp_path / "rows.parquet").stat().st_mtime_ns
    again = run_with_torch(*command, tmp_path / "rows.parquet", cwd=pictures)
    assert again.returncode == 3
    assert "rows.parquet is complete: 5 rows, 2 errors" in again.stderr
    assert (tmp_path / "rows.parquet").stat().st_mtime_ns == before


# Numbers


def test_numbers_from_tables_into_csv_and_onto_the_screen(double_py: Path, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"input": 3}\n4\n\n{"input": "x"}\nnonsense\n[1, 2]\n')
    (tmp_path / "in.csv").write_text("id;value\na;1,5\nb;7\nc;-2.5\n")
    command = ("predict", f"{double_py}:Double", "--allow-code", "in.jsonl", "in.csv", "--columns", "value")
    done = run_with_torch(*command, "-o", "out.csv", cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert [tuple(row.values())[:2] for row in csv_rows(tmp_path / "out.csv")] == [
        ("in.jsonl:1", "6.0"),
        ("in.jsonl:2", "8.0"),
        ("in.jsonl:4", ""),
        ("in.jsonl:5", ""),
        ("in.jsonl:6", ""),
        ("in.csv:2", ""),
        ("in.csv:3", "14.0"),
        ("in.csv:4", "-5.0"),
    ]
    errors = [(row["code"], row["error"]) for row in csv_rows(tmp_path / "out.csv") if row["error"]]
    assert errors == [
        ("input_rejected", "input must be a number, not str"),
        ("invalid_json", "the line is not JSON: invalid character (byte 1)"),
        ("input_rejected", "input must be a number, not list"),
        ("input_rejected", "column value holds '1,5', which is not a number"),
    ]
    (tmp_path / "in.csv").write_text("id;value\na;1\n")
    refused = run_with_torch(*command, "-o", "out.csv", cwd=tmp_path)
    assert refused.returncode == 1
    assert "out.csv was begun before in.csv was changed" in refused.stderr
    seen = run_with_torch(*command, "--format", "table", cwd=tmp_path)
    assert [line.split() for line in seen.stdout.splitlines()][:3] == [
        ["input", "answer"],
        ["in.jsonl:1", "6.0"],
        ["in.jsonl:2", "8.0"],
    ]


# What is interrupted


@contextlib.contextmanager
def running(*arguments: object, cwd: Path) -> Iterator["subprocess.Popen[str]"]:
    """A `flambeau predict` that is at work. It is killed in the end if it still runs."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background process would ignore it
    process = subprocess.Popen(
        [*FLAMBEAU, "predict", *map(str, arguments)], cwd=cwd, text=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    signal.signal(signal.SIGINT, before)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_until(holds: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    """Return when it holds; raise when the process ends before, or the time is over."""
    deadline = time.monotonic() + STARTUP_SECONDS
    while not holds():
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.02)
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline


@pytest.mark.long
def test_a_run_goes_on_after_kill_9_and_ctrl_c_and_the_death_of_a_worker(tmp_path: Path) -> None:
    """Nothing that was written is computed again, nothing is lost, and nothing of another run is mixed in."""
    (tmp_path / "stalls.py").write_text(STALLS)
    (tmp_path / "in.jsonl").write_text("".join(f"{number}\n" for number in range(40)))
    # batches that end before 20: one with it and all before it would be given up first, after a minute, and tried anew
    command = ("stalls.py:Stalls", "--allow-code", "in.jsonl", "-o", "out.csv", "--max-batch-size", "5")
    stalled, out, computed = tmp_path / "stalled", tmp_path / "out.csv", tmp_path / "computed"

    def is_stalled() -> bool:  # of the two batches before 20 not all may be written, but most are
        return stalled.exists() and out.read_bytes().count(b"\n") > 5

    with running(*command, cwd=tmp_path) as process:
        wait_until(is_stalled, process)
        busy = run_with_torch("predict", *command, cwd=tmp_path)
        assert busy.returncode == 1
        assert "out.csv is being written by another run" in busy.stderr
        process.kill()
        process.wait()
    written = [row["output"] for row in csv_rows(out)]
    kept = len(written)
    assert 5 <= kept <= 20
    out.write_bytes(out.read_bytes() + b"in.jsonl:99,1")  # as if it had been killed within a write

    for arguments, sentence in (
        (("stalls.py:Crashes", *command[1:]), "out.csv was begun with another model (Stalls "),
        ((*command, "--column", "x"), "out.csv was begun with --column not set, and now it is x"),
    ):
        refused = run_with_torch("predict", *arguments, cwd=tmp_path)
        assert refused.returncode == 1
        assert sentence in refused.stderr
        assert "--overwrite" in refused.stderr

    stalled.unlink()
    with running(*command, cwd=tmp_path) as process:
        wait_until(stalled.exists, process)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=30)
        assert process.returncode == 130
        assert f"out.csv has {kept} rows already: going on from there" in told
        assert "run the same command to resume" in told

    stalled.unlink()
    with running(*command, cwd=tmp_path) as process:
        wait_until(stalled.exists, process)
        (tmp_path / "open").touch()
        os.kill(int(stalled.read_text()), signal.SIGKILL)
        _, told = process.communicate(timeout=60)
        assert process.returncode == 0, told
        assert "worker lost" in told
        assert "40 rows, 0 errors" in told
    assert [(row["input"], row["output"]) for row in csv_rows(out)] == [
        (f"in.jsonl:{n + 1}", str(2 * n)) for n in range(40)
    ]
    everything = computed.read_text().split()  # in no order: two workers compute, and rows are written in order
    again = [output for output in written if everything.count(str(int(output) // 2)) != 1]
    assert not again, "rows that were written were computed again"

    done = run_with_torch("predict", *command, cwd=tmp_path)
    assert done.returncode == 0
    assert "out.csv is complete: 40 rows, 0 errors" in done.stderr
    assert computed.read_text().split() == everything


@pytest.mark.long
def test_inputs_that_crash_their_worker_are_errors_and_no_other_is_lost(tmp_path: Path) -> None:
    """Five crashes in a row make the model unavailable for a moment: what waited then is asked again."""
    (tmp_path / "stalls.py").write_text(STALLS)
    (tmp_path / "in.csv").write_text("".join(f"{number}\n" for number in (-1, -2, -3, -4, *range(15))))
    done = run_with_torch(
        "predict", "stalls.py:Crashes", "--allow-code", "in.csv", "--log-level", "error", cwd=tmp_path
    )
    assert done.returncode == 3, done.stderr
    assert "the model only crashes: it is unavailable" in done.stderr
    rows = jsonl(done.stdout)
    assert [row["code"] for row in rows] == ["model_crashed"] * 4 + [None] * 15
    assert [row["output"] for row in rows[4:]] == [*range(15)]
