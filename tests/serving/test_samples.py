"""Golden samples: what a build keeps, and a service that does not become ready when an answer does not reproduce."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnx.numpy_helper
import pytest
from safetensors.numpy import load_file, save_file

from flambeau.bundle import golden_samples, storage
from flambeau.bundle.storage import PythonConfig
from flambeau.engines.onnxruntime import open_session
from flambeau.errors import BundleError, EngineError
from flambeau.runners.base import ReplicaSpec
from flambeau.runners.python_replica import open_python_model
from flambeau.runners.replica import TensorReplica, open_replica
from flambeau.types import Tensors, TensorSpec
from tests.support.golden import INPUT, NUMBERS, OUTPUT, collected, double, golden_folder, manifest, python_bundle
from tests.support.photographs import encoded, photograph
from tests.support.server import Serve
from tests.support.warm import run_with_torch

CHELSEA = {"class_index": 285, "class_id": "n02124075", "class_name": "Egyptian_cat"}


# An image classifier


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, cat: bytes) -> Path:
    """The default model with two photographs as its samples, made by the command."""
    folder = tmp_path_factory.mktemp("golden")
    files = {
        "chelsea.png": cat,
        "coffee.jpg": encoded(photograph("coffee"), "JPEG"),
        "expected.json": {"chelsea.png": {"class_name": "Egyptian_cat", "min_probability": 0.2}},
        ".DS_Store": b"the system's own",
    }
    done = run_with_torch("build", "--samples", golden_folder(folder / "in", files), "-o", folder / "out")
    assert done.returncode == 0, done.stderr
    return folder / "out"


@pytest.fixture
def doctored(built: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the built bundle with something changed, and a manifest that stands by it."""

    def doctor(change: Callable[[Path], None] = lambda folder: None, **pipeline: object) -> Path:
        folder = tmp_path / "doctored"
        shutil.copytree(built, folder)
        change(folder)
        manifest = storage.read(built).manifest
        replaced = msgspec.structs.replace(manifest.pipeline, **pipeline)
        # without its optimised graph, so that the one which `change` may have changed is the one that serves
        storage.write_manifest(folder, msgspec.structs.replace(manifest, pipeline=replaced, optimised=None))
        return folder

    return doctor


def warm_up(folder: Path, **options: Any) -> None:
    """Open a replica as a worker does, and warm it."""
    spec = ReplicaSpec(
        **{"bundle": str(folder), "name": "net", "engine": "onnxruntime", "device": "cpu", "threads": 1,
           "allow_code": False, "threshold": None, "max_image_pixels": 1_000_000, **options}
    )  # fmt: skip
    replica = open_replica(spec)
    try:
        replica.warm_up()
    finally:
        replica.close()


@pytest.mark.long
def test_a_build_keeps_the_bytes_and_the_whole_outputs(built: Path, cat: bytes) -> None:
    opened = storage.read(built)
    members = {"samples.json", "samples.safetensors", "samples/chelsea.png", "samples/coffee.jpg"}
    assert {name for name in opened.manifest.members if name.startswith("samples")} == members
    assert (built / "samples/chelsea.png").read_bytes() == cat
    chelsea, coffee = golden_samples.read(opened)
    assert chelsea.expected == CHELSEA
    assert coffee.expected["class_name"] == "espresso"
    assert chelsea.outputs["output"].shape == (1, 1000)
    assert chelsea.outputs["output"].argmax() == 285


@pytest.mark.long
def test_a_service_whose_samples_reproduce_becomes_ready(serve: Serve, built: Path, cat: bytes) -> None:
    with serve(built, "--replicas", "1") as server:
        answer = server.post(files={"file": cat}).json()
    assert answer["class_name"] == "Egyptian_cat"


@pytest.mark.long
def test_another_preparation_ends_the_service_before_it_is_ready(doctored: Callable[..., Path]) -> None:
    done = run_with_torch("serve", doctored(mean=(0.9, 0.1, 0.9)), "--port", "0")
    assert done.returncode == 1
    assert done.stdout == ""
    sentence = "does not reproduce the answer to its sample chelsea.png: "
    assert sentence in done.stderr
    assert "apart (tolerance 1e-03)" in done.stderr
    assert "build it again here, or take another --engine" in done.stderr


def swap_labels(folder: Path) -> None:
    labels = storage.read(folder).labels()
    assert labels is not None
    storage.write_labels(folder, (*labels[1:], labels[0]))


