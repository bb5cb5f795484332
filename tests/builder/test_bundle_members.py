"""Bundles that hold other than they list are refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import flambeau
from flambeau import checkpoints
from flambeau.bundle import storage
from flambeau.errors import BundleError, SetupError, SourceError
from flambeau.settings.source import SourceOptions
from flambeau.sources import build_cache
from tests.support.scaled_graph import answered, scaled


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, warm_builds: None) -> Path:
    """A bundle as somebody else would have built it."""
    folder = tmp_path_factory.mktemp("theirs")
    options = SourceOptions(source=str(scaled(folder / "m.onnx", 4.0)))
    return build_cache.build_into(options, folder / "bundle", progress=lambda event: None).path


@pytest.fixture
def made(bundle: Path, tmp_path: Path) -> Path:
    """A copy of it to be changed."""
    return shutil.copytree(bundle, tmp_path / "bundle")


def relisted(folder: Path) -> None:
    """Have the manifest list what lies in the folder by now, as the attacker's own would."""
    storage.write_manifest(folder, storage.read(folder, whole=False).manifest)


def refused(folder: Path) -> str:
    """What serving says, and that inspecting it says no less."""
    with pytest.raises(SetupError) as caught:
        build_cache.open_source(SourceOptions(source=str(folder)), progress=lambda event: None)
    assert checkpoints.examine(folder).verdict == "refused"
    return str(caught.value)


def test_a_bundle_with_a_link_for_a_member_is_refused_a17(made: Path, tmp_path: Path) -> None:
    (made / "model.onnx").rename(tmp_path / "elsewhere.onnx")
    (made / "model.onnx").symlink_to(tmp_path / "elsewhere.onnx")
    assert "model.onnx" in (said := refused(made))
    assert "symbolic link" in said


def test_a_bundle_in_a_linked_folder_is_a_bundle_a17(made: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(made)
    assert answered(storage.read(tmp_path / "link")) == 4.0


def test_a_bundle_without_probes_is_refused_a17(made: Path) -> None:
    (made / "probes.safetensors").unlink()
    relisted(made)
    assert "probes.safetensors" in refused(made)


def test_a_bundle_whose_probes_are_none_is_refused_a17(made: Path) -> None:
    save_file({"other": torch.zeros(1)}, made / "probes.safetensors")
    relisted(made)
    with pytest.raises(BundleError, match="holds no probe samples"):
        storage.read(made).probes()


def test_weights_that_a_graph_names_and_the_manifest_does_not_are_refused_a17(made: Path, tmp_path: Path) -> None:
    scaled(made / "model.onnx", 4.0, outside=True)
    manifest = json.loads((made / "manifest.json").read_text())
    relisted(made)
    listed = json.loads((made / "manifest.json").read_text())
    assert "weights.bin" in listed["members"]
    del listed["members"]["weights.bin"]
    (made / "manifest.json").write_text(json.dumps(listed))
    assert "weights.bin, which is not a member" in refused(made)
    assert manifest["members"].keys() == listed["members"].keys()


def test_fewer_labels_than_outputs_are_refused_with_both_numbers_a19(made: Path) -> None:
    storage.write_labels(made, (flambeau.types.Label("0", "cat"),))
    relisted(made)
    with pytest.raises(BundleError, match="1 labels for 4 outputs"):
        storage.read(made).labels()


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"format": 1, "name": ' + "[" * 100_000, '{"a": "' + "x" * 2**25 + '"}']
)
def test_a_manifest_that_is_no_manifest_is_refused_a4(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises((BundleError, SourceError), match=r"manifest\.json"):
        storage.read(tmp_path)
    assert checkpoints.examine(tmp_path).verdict == "refused"
