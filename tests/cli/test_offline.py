"""What `flambeau predict` reads, writes and refuses, without a model at work: inputs, rows and their files."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from flambeau.bundle.storage import Bundle
from flambeau.cli import main
from flambeau.errors import RequestError, SetupError
from flambeau.offline import parquet
from flambeau.offline.entries import Wanted, WantedKind
from flambeau.offline.inputs import Inputs
from flambeau.offline.rows import CsvLines, Layout, WrittenRow
from flambeau.system.machine import pip_install
from flambeau.types import Classification, Label, Outcome, Payload, Scored


def read_table(table: Path, kind: WantedKind = "tensor", **columns: object) -> list[object]:
    """The entries of a table: the file, the JSON, or the error of each."""
    inputs = Inputs([str(table)], Wanted(kind=kind, **columns), listed=pytest.fail)  # type: ignore[arg-type]
    entries = list(inputs)
    assert inputs.count() == len(entries)
    contents = (each.content for each in entries)
    return [json.loads(each.data) if isinstance(each, Payload) else each for each in contents]


@pytest.mark.parametrize(
    ("text", "columns", "expected"),
    [
        (b"1,2\n3,4\n", {}, [[1, 2], [3, 4]]),  # no header
        (b"a,b\n3,4.5\n", {}, [[3, 4.5]]),
        (b"\xef\xbb\xbfa,b,c\r\n1,2,3\r\n", {"columns": ("c", "a")}, [[3, 1]]),
        (b"a\tb\n 1 \t-2e3\n\n\n", {}, [[1, -2000.0]]),
        (b"a\n5\n", {}, [5]),  # one column is a number, not a list of one
        (b"a;b\n1;2\n", {"column": "b"}, [2]),
        (b"a,b\n1,x\n2,\n3,nan\n4,1_0\n5\n6,7,8\n9,9\n", {}, [*["input_rejected"] * 6, [9, 9]]),
        (b'a,b\n1,"2\n3,4\n', {}, ["input_rejected"]),  # a quote that is never closed
        (b"", {}, []),
        (b"a,b\n", {}, []),
    ],
)
def test_csv_numbers(tmp_path: Path, text: bytes, columns: dict[str, Any], expected: list[object]) -> None:
    (tmp_path / "in.csv").write_bytes(text)
    found = read_table(tmp_path / "in.csv", **columns)
    assert [each.code if isinstance(each, RequestError) else each for each in found] == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('text\n"two\nlines"\n"a ""word""\nmore"\n', ["two\nlines", 'a "word"\nmore']),
        ('text\n"good" she said\nfine\n', ["good she said", "fine"]),  # as every reader has it
        ('text\nfine\n"open\ngood\nbad\n', ["fine", "line 3 makes one row of the lines to 5"]),
        ('text\n"open\ngood\n"bad" film\nfine\n', ["line 2 makes one row of the lines to 4", "fine"]),
    ],
)
def test_a_stray_quote_does_not_make_one_text_of_many_in_silence(
    tmp_path: Path, text: str, expected: list[str]
) -> None:
    (tmp_path / "in.csv").write_text(text)
    found = [str(each) for each in read_table(tmp_path / "in.csv", "text")]
    assert len(found) == len(expected)
    assert all(right in told for right, told in zip(expected, found, strict=True)), found


@pytest.mark.parametrize(
    ("line", "column", "expected"),
    [
        (b'{"input": [1, 2], "id": 7}', None, [1, 2]),
        (b'{"x": {"y": [1]}, "input": 2}', "x", {"y": [1]}),
        (b'  {"age": 3}', None, {"age": 3}),  # without `input` the object itself is the input
        (b"null", None, None),
        (b'{"age": 3}', "x", "input_rejected"),
        (b"[1,", None, "invalid_json"),
        (b"[NaN]", None, "invalid_json"),
        (b'"\xff"', None, "invalid_json"),
        (b"[" * 100_000, None, "json_too_deep"),
    ],
)
def test_json_lines(tmp_path: Path, line: bytes, column: str | None, expected: object) -> None:
    (tmp_path / "in.jsonl").write_bytes(line + b"\n1\n")
    [found, last] = read_table(tmp_path / "in.jsonl", "python", column=column)
    assert (found.code if isinstance(found, RequestError) else found) == expected
    assert last == 1


def test_a_table_without_the_column_is_refused_before_any_work(tmp_path: Path) -> None:
    table = tmp_path / "in.csv"
    table.write_text("picture,label\na.png,cat\n")
    assert read_table(table, "image", column="picture") == [tmp_path / "a.png"]
    for wanted in (Wanted(kind="image"), Wanted(kind="tensor", columns=("x",))):
        with pytest.raises(SetupError, match=r"in\.csv cannot be used: there is no column .*(--column|picture, label)"):
            Inputs([str(table)], wanted, listed=pytest.fail).count()


@pytest.mark.parametrize(
    ("text", "columns", "told"),
    [
        ("0,1,2\n5.5,3,1\n", {}, "its first line is 0,1,2, as pandas writes .* --columns 0,1,2 if it is a header"),
        ("a,b,a\n1,2,3\n", {"columns": ("a", "b")}, "2 columns are called a: give each a name of its own"),
    ],
)
def test_a_header_that_may_mean_two_things_is_asked_about(
    tmp_path: Path, text: str, columns: dict[str, Any], told: str
) -> None:
    (tmp_path / "in.csv").write_text(text)
    with pytest.raises(SetupError, match=told):
        Inputs([str(tmp_path / "in.csv")], Wanted(kind="tensor", **columns), listed=pytest.fail).count()


def test_both_ways_that_the_question_names_are_taken(tmp_path: Path) -> None:
    table = tmp_path / "in.csv"
    table.write_text("0,1\n5.5,3\n")
    assert read_table(table, columns=("0", "1")) == [[5.5, 3]]
    table.write_text("a,b\n0,1\n5.5,3\n")
    assert read_table(table) == [[0, 1], [5.5, 3]]


def test_a_folder_gives_what_the_model_takes_and_never_our_own_files(tmp_path: Path) -> None:
    for name in ("b.csv", "a.jsonl", "out.csv", "c.png"):
        (tmp_path / name).write_text("1\n")
    own = frozenset({(tmp_path / "out.csv").resolve()})

    def names(kind: WantedKind, *arguments: str) -> list[str]:
        inputs = Inputs(arguments, Wanted(kind=kind), own=own, listed=pytest.fail)
        return [each.name.removeprefix(f"{tmp_path}/") for each in inputs]

    folder = str(tmp_path)
    assert names("tensor", folder) == ["a.jsonl:1", "b.csv:1"]
    assert names("python", folder) == ["a.jsonl:1", "b.csv:1", "c.png"]
    assert names("image", folder) == names("image", f"{folder}/**") == ["c.png"]
    assert names("tensor", f"{folder}/*.csv", f"{folder}/a.jsonl") == ["b.csv:1", "a.jsonl:1"]
    with pytest.raises(SetupError, match=r"no file matches .*absent"):
        names("image", f"{folder}/absent*")


def test_every_row_of_csv_is_one_line_that_can_be_read_back() -> None:
    layout = Layout(task="classification", top_k=3)
    lines = CsvLines(layout)
    two = tuple(Scored(index, Label(f"n{index}", 'a "b",\nc'), 0.5) for index in (4, 7))
    rows = [
        layout.row("x, y.png", Outcome(Classification(two, threshold=0.6))),
        layout.row("bad.png", Outcome(RequestError("no, it\ncannot", code="image_undecodable"))),
    ]
    header, *written, rest = (lines.header + lines.encode(rows)).split(b"\n")
    assert rest == b""
    assert [lines.read(line) for line in written] == [
        WrittenRow("x, y.png"),
        WrittenRow("bad.png", "image_undecodable"),
    ]
    cells = dict(zip(header.decode().split(","), next(csv.reader([written[0].decode()])), strict=True))
    assert cells["class_name_2"] == 'a "b",\\nc'
    assert (cells["class_index_2"], cells["class_index_3"], cells["recognised"]) == ("7", "", "false")
    with pytest.raises(ValueError, match="argument 2"):
        lines.read(b"x.png,n4")


@pytest.mark.parametrize(
    ("outputs", "kind", "expected"),
    [
        ([b"1", b"2.5", b"null"], "double", [1.0, 2.5, None]),
        ([b"[1, 2]", b"[0.5, null]"], "list<element: double>", [[1, 2], [0.5, None]]),
        ([b'"cat"', b'"dog"'], "string", ["cat", "dog"]),
        ([b'{"a": 1}', b"[1]", b'"x"'], "string", ['{"a":1}', "[1]", "x"]),  # nothing fits all: JSON
        ([b"[1, [2]]"], "string", ["[1,[2]]"]),
    ],
)
def test_parquet_has_the_type_that_fits_all_outputs(
    tmp_path: Path, outputs: list[bytes], kind: str, expected: list[object]
) -> None:
    layout = Layout(task="python")
    rows = [b'{"input":"x","output":%b,"error":null,"code":null}\n' % output for output in outputs]
    (tmp_path / "rows.jsonl").write_bytes(b"".join(rows))
    parquet.write(tmp_path / "out.parquet", tmp_path / "rows.jsonl", layout)
    table = pyarrow.parquet.read_table(tmp_path / "out.parquet")
    assert str(table.schema.field("output").type) == kind
    assert table["output"].to_pylist() == expected
    assert list(parquet.written(tmp_path / "out.parquet")) == [WrittenRow("x")] * len(outputs)


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["photos"], 2, "name a SOURCE and at least one INPUT"),
        (["default", "x.png", "-o", "rows.xlsx"], 78, "-o rows.xlsx does not tell its format"),
        (["default", "x.png", "-o", "absent/rows.csv"], 78, "-o absent/rows.csv cannot be a file"),
        (["default", "x.png", "--format", "parquet"], 78, "--format parquet needs a file"),
        (["default", "x.png", "-o", "rows.csv", "--probabilities"], 78, "--probabilities are too many for a csv"),
        (["default", "x.png", "-o", "rows.parquet"], 1, pip_install("parquet")),
        (["default", "x.png", "--columns", "a"], 1, "--columns has no effect on efficientnet_lite0"),
        (["default", "x.png", "--column", "a"], 1, "--column has no effect on x.png: it is for tables (.csv, .jsonl"),
        (["default", ".", "--column", "a"], 1, "--column has no effect on .: it is for tables (.csv, .jsonl"),
        (
            ["default", "x.png", "-o", "precious.csv"],
            1,
            "precious.csv exists, and there is no record that `flambeau predict`",
        ),
        (["default", "precious.csv", "-o", "precious.csv", "--overwrite"], 78, "is both read and written"),
        (["default", "*.gif"], 1, "no file matches *.gif"),
        (["default", "empty"], 1, "there is nothing to predict in empty"),
        (["default", "empty", "-o", "rows.csv"], 1, "there is nothing to predict in empty"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_be_done_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], default_bundle: Bundle,
    arguments: list[str], code: int, sentence: str,
) -> None:  # fmt: skip
    """In this process: each of these ends before there is a worker."""
    (tmp_path / "precious.csv").write_text("path\nx.png\n")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["flambeau", "predict", *arguments])
    monkeypatch.setattr("flambeau.offline.parquet.find_spec", lambda name: None)
    monkeypatch.setattr("flambeau.telemetry.logs.configure", lambda *_: None)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == code
    last = capfd.readouterr().err.splitlines()[-1]
    assert sentence in last
    assert (tmp_path / "precious.csv").read_text() == "path\nx.png\n"
    assert {path.name for path in tmp_path.iterdir()} <= {"precious.csv", "empty"}


@pytest.mark.long
@pytest.mark.parametrize("command", ["{} --format jsonl > /dev/full", "{} -o rows.jsonl"], ids=["stream", "file"])
def test_rows_that_find_no_room_are_told_in_one_line_a19(tmp_path: Path, double_py: Path, command: str) -> None:
    """A device that is full, and a limit on the size of files."""
    (tmp_path / "items.jsonl").write_text("".join(f'{{"input": {number}}}\n' for number in range(200)))
    predict = command.format(f"{sys.executable} -m flambeau predict {double_py}:Double --allow-code items.jsonl")
    limit = "" if "/dev/full" in command else "export PYTHONDONTWRITEBYTECODE=1; ulimit -f 1; "
    done = subprocess.run(
        ["bash", "-c", limit + predict], cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "has no space left: make room" in done.stderr.splitlines()[-1]
