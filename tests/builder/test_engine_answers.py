"""Every engine answers as eager PyTorch does, or says why it cannot."""

import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from safetensors.numpy import save_file

from flambeau import engines
from flambeau.answers import agreement
from flambeau.bundle import storage
from flambeau.bundle.storage import Bundle, split_probes
from flambeau.errors import DeviceError, EngineError
from flambeau.runners.base import ReplicaSpec
from flambeau.types import TensorSpec
from tests.support.golden import manifest

NEEDS_OPENVINO = pytest.mark.skipif(not find_spec("openvino"), reason="`make test-slow` installs OpenVINO")
OPENVINO = pytest.param("openvino", marks=NEEDS_OPENVINO)
IMAGES = (TensorSpec("input", "float32", (3, 32, 32)),)
CLASSES = (TensorSpec("output", "float32", (4,)),)


def spec(opened: Bundle, engine: str) -> ReplicaSpec:
    return ReplicaSpec(bundle=str(opened.path), name="net", engine=engine, device="cpu", threads=1, allow_code=True,
                       threshold=None, max_image_pixels=1_000_000)  # fmt: skip


def rows(count: int, spec: TensorSpec) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, *spec.shape)).astype(spec.dtype)


# Agreement


@pytest.mark.parametrize("engine", ["onnxruntime", OPENVINO, "eager"])
def test_an_engine_answers_batches_of_any_size_as_eager_does(default_bundle: Bundle, engine: str) -> None:
    """Far within the tolerance: a processor with bfloat16 would take it, and be thousand times further off."""
    probes, eager = split_probes(default_bundle.probes())
    loaded = engines.load(default_bundle, engine, device="cpu", threads=1, allow_code=False)
    try:
        for pattern in ([0], [1, 0, 1], [0, 1]):
            found = loaded.run({"input": probes["input"][pattern]})["output"]
            assert agreement.measure(eager["output"][pattern], found, classes=True).difference < 1e-5
    finally:
        loaded.close()


@NEEDS_OPENVINO
def test_an_answer_of_openvino_outlives_the_next_one(default_bundle: Bundle) -> None:
    probes, eager = split_probes(default_bundle.probes())
    loaded = engines.load(default_bundle, "openvino", device="cpu", threads=1, allow_code=False)
    first = loaded.run({"input": probes["input"][:1]})["output"]
    loaded.run({"input": probes["input"][1:]})
    assert agreement.measure(eager["output"][:1], first, classes=True).holds


@NEEDS_OPENVINO
def test_importing_openvino_tells_nobody() -> None:
    """It reports each import to a server otherwise. The package that does is there for others as before."""
    program = """
        import sys, threading
        asked = []
        sys.addaudithook(lambda event, _: asked.append(event) if event.startswith("socket.") else None)
        import flambeau.engines.openvino
        for thread in threading.enumerate():
            if thread is not threading.main_thread():
                thread.join(60)
        assert not [name for name in sys.modules if name.startswith("openvino_telemetry")]
        print(asked)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@NEEDS_OPENVINO
def test_openvino_computes_on_the_cpu_only() -> None:
    assert engines.resolve_device("openvino", "auto") == "cpu"
    with pytest.raises(DeviceError, match="openvino computes on the CPU here, not on 'cuda:0'"):
        engines.resolve_device("openvino", "cuda:0")


@pytest.mark.parametrize("engine", ["onnxruntime", OPENVINO])
def test_a_graph_with_its_one_row_built_in_is_computed_row_by_row(engine: str, tmp_path: Path) -> None:
    stuck = helper.make_node("Reshape", ["x", "shape"], ["y"])
    shape = helper.make_tensor("shape", TensorProto.INT64, [2], [1, 4])
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in (("x", [1, 2, 2]), ("y", [1, 4]))
    ]
    graph = helper.make_graph([stuck], "stuck", ends[:1], ends[1:], [shape])
    onnx.save(
        helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / storage.ONNX
    )
    given, answered = TensorSpec("x", "float32", (2, 2)), TensorSpec("y", "float32", (4,))
    save_file({}, tmp_path / storage.PROBES)
    storage.write_manifest(tmp_path, manifest(engine="onnxruntime", inputs=(given,), outputs=(answered,)))
    loaded = engines.load(storage.read(tmp_path), engine, device="cpu", threads=1, allow_code=False)
    batch = rows(3, given)
    assert np.array_equal(loaded.run({"x": batch})["y"], batch.reshape(3, 4))


@pytest.mark.parametrize("engine", ["onnxruntime", OPENVINO])
def test_a_bundle_without_a_graph_names_the_engine_that_is_left(engine: str, tmp_path: Path) -> None:
    save_file({}, tmp_path / storage.PROBES)
    storage.write_manifest(tmp_path, manifest(export_error="it cannot be exported: no"))
    with pytest.raises(EngineError, match=r"has no ONNX graph \(it cannot be exported: no\): take --engine eager"):
        engines.load(storage.read(tmp_path), engine, device="cpu", threads=1, allow_code=False)


@NEEDS_OPENVINO
def test_a_graph_that_openvino_cannot_read_is_an_error_of_the_engine(tmp_path: Path) -> None:
    (tmp_path / storage.ONNX).write_bytes(b"no graph")
    save_file({}, tmp_path / storage.PROBES)
    storage.write_manifest(tmp_path, manifest(engine="openvino"))
    with pytest.raises(EngineError, match=r"openvino cannot load bundle net: .*: take --engine onnxruntime"):
        engines.load(storage.read(tmp_path), "openvino", device="cpu", threads=1, allow_code=False)