def nudge_weights(folder: Path) -> None:
    """Another graph, with probes of its own."""
    model = onnx.load(folder / storage.ONNX)
    largest = max(model.graph.initializer, key=lambda each: len(each.raw_data))
    largest.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(largest) * 1.01, largest.name))
    onnx.save(model, folder / storage.ONNX)
    probes = load_file(folder / storage.PROBES)
    given = {name.partition(".")[2]: array for name, array in probes.items() if name.startswith("input.")}
    answered = open_session(folder / storage.ONNX).run(None, given)[0]
    [output] = [name for name in probes if name.startswith("output.")]
    save_file(probes | {output: answered}, folder / storage.PROBES)


@pytest.mark.long
@pytest.mark.parametrize(
    ("change", "why"),
    [
        (swap_labels, "class_id is 'n02125311' where 'n02124075' is expected: "),
        (nudge_weights, r"output is \d\.\de-0[123] apart \(tolerance 1e-03\): "),
    ],
)
def test_what_the_probes_cannot_see_is_found(
    doctored: Callable[..., Path], change: Callable[[Path], None], why: str
) -> None:
    with pytest.raises(EngineError, match=f"efficientnet_lite0 does not reproduce .* sample chelsea.png: {why}"):
        warm_up(doctored(change))


@pytest.mark.long
def test_the_threshold_of_a_service_changes_nothing_of_its_samples(built: Path) -> None:
    warm_up(built, threshold=1.0)


@pytest.mark.long
def test_a_sample_larger_than_the_service_takes_names_the_setting(built: Path) -> None:
    with pytest.raises(EngineError, match=r"sample chelsea\.png: an image of 451 × 300 pixels .* --max-image-pixels"):
        warm_up(built, max_image_pixels=1000)


@pytest.mark.long
def test_a_changed_sample_is_refused(built: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(built, folder)
    (folder / "samples/coffee.jpg").write_bytes(encoded(photograph("rocket"), "JPEG"))
    with pytest.raises(BundleError, match=r"samples/coffee\.jpg of bundle .* was changed"):
        storage.read(folder)


def unlist(folder: Path) -> None:
    (folder / "samples/chelsea.png").unlink()


def damage(folder: Path) -> None:
    (folder / storage.SAMPLE_OUTPUTS).write_bytes(b"damaged")


@pytest.mark.long
@pytest.mark.parametrize(("change", "why"), [(unlist, "has no samples/chelsea.png"), (damage, "samples of bundle")])
def test_samples_that_cannot_be_read_are_the_bundles_fault(
    doctored: Callable[..., Path], change: Callable[[Path], None], why: str
) -> None:
    with pytest.raises(BundleError, match=why):
        warm_up(doctored(change))


# A network over numbers


class Engine:
    """Doubles its rows, with what a test adds."""

    inputs: tuple[TensorSpec, ...] = (INPUT,)
    outputs: tuple[TensorSpec, ...] = (OUTPUT,)

    def __init__(self, spoil: Callable[[np.ndarray], np.ndarray] = lambda rows: rows) -> None:
        self._spoil = spoil
        self.sizes: list[int] = []

    def run(self, batch: Tensors) -> Tensors:
        self.sizes.append(len(batch["x"]))
        return {"y": self._spoil(double(batch)["y"])}

    def close(self) -> None:
        pass


def number_replica(folder: Path, engine: Engine) -> TensorReplica:
    storage.write_manifest(folder, manifest())
    written = msgspec.json.decode((folder / storage.MANIFEST).read_bytes(), type=storage.Manifest)
    return TensorReplica(storage.Bundle(folder, written), engine, NUMBERS, device="cpu")  # not read: it has no probes


ROWS = {
    "one.json": {"input": [1, 2], "output": [2, 4]},
    "manifest.json": {"input": [[3, 4], [5, 6]]},
    "expected.json": {"manifest.json": {"output": [[6, 8], [10, 12.001]]}},
}


def test_rows_are_reproduced_alone_and_together(tmp_path: Path) -> None:
    [found] = collected(tmp_path / "bundle", ROWS)  # all are of one shape
    assert found.inputs["x"].tolist() == [[3, 4], [5, 6], [1, 2]]
    assert found.outputs["y"].tolist() == [[6, 8], [10, 12], [2, 4]]
    engine = Engine()
    number_replica(tmp_path / "bundle", engine).warm_up()
    assert engine.sizes[:4] == [2, 1, 3, 1]  # each sample alone, both together, the example; then it is measured
    assert (tmp_path / "bundle" / "samples" / "manifest.json").is_file()


def test_a_lone_sample_is_computed_in_a_batch_too(tmp_path: Path) -> None:
    collected(tmp_path / "bundle", {"one.json": {"input": [1, 2]}})
    engine = Engine()
    number_replica(tmp_path / "bundle", engine).warm_up()
    assert engine.sizes[:3] == [1, 2, 1]


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda rows: rows * 1.01, r"manifest\.json: y is 1\.0e-02 apart \(tolerance 1e-03\): build it again"),
        (lambda rows: rows * np.nan, r"manifest\.json: y holds numbers that are not finite"),
        (lambda rows: rows[:, :1], r"manifest\.json: y is \[2, 1\] where \[2, 2\] is expected"),
        (lambda rows: rows + (rows == 4), r"one\.json: y is 2\.5e-01 apart"),
        (lambda rows: rows + (len(rows) > 2), r"manifest\.json in a batch: y is .* apart"),
        (lambda rows: 1 / 0, r"net cannot answer its sample manifest\.json: the model failed on this input"),
    ],
)
def test_an_engine_that_answers_in_another_way_is_refused(
    tmp_path: Path, spoil: Callable[[np.ndarray], np.ndarray], why: str
) -> None:
    collected(tmp_path / "bundle", ROWS)
    with pytest.raises(EngineError, match=why):
        number_replica(tmp_path / "bundle", Engine(spoil)).warm_up()


