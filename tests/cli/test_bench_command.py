"""`flambeau bench`: a row for every engine, and which one auto would take."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from flambeau.bundle.storage import Bundle
from tests.support.server import run_anew

pytestmark = pytest.mark.long

SECOND = "openvino" if find_spec("openvino") else "eager"
QUICK = ("--rounds", "1", "--seconds", "0.01")


def test_the_table_has_a_row_for_each_engine_and_a_verdict(default_bundle: Bundle) -> None:
    done = run_anew("bench", default_bundle.path, "--engine", "onnxruntime", "--engine", SECOND, *QUICK)
    assert done.returncode == 0, done.stderr
    head, columns, first, second, last = done.stdout.splitlines()
    assert head.startswith("efficientnet_lite0: milliseconds an image, 1 thread")
    assert columns.split() == [
        "engine", *(word for batch in "1248" for word in ("batch", batch)), "difference", "top", "class", "memory",
        "load", "device",
    ]  # fmt: skip
    assert [line.split()[0] for line in (first, second)] == ["onnxruntime", SECOND]
    assert all(" same " in line for line in (first, second))
    assert last.startswith(("auto takes onnxruntime: ", f"auto takes {SECOND}: "))


def test_json_has_everything_and_an_engine_that_fails_its_reason(default_bundle: Bundle) -> None:
    names = ("--engine", "onnxruntime", "--engine", "onnxruntime-int8")
    done = run_anew("bench", default_bundle.path, *names, *QUICK, "--threads", "1", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    good, bad = found["engines"]
    assert good["ms"].keys() == {"1", "2", "4", "8"}
    assert good["agreement"]["difference"] < 1e-5
    assert "has no quantised graph" in bad["error"]
    assert (found["auto"], found["threads"], found["rounds"]) == ("onnxruntime", 1, 1)
    assert "no other engine that was tried is fit" in found["why"]


def test_a_python_model_has_nothing_to_measure(double_py: Path) -> None:
    done = run_anew("bench", f"{double_py}:Double", "--allow-code", *QUICK)
    assert done.returncode == 78
    assert "is a Python model, and has no engine" in done.stderr
