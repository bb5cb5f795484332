"""Engines: PyTorch's own, how one of all is chosen by measurement, and int8, which is taken by name only."""

import logging
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

from flambeau import engines
from flambeau.answers.agreement import Agreement
from flambeau.builder import engine_choice, quantise
from flambeau.bundle import storage
from flambeau.bundle.measurements import Quantised, Trial, Trials
from flambeau.bundle.storage import Bundle, ImageConfig
from flambeau.engine_selection import benchmark
from flambeau.engine_selection.benchmark import Rules, hold
from flambeau.engines.pytorch import CompiledEngine, EagerEngine
from flambeau.errors import EngineError, SourceError
from flambeau.runners.base import ReplicaSpec
from flambeau.runners.replica import open_replica
from flambeau.settings.service import EngineChoice
from flambeau.settings.source import SourceOptions
from flambeau.sources import build_cache, request
from flambeau.system import machine
from flambeau.types import TensorSpec
from tests.support.photographs import encoded, photograph
from tests.support.warm import run_with_torch

NEEDS_OPENVINO = pytest.mark.skipif(not find_spec("openvino"), reason="`make test-slow` installs OpenVINO")
OPENVINO = pytest.param("openvino", marks=NEEDS_OPENVINO)
SECOND: EngineChoice = "openvino" if find_spec("openvino") else "eager"  # an engine beside ONNX Runtime that is here

NETWORK = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2)
        self.line = nn.Linear(8 * 15 * 15, 4)

    def forward(self, images):
        return self.line(self.conv(images).relu().view(len(images), -1))
"""
QUICK = Rules(threads=1, batches=(1, 2), rounds=1, seconds=0.01)
ALLOWED = Rules(threads=1, batches=(1,), rounds=1, seconds=0.01, allow_code=True)
IMAGES = (TensorSpec("input", "float32", (3, 32, 32)),)
CLASSES = (TensorSpec("output", "float32", (4,)),)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """A network that cannot be laid out channels-last, for it takes a view of what the convolution gives."""
    torch.manual_seed(2)
    space: dict[str, Any] = {}
    exec(NETWORK, space)
    made: nn.Module = space["Net"]()
    return made.eval()


@pytest.fixture(scope="module")
def source(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """The network as people keep it, weights and class, and a folder of images to calibrate with."""
    folder = tmp_path_factory.mktemp("network")
    (folder / "net.py").write_text(NETWORK)
    torch.save(network.state_dict(), folder / "net.pth")
    (folder / "images").mkdir()
    for name in ("chelsea", "coffee", "rocket", "astronaut"):
        for turned in (0, 90):
            image = photograph(name).resize((48, 48)).rotate(turned)
            (folder / "images" / f"{name}-{turned}.png").write_bytes(encoded(image))
    return folder / "net.pth", folder / "net.py", folder / "images"


def options(source: tuple[Path, ...]) -> SourceOptions:
    return SourceOptions(source=str(source[0]), arch=f"{source[1]}:Net", input_shape=(3, 32, 32), pipeline="image",
                         allow_code=True)  # fmt: skip


Built = tuple[Bundle, list[str]]


@pytest.fixture(scope="module")
def small(source: tuple[Path, ...], tmp_path_factory: pytest.TempPathFactory, warm_builds: None) -> Built:
    """Its bundle for the second engine with an int8 graph, and the notes of the build."""
    notes: list[str] = []
    target = tmp_path_factory.mktemp("small") / "bundle"
    made = build_cache.build_into(
        options(source), target, progress=lambda event: notes.append(str(event)), engine=SECOND, int8=str(source[2])
    )
    return made, notes


@pytest.fixture
def copied(small: Built, tmp_path: Path) -> Bundle:
    """A copy of that bundle to be changed, as it is before its engine was settled."""
    shutil.copytree(small[0].path, tmp_path / "copied")
    storage.write_manifest(
        tmp_path / "copied", msgspec.structs.replace(small[0].manifest, engine="onnxruntime", trials=None)
    )
    return storage.read(tmp_path / "copied")


def spec(opened: Bundle, engine: str) -> ReplicaSpec:
    return ReplicaSpec(bundle=str(opened.path), name="net", engine=engine, device="cpu", threads=1, allow_code=True,
                       threshold=None, max_image_pixels=1_000_000)  # fmt: skip


def rows(count: int, spec: TensorSpec) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, *spec.shape)).astype(spec.dtype)


# PyTorch


def test_a_network_that_takes_views_is_computed_as_it_was_written(network: nn.Module) -> None:
    batch = rows(3, IMAGES[0])
    with torch.inference_mode():
        expected = network(torch.from_numpy(batch)).numpy()
    eager = EagerEngine(network, IMAGES, CLASSES, device="cpu")
    assert np.allclose(eager.run({"input": batch})["output"], expected, atol=1e-5)


@pytest.fixture
def compiled_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches that reach the network, which stays uncompiled."""
    sizes: list[int] = []

    def pretend(network: nn.Module, **_: object) -> Callable[[torch.Tensor], torch.Tensor]:
        def run(batch: torch.Tensor) -> torch.Tensor:
            sizes.append(len(batch))
            result: torch.Tensor = network(batch)
            return result

        return run

    monkeypatch.setattr(torch, "compile", pretend)
    return sizes