def test_rounding_is_no_difference(tmp_path: Path) -> None:
    collected(tmp_path / "bundle", ROWS)
    number_replica(tmp_path / "bundle", Engine(lambda rows: rows * np.float32(1.0005))).warm_up()


# A Python model

FICKLE = """
import pathlib

import flambeau


class Model(flambeau.PythonModel):
    def load(self):
        try:
            pathlib.Path({mark!r}).touch(exist_ok=False)
            self.factor = 2
        except FileExistsError:
            self.factor = 3

    def predict(self, batch):
        return [item * self.factor for item in batch]
"""


def test_a_python_model_is_held_to_the_outputs_that_were_stated(serve: Serve, double_py: Path, tmp_path: Path) -> None:
    files = {
        "a.json": {"input": 21, "output": 42},
        "b.json": {"input": 1.5},
        "expected.json": {"b.json": {"output": 3}},
    }
    golden, source = golden_folder(tmp_path / "golden", files), f"{double_py}:Double"
    done = run_with_torch("build", source, "--allow-code", "--samples", golden, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    with serve(tmp_path / "out", "--allow-code") as server:
        assert server.post(json={"input": 4}).json()["output"] == 8


@pytest.mark.long
def test_every_replica_is_held_to_the_samples(tmp_path: Path) -> None:
    """The second that loads the model gets another factor."""
    source = FICKLE.format(mark=str(tmp_path / "mark"))
    python_bundle(tmp_path / "out", source, {"a.json": {"input": 21, "output": 42}})
    done = run_with_torch("serve", tmp_path / "out", "--allow-code", "--replicas", "2", "--port", "0")
    assert done.returncode == 1
    assert done.stdout == ""
    assert "does not reproduce the answer to its sample a.json: output is 63 where 42 is expected: fix" in done.stderr


@pytest.mark.parametrize(
    ("body", "files", "why"),
    [
        ("[item * 2 for item in batch]", {"a.json": {"input": 2, "output": 4.001}}, None),
        ("[len(item) for item in batch]", {"a.bin": b"abc", "expected.json": {"a.bin": {"output": 3}}}, None),
        ("[None for item in batch]", {"a.json": {"input": 2, "output": None}}, None),
        ("[len(batch) for item in batch]", {"a.json": {"input": 2, "output": 1}}, r"a\.json in a batch: output is 2"),
        ("1 / 0", {"a.json": {"input": 2, "output": 1}}, r"cannot answer its sample a\.json: the model failed"),
    ],
)
def test_a_python_model_reproduces_its_samples_or_is_not_ready(
    tmp_path: Path, body: str, files: dict[str, object], why: str | None
) -> None:
    source = (
        f"import flambeau\n\nclass Model(flambeau.PythonModel):\n    def predict(self, batch):\n        return {body}\n"
    )
    opened = python_bundle(tmp_path / "out", source, files)
    assert isinstance(opened.manifest.pipeline, PythonConfig)
    replica = open_python_model(opened, opened.manifest.pipeline, allow_code=True)
    if why is None:
        replica.warm_up()
    else:
        with pytest.raises(EngineError, match=why):
            replica.warm_up()
