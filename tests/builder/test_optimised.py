"""The optimised graph: the same answers, weights that are mapped, and only where it was made for."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from flambeau import engines
from flambeau.answers import agreement
from flambeau.answers.agreement import Agreement
from flambeau.builder.optimise import optimise
from flambeau.bundle import storage
from flambeau.bundle.storage import ONNX, OPTIMISED_ONNX, Bundle, Optimised, split_probes
from flambeau.engines import base
from flambeau.engines.base import Engine
from flambeau.engines.onnxruntime import onnxruntime, open_session
from flambeau.errors import BundleError
from flambeau.runners.base import ReplicaSpec
from flambeau.runners.replica import open_replica
from flambeau.settings.source import SourceOptions
from flambeau.sources import build_cache
from flambeau.types import Tensors

WEIGHTS = f"{OPTIMISED_ONNX}.data"


@contextmanager
def loaded(opened: Bundle, *, alone: bool = False) -> Iterator[Engine]:
    engine = engines.load(opened, "onnxruntime", device="cpu", threads=1, allow_code=False, alone=alone)
    yield engine
    engine.close()


@pytest.fixture
def copied(default_bundle: Bundle, tmp_path: Path) -> Path:
    shutil.copytree(default_bundle.path, tmp_path / "copied")
    return tmp_path / "copied"


def elsewhere(folder: Path) -> Bundle:
    """The bundle as if another machine had built it, and without the graph that only that one may read."""
    for file in folder.glob(f"{OPTIMISED_ONNX}*"):
        file.unlink()
    manifest = storage.read(folder, whole=False).manifest
    there = Optimised(onnxruntime="1.0", processor="another")
    storage.write_manifest(folder, msgspec.structs.replace(manifest, optimised=there))
    return storage.read(folder)


def mapped(opened: Bundle) -> bool:
    return str(opened.path / WEIGHTS) in Path("/proc/self/maps").read_text()


def test_a_session_maps_the_weights_of_the_optimised_graph(default_bundle: Bundle) -> None:
    assert base.may_run_optimised(default_bundle.manifest)
    assert base.may_run_optimised(default_bundle.manifest, version=onnxruntime.__version__)
    assert not base.may_run_optimised(default_bundle.manifest, version="1.0.0")
    with loaded(default_bundle), loaded(default_bundle, alone=True):
        assert mapped(default_bundle)


def test_it_answers_as_the_plain_graph_does(default_bundle: Bundle, copied: Path) -> None:
    inputs, _ = split_probes(default_bundle.probes())
    rows = {name: np.resize(array, (3, *array.shape[1:])) for name, array in inputs.items()}
    with loaded(default_bundle) as ours, loaded(elsewhere(copied)) as plain:
        for batch in (rows, {name: array[:1] for name, array in rows.items()}):
            [(name, expected)] = plain.run(batch).items()
            np.testing.assert_allclose(ours.run(batch)[name], expected, rtol=1e-4, atol=1e-5)


def test_on_another_machine_the_plain_graph_serves(copied: Path) -> None:
    opened = elsewhere(copied)
    inputs, eager = split_probes(opened.probes())
    with loaded(opened) as engine:
        assert not mapped(opened)
        [(name, expected)] = eager.items()
        assert agreement.measure(expected, engine.run(inputs)[name], classes=True).holds


def test_the_plain_graph_is_optimised_when_it_is_loaded_and_the_optimised_one_is_not(default_bundle: Bundle) -> None:
    level = onnxruntime.GraphOptimizationLevel
    plain = open_session(default_bundle.member(ONNX))
    ours = open_session(default_bundle.member(OPTIMISED_ONNX), optimised=True)
    assert plain.get_session_options().graph_optimization_level == level.ORT_ENABLE_ALL
    assert ours.get_session_options().graph_optimization_level == level.ORT_DISABLE_ALL


def test_a_worker_refuses_an_optimised_graph_that_was_changed(copied: Path) -> None:
    contents = bytearray((copied / WEIGHTS).read_bytes())
    contents[-1] ^= 1
    (copied / WEIGHTS).write_bytes(contents)
    spec = ReplicaSpec(bundle=str(copied), name="net", engine="onnxruntime", device="cpu", threads=1, allow_code=False,
                       threshold=None, max_image_pixels=1_000_000)  # fmt: skip
    with pytest.raises(BundleError, match=r"optimised\.onnx\.data of bundle .* was changed since it was built"):
        open_replica(spec)


def by_classes(expected: Tensors, found: Tensors) -> Agreement:
    [name] = expected
    return agreement.measure(expected[name], found[name], classes=True)


def test_one_that_disagrees_is_left_out(default_bundle: Bundle, tmp_path: Path) -> None:
    for name in (ONNX, storage.WEIGHTS):
        shutil.copy(default_bundle.member(name), tmp_path / name)
    inputs, eager = split_probes(default_bundle.probes())
    wrong: Tensors = {name: -array for name, array in eager.items()}
    notes: list[str] = []
    assert optimise(tmp_path, [(inputs, wrong)], compare=by_classes, tell=notes.append) is None
    assert sorted(file.name for file in tmp_path.iterdir()) == [ONNX, storage.WEIGHTS]
    assert "its answers are others" in notes[0]


def test_one_that_cannot_be_made_is_left_out(tmp_path: Path) -> None:
    (tmp_path / ONNX).write_bytes(bytes(2_000_000))
    notes: list[str] = []
    assert optimise(tmp_path, [], compare=by_classes, tell=notes.append) is None
    assert "every worker does it when it starts" in notes[0]


def test_weights_after_a_table_of_odd_size_are_read_where_they_lie(tmp_path: Path) -> None:
    """ONNX Runtime packs matrices and writes them at any address, and dies of reading them there. So in a process."""
    layers: list[onnx.NodeProto] = []
    names: dict[str, np.ndarray] = {}
    for n in range(4):
        names[f"w{n}"] = np.eye(384, dtype=np.float32) * (n + 1)
        names[f"t{n}"] = np.ones(771, np.float32)  # 3,084 bytes
        layers += [
            helper.make_node("MatMul", [f"y{n}", f"w{n}"], [f"m{n}"]),
            helper.make_node("ReduceMean", [f"m{n}"], [f"s{n}"], axes=[1]),
            helper.make_node("Mul", [f"s{n}", f"t{n}"], [f"a{n}"]),
            helper.make_node("ReduceMean", [f"a{n}"], [f"r{n}"], axes=[1]),
            helper.make_node("Add", [f"m{n}", f"r{n}"], [f"y{n + 1}"]),
        ]
    rows = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 384]) for name in ("y0", "y4")]
    weights = [numpy_helper.from_array(array, name) for name, array in names.items()]
    graph = helper.make_graph(layers, "odd", rows[:1], rows[1:], weights)
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    onnx.save(model, tmp_path / ONNX)
    code = """
import sys
from pathlib import Path
import numpy as np
from flambeau.answers import agreement
from flambeau.answers.agreement import Agreement
from flambeau.builder.optimise import optimise
from flambeau.engines.onnxruntime import open_session
folder = Path(sys.argv[1])
given = {"y0": np.random.default_rng(0).random((2, 384), dtype=np.float32)}
answer = open_session(folder / "model.onnx").run(["y4"], given)[0]
compare = lambda expected, found: agreement.measure(expected["y4"], found["y4"], classes=False)
print(optimise(folder, [(given, {"y4": answer})], compare=compare, tell=print) is not None)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


@pytest.mark.long
def test_a_small_network_has_none(tmp_path: Path, cache: Path, warm_build: None) -> None:
    weights = tmp_path / "small.safetensors"
    save_file({"0.weight": np.ones((3, 4), np.float32), "0.bias": np.ones(3, np.float32)}, weights)
    options = SourceOptions(source=str(weights))
    made = build_cache.build_into(options, tmp_path / "small", progress=lambda event: None)
    assert made.manifest.optimised is None