@pytest.mark.parametrize(
    ("most", "warmed", "count", "computed"),
    [(1, [1], 3, [1, 1, 1]), (6, [1, 2, 4, 8], 3, [4]), (8, [1, 2, 4, 8], 8, [8]), (4, [1, 2, 4], 11, [4, 4, 4])],
)
def test_batches_are_padded_to_sizes_that_were_compiled_at_load(
    network: nn.Module, compiled_sizes: list[int], most: int, warmed: list[int], count: int, computed: list[int]
) -> None:
    engine = CompiledEngine(network, IMAGES, CLASSES, device="cpu", max_batch=most)
    assert compiled_sizes == warmed
    compiled_sizes.clear()
    batch = rows(count, IMAGES[0])
    found = engine.run({"input": batch})["output"]
    assert compiled_sizes == computed
    with torch.inference_mode():
        assert np.allclose(found, network(torch.from_numpy(batch)).numpy(), atol=1e-5)


def test_without_a_compiler_compile_says_what_to_install(
    default_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(EngineError, match=r"needs a C\+\+ compiler, and there is no g\+\+ here: install one"):
        engines.load(default_bundle, "compile", device="cpu", threads=1, allow_code=False)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_compiled_network_serves(small: Built, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    replica = open_replica(spec(small[0], "compile"))
    replica.warm_up()
    assert any((tmp_path / "compiled").iterdir())


# The choice


def test_an_engine_that_is_missing_here_gives_way_to_onnx_runtime(
    small: Built, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    carried = Bundle(small[0].path, msgspec.structs.replace(small[0].manifest, engine="openvino"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert engines.choose(carried, "auto") == "openvino"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with caplog.at_level(logging.WARNING, logger="flambeau"):
        assert engines.choose(carried, "auto") == "onnxruntime"
    assert "engine=openvino taken=onnxruntime" in caplog.text
    assert engines.choose(carried, "openvino") == "openvino"  # asked for by name: missing is an error


def test_a_name_that_is_no_engine_is_refused() -> None:
    with pytest.raises(EngineError, match="there is no engine named 'tpu': take one of onnxruntime, openvino, eager"):
        engines.resolve_device("tpu", "auto")


def trial(engine: str, ms: float, **fields: Any) -> Trial:
    return Trial(engine, ms={1: ms / 2, 8: ms * 2}, **fields)


OFF = Agreement(samples=2, difference=0.02, same_top_class=True)


@pytest.mark.parametrize(
    ("tried", "taken", "why"),
    [
        ([trial("onnxruntime", 10), trial("openvino", 9.2)], "onnxruntime", "with 9.2 ms is less than 10% faster"),
        ([trial("onnxruntime", 10), trial("openvino", 9)], "openvino", "openvino takes 9 ms, onnxruntime 10 ms"),
        ([trial("onnxruntime", 10), trial("openvino", 11)], "onnxruntime", "onnxruntime takes 10 ms, openvino 11 ms"),
        ([trial("onnxruntime", 10), trial("openvino", 2, agreement=OFF)], "onnxruntime", "no other engine"),
        ([trial("onnxruntime", 10, error="no"), trial("openvino", 30)], "openvino", "no other engine"),
        ([trial("onnxruntime", 10), trial("compile", 1), trial("onnxruntime-int8", 1)], "onnxruntime", "no other"),
        ([trial("onnxruntime", 10), trial("eager", 1)], "onnxruntime", "no other engine"),
        ([trial("onnxruntime", 10), trial("eager", 1, device="cuda:0")], "eager", "eager takes 1 ms"),
        ([trial("onnxruntime", 9, device="cuda:0"), trial("eager", 1, device="cuda:0")], "onnxruntime", "no other"),
        ([trial("openvino", 10, agreement=OFF), Trial("onnxruntime")], None, "no engine that was tried"),
    ],
)  # fmt: skip
def test_auto_takes_the_fastest_that_agrees_and_is_worth_it(tried: list[Trial], taken: str | None, why: str) -> None:
    found, sentence = benchmark.select_engine(tried)
    assert found == taken
    assert why in sentence


@pytest.mark.long
def test_a_contest_measures_each_engine_and_keeps_the_reason_of_one_that_fails(default_bundle: Bundle) -> None:
    told: list[str] = []
    names = (SECOND, "onnxruntime-int8", "onnxruntime")
    good, bad, best = hold(default_bundle.path, names, QUICK, tell=told.append)
    assert told == [*names]
    for each in (good, best):
        assert each.error is None
        assert each.agreement is not None
        assert each.agreement.holds
        assert each.ms.keys() == {1, 2}
        assert min(*each.ms.values(), each.load_seconds or 0, each.memory_mb or 0) > 0
    assert bad.error is not None
    assert "has no quantised graph" in bad.error
    assert bad.ms == {}


@pytest.mark.long
def test_a_contestant_that_dies_is_a_failed_trial(copied: Bundle) -> None:
    """Here of a network whose code ends the process."""
    (copied.path / "code/net.py").write_text("import os\nos._exit(7)\n")
    storage.write_manifest(copied.path, copied.manifest)
    [found] = hold(copied.path, ["eager"], ALLOWED)
    assert found.error == "its process ended with exit code 7"


def test_a_bundle_that_keeps_figures_is_told_for_a_bundle(copied: Bundle) -> None:
    """They are kept by the size of the batch, and JSON has no numbers for keys."""
    figures = Trials("a processor", 1, "the fastest", (Trial("eager", ms={1: 2.0, 8: 12.0}),))
    storage.write_manifest(copied.path, msgspec.structs.replace(copied.manifest, trials=figures))
    assert "bundle of flambeau build" in run_with_torch("inspect", copied.path).stdout


@NEEDS_OPENVINO
def test_a_build_tries_the_engines_and_keeps_the_figures(default_bundle: Bundle) -> None:
    found = default_bundle.manifest.trials
    assert found is not None
    assert [each.engine for each in found.engines] == ["onnxruntime", "openvino"]
    assert all(each.ms.keys() == {1, 8} and each.agreement and each.agreement.holds for each in found.engines)
    assert benchmark.select_engine(found.engines) == (default_bundle.manifest.engine, found.why)
    assert found.processor == machine.processor()


def test_the_cache_knows_the_processor_that_the_choice_was_measured_on(
    default_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = request.build_request(SourceOptions())
    here = build_cache._key(order)
    monkeypatch.setattr(machine, "processor", lambda: "another")
    assert build_cache._key(order) != here


def test_build_takes_the_engine_that_is_named(small: Built) -> None:
    opened, notes = small
    made = opened.manifest
    assert any(f"engine: {SECOND} was asked for, and takes" in note for note in notes)
    assert made.engine == SECOND
    assert made.trials is not None
    assert [each.engine for each in made.trials.engines] == [SECOND]
    open_replica(spec(opened, engines.choose(opened, "auto"))).warm_up()


def test_a_network_too_small_to_matter_is_not_tried(copied: Bundle) -> None:
    told: list[str] = []
    engine_choice.settle(copied.path, "auto", allow_code=True, tell=told.append)
    assert told == []
    assert storage.read(copied.path).manifest.trials is None


def test_an_engine_that_cannot_serve_the_bundle_is_not_taken(copied: Bundle) -> None:
    (copied.path / storage.INT8_ONNX).unlink()
    storage.write_manifest(copied.path, copied.manifest)
    with pytest.raises(
        SourceError, match="--engine onnxruntime-int8 cannot serve net: bundle net has no quantised graph"
    ):
        engine_choice.settle(copied.path, "onnxruntime-int8", allow_code=True, tell=lambda text: None)


@pytest.mark.parametrize("flags", [{"engine": "openvino"}, {"int8": "images"}])
def test_a_python_model_has_no_engine_to_choose(double_py: Path, tmp_path: Path, flags: dict[str, Any]) -> None:
    model = SourceOptions(source=f"{double_py}:Double", allow_code=True)
    with pytest.raises(SourceError, match=f"--{next(iter(flags))} has no effect on a Python model: leave it out"):
        build_cache.build_into(model, tmp_path / "out", progress=lambda event: None, **flags)


# int8


def test_int8_is_calibrated_measured_and_kept(small: Built) -> None:
    made, notes = small
    found = made.manifest.int8
    assert found is not None
    assert found.samples == 8
    assert found.top1 is not None
    assert found.top1 >= 0.75
    assert 0 < found.difference < 0.2
    assert any("of 8 calibration images get PyTorch's top class" in note for note in notes)
    assert (made.path / storage.INT8_ONNX).stat().st_size < (made.path / storage.WEIGHTS).stat().st_size


def test_int8_serves_by_name_and_must_reproduce_its_own_answers(small: Built, copied: Bundle) -> None:
    open_replica(spec(small[0], "onnxruntime-int8")).warm_up()
    recorded = load_file(copied.path / storage.INT8_PROBES)
    save_file(
        recorded | {"output.output": recorded["output.output"] * np.float32(1.1)}, copied.path / storage.INT8_PROBES
    )
    storage.write_manifest(copied.path, copied.manifest)
    with pytest.raises(EngineError, match=r"does not reproduce the answers it was built with: .*\(tolerance 5e-02\)"):
        open_replica(spec(copied, "onnxruntime-int8")).warm_up()


def test_too_few_images_do_not_calibrate(source: tuple[Path, ...], tmp_path: Path) -> None:
    for file in sorted(source[2].iterdir())[:7]:
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(SourceError, match=r"holds 7 files: calibrating takes 8 to 1000"):
        quantise.gather(tmp_path, None)  # type: ignore[arg-type]  # it is not asked


def test_a_calibration_file_that_is_no_input_is_named(default_bundle: Bundle, tmp_path: Path) -> None:
    from flambeau.pipelines.base import open_pipeline

    made = default_bundle.manifest
    for index in range(8):
        (tmp_path / f"{index}.png").write_bytes(b"no image")
    assert isinstance(made.pipeline, ImageConfig)
    pipeline = open_pipeline(made.pipeline, labels=None, inputs=made.inputs, outputs=made.outputs)
    with pytest.raises(SourceError, match=r"0\.png in --int8 is not a valid input for this model: "):
        quantise.gather(tmp_path, pipeline)


def test_a_poor_int8_graph_is_called_so() -> None:
    assert quantise.told(Quantised(100, 0.97, 0.1)).startswith("int8: 97% of 100 calibration images get")
    assert quantise.told(Quantised(100, 0.89, 0.4)).startswith("WARNING: the int8 graph is POOR: only 89%")
    assert "top class" not in quantise.told(Quantised(100, None, 0.01))
