"""Embeddings from a file of weights to vectors: without the head, normalised, and read by foreign clients."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from torch import nn

import flambeau
from flambeau.architectures.registries import REGISTRIES
from flambeau.bundle.storage import Activation, Bundle
from flambeau.errors import SourceError
from flambeau.settings.source import SourceOptions
from flambeau.sources import build_cache
from flambeau.sources.request import Note
from tests.support.checkpoints import Case
from tests.support.photographs import encoded, photograph
from tests.support.server import Serve, ServerProcess
from tests.support.task_models import Made
from tests.support.warm import run_with_torch

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("warm_builds")]

CLASSES = 5
NAME = "mobilenet_v3_small"


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return Case(NAME, lambda: REGISTRIES["torchvision"].constructor(NAME)(num_classes=CLASSES), None).network()


@pytest.fixture(scope="module")
def file(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "pets.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def notes() -> list[str]:
    """What the build of `made` said."""
    return []


def build(source: Path, notes: list[str], **options: Any) -> Bundle:
    def hear(event: object) -> None:
        if isinstance(event, Note):
            notes.append(event.text)

    return build_cache.open_source(SourceOptions(source=str(source), task="embedding", **options), progress=hear)


@pytest.fixture(scope="module")
def made(file: Path, notes: list[str], warm_builds: None, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """With normalised vectors and a golden sample."""
    samples = tmp_path_factory.mktemp("samples")
    (samples / "cat.png").write_bytes(encoded(photograph("chelsea")))
    return build(file, notes, normalize=True, samples=str(samples))


@pytest.fixture(scope="module")
def features(network: nn.Module, made: Bundle, cat: bytes) -> torch.Tensor:
    """What PyTorch's own network gives its last layer, of the cat."""
    seen: list[torch.Tensor] = []
    hook = network.classifier[3].register_forward_pre_hook(lambda _, given: seen.append(given[0]))  # type: ignore[index,union-attr]
    with torch.inference_mode():
        network(Made(made, network, made.manifest.pipeline).pixels(cat))  # type: ignore[arg-type]
    hook.remove()
    return seen[0][0]


@pytest.fixture(scope="module")
def server(serve: Serve, made: Bundle) -> Iterator[ServerProcess]:
    arguments = ("--replicas", "1", "--platform", "huggingface", "--host", "127.0.0.1")
    with serve(made.path, *arguments) as running:
        yield running


def test_the_features_are_pytorchs_and_of_length_1(
    made: Bundle, notes: list[str], features: torch.Tensor, server: ServerProcess, cat: bytes
) -> None:
    vector = np.array(server.post("/predict", data=cat).json()["embedding"], np.float32)
    expected = nn.functional.normalize(features, dim=0).numpy()
    assert vector.shape == (1024,)
    assert np.abs(vector - expected).max() <= 1e-5
    assert made.manifest.activation == Activation("l2", known="said")
    said = "\n".join(notes)
    assert "the 1,024 features that it gives its head (classifier.3), whose 5 outputs are left out" in said
    assert "task: embedding" in said
    array = np.load(io.BytesIO(server.post("/predict", data=cat, headers={"Accept": "application/x-npy"}).content))
    assert np.array_equal(array, vector)


def test_hugging_faces_client_extracts_features(server: ServerProcess, cat: bytes) -> None:
    import base64

    client = server.hugging_face()
    text = base64.b64encode(cat).decode()
    vector = server.post("/predict", data=cat).json()["embedding"]
    found = client.feature_extraction(text)
    assert found.shape == (1, 1024)
    assert np.allclose(found[0], vector, atol=1e-6)
    assert np.allclose(client.feature_extraction(text, normalize=True)[0], vector, atol=1e-6)
    both = server.post("/", json={"inputs": [text, text]}).json()
    assert np.array(both).shape == (2, 1024)
    for wrong, told in (
        ({"normalize": False}, "length 1"), ({"dimensions": 8}, "no dimensions"), ({"prompt_name": ""}, "no prompt"),
        ({"truncation_direction": "Left"}, "at their end"), ({"encoding_format": "base64"}, "as numbers"),
    ):  # fmt: skip
        refused = server.post("/", json={"inputs": text, **wrong})
        assert (refused.status_code, told in refused.json()["error"]) == (400, True), refused.text


def test_kserve_names_the_output(server: ServerProcess, cat: bytes) -> None:
    import base64

    tensor = {
        "name": "images", "shape": [1], "datatype": "BYTES", "data": [base64.b64encode(cat).decode()],
        "parameters": {"content_type": "base64"},
    }  # fmt: skip
    [model] = server.get("/models").json()["models"]
    answer = server.post(f"/v2/models/{model['name']}/infer", json={"inputs": [tensor]}).json()
    [output] = answer["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("embedding", "FP32", [1, 1024])


def test_tables_have_a_column_of_vectors(made: Bundle, tmp_path: Path, cat: bytes) -> None:
    (tmp_path / "cat.png").write_bytes(cat)
    done = run_with_torch("predict", made.path, tmp_path / "cat.png", "-o", tmp_path / "vectors.parquet")
    assert done.returncode == 0, done.stderr
    table = pyarrow.parquet.read_table(tmp_path / "vectors.parquet")
    assert table.schema.field("embedding").type == pyarrow.list_(pyarrow.float32())
    assert np.linalg.norm(table["embedding"][0].as_py()) == pytest.approx(1, abs=1e-6)


@pytest.mark.slow
def test_the_heads_own_outputs_are_answered_if_they_are_named(file: Path, network: nn.Module, cat: bytes) -> None:
    """A head that was trained to make vectors, with a triplet loss, is the embedding itself."""
    notes: list[str] = []
    bundle = build(file, notes, output_name="classifier.3")
    with flambeau.load(bundle.path) as model:
        found = model.predict(cat).embedding
    with torch.inference_mode():
        expected = network(Made(bundle, network, bundle.manifest.pipeline).pixels(cat))[0]  # type: ignore[arg-type]
    assert np.abs(found - expected.numpy()).max() <= 1e-4 * float(expected.abs().max())


def test_what_has_no_effect_is_refused(file: Path) -> None:
    for options, told in (
        ({"output_name": "fc"}, "--output-name fc is not a head of mobilenet_v3_small: its head is classifier.3"),
        ({"num_classes": 5}, "--num-classes has no effect on mobilenet_v3_small without its head"),
    ):
        with pytest.raises(SourceError, match=told):
            build(file, [], **options)


def test_a_golden_sample_that_turned_ends_the_start(made: Bundle, tmp_path: Path) -> None:
    """The vector of a golden sample is compared by its numbers and by its angle."""
    import shutil

    from safetensors.numpy import load_file, save_file

    from flambeau.bundle import storage

    folder = tmp_path / "turned"
    shutil.copytree(made.path, folder)
    outputs = load_file(folder / storage.SAMPLE_OUTPUTS)
    save_file(
        {name: np.ascontiguousarray(rows[:, ::-1]) for name, rows in outputs.items()}, folder / storage.SAMPLE_OUTPUTS
    )
    manifest = json.loads((folder / storage.MANIFEST).read_text())
    manifest["members"][storage.SAMPLE_OUTPUTS] = storage.sha256_of(folder / storage.SAMPLE_OUTPUTS)
    (folder / storage.MANIFEST).write_text(json.dumps(manifest))
    done = run_with_torch("predict", folder, tmp_path)
    assert done.returncode != 0
    assert "apart (tolerance 1e-03)" in done.stderr
