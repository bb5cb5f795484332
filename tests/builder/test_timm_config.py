"""Weights beside timm's `config.json`, as `save_for_hf` writes both: served as timm itself would load and prepare them.

Expected answers are timm's own: the network that was saved, after `create_transform(**resolve_data_config(...))`.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import flambeau
from flambeau import identify
from flambeau.architectures import torchvision_compat
from flambeau.bundle.storage import Bundle, ImageConfig
from flambeau.checkpoints import choose, examine, timm_config
from flambeau.errors import SourceError
from tests.support.photographs import encoded, photograph
from tests.support.server import Serve
from tests.support.warm import run_with_torch

pytestmark = pytest.mark.usefixtures("warm_builds")

Build = Callable[..., Bundle]

NAMES = ["rose", "lily", "fern"]


def saved(folder: Path, name: str, *, config: dict[str, Any], **args: Any) -> None:
    """An untrained network of timm's, which timm saved in both formats; `config` is how its images are prepared."""
    torchvision_compat.declare_missing()
    import timm
    from timm.models import save_for_hf

    torch.manual_seed(3)
    network = timm.create_model(name, **args).eval()
    for key, buffer in network.named_buffers():
        if key.endswith(("running_mean", "running_var")):  # otherwise all answers are nearly alike
            buffer.add_(0.2 * torch.rand_like(buffer))
    names = {"label_names": NAMES} if args.get("num_classes") == len(NAMES) else {}
    save_for_hf(network, folder, model_config=names, safe_serialization="both", data_config=config)


def changed(folder: Path, **members: Any) -> None:
    """Other members of `config.json`, or of its `pretrained_cfg`; `None` removes one."""
    file = folder / "config.json"
    table = json.loads(file.read_text())
    for key, value in members.items():
        part = table if key in table or key not in table["pretrained_cfg"] else table["pretrained_cfg"]
        part.pop(key, None)
        if value is not None:
            part[key] = value
    file.write_text(json.dumps(table))


def expected(folder: Path, image: Any) -> np.ndarray:
    """The probabilities that timm itself computes, of the network that it makes of the folder."""
    import timm
    from timm.data import create_transform, resolve_data_config

    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = create_transform(**resolve_data_config({}, model=network))
    with torch.inference_mode():
        return np.asarray(network(transform(image)[None]).softmax(1)[0])


def named(bundle: Bundle) -> list[str]:
    """The names of the classes."""
    return [each.name for each in bundle.labels() or ()]


def answered(bundle: Bundle, image: Any) -> tuple[list[str], np.ndarray]:
    """The names of the classes, and the probabilities that are served."""
    with flambeau.load(bundle.path) as model:
        answer = model.predict(encoded(image))
    return named(bundle), np.array(answer.probabilities)


UNUSUAL = {
    "input_size": (3, 96, 96), "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.5, 0.75), "interpolation": "bicubic",
    "crop_pct": 0.9,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network whose name torchvision has too, with names of classes."""
    found = tmp_path_factory.mktemp("flowers")
    saved(found, "resnet18", num_classes=3, config=UNUSUAL)
    (found / "pytorch_model.bin").unlink()  # the tests copy the folder
    return found


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "args", "config"),
    [
        pytest.param("resnet18", {}, {**UNUSUAL, "input_size": (3, 288, 288)}, marks=pytest.mark.slow),
        pytest.param("resnet18", {}, {**UNUSUAL, "crop_mode": "squash"}, marks=pytest.mark.slow),
        ("mobilenetv3_small_050", {"global_pool": "max"}, {**UNUSUAL, "interpolation": "bilinear", "crop_pct": 1.0}),
        pytest.param(
            "vit_tiny_patch16_224",
            {"img_size": 96, "global_pool": "avg"},
            {"mean": (0.5,) * 3, "std": (0.5,) * 3},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_answers_are_timms_own(
    name: str, args: dict[str, Any], config: dict[str, Any], built: Build, notes: list[str], tmp_path: Path
) -> None:
    saved(tmp_path / "net", name, num_classes=3, config=config, **args)
    bundle = built(tmp_path / "net" / "model.safetensors")
    assert bundle.manifest.architecture is not None
    assert (bundle.manifest.architecture.registry, bundle.manifest.architecture.name) == ("timm", name)
    for image in (photograph("chelsea"), photograph("rocket").resize((301, 640))):
        names, found = answered(bundle, image)
        assert names == NAMES
        assert np.abs(found - expected(tmp_path / "net", image)).max() < 1e-5
    told = "\n".join(notes)
    assert f"config.json beside the weights says that they are those of timm's {name}" in told
    assert f"images are prepared with {bundle.manifest.pipeline}, as config.json beside the weights says" in told
    assert f"{bundle.manifest.pipeline}\n" in run_with_torch("inspect", tmp_path / "net" / "pytorch_model.bin").stdout


@pytest.mark.long
def test_inspect_says_what_the_build_makes(folder: Path, built: Build) -> None:
    pipeline = built(folder / "model.safetensors").manifest.pipeline
    assert isinstance(pipeline, ImageConfig)
    assert (pipeline.resize, pipeline.crop, pipeline.interpolation) == (106, 96, "bicubic")
    done = run_with_torch("inspect", folder / "model.safetensors")
    lines = {line[:14].strip(): line[14:] for line in done.stdout.splitlines()}
    assert lines["architecture"] == "resnet18"
    assert lines["classes"] == "3: rose, lily, fern"
    assert lines["prepared"] == str(pipeline)
    assert "config.json beside the weights says that they are those of timm's resnet18" in done.stdout
    assert lines["serve"] == f"flambeau serve {folder / 'model.safetensors'}"


@pytest.mark.slow
def test_another_config_makes_another_build(folder: Path, built: Build, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "net")
    first = built(tmp_path / "net" / "model.safetensors")
    changed(tmp_path / "net", mean=[0.1, 0.2, 0.3])
    second = built(tmp_path / "net" / "model.safetensors")
    assert first.path != second.path
    assert isinstance(second.manifest.pipeline, ImageConfig)
    assert second.manifest.pipeline.mean == (0.1, 0.2, 0.3)
    (tmp_path / "net" / "config.json").unlink()
    third = built(tmp_path / "net" / "model.safetensors")
    assert third.path not in (first.path, second.path)
    assert third.manifest.pipeline == ImageConfig()
    assert third.labels() is None


@pytest.mark.long
def test_what_the_user_says_comes_first(folder: Path, built: Build, tmp_path: Path) -> None:
    (tmp_path / "others.txt").write_text("a\nb\nc\n")
    said = {"mean": (0.1, 0.1, 0.1), "crop": 64, "labels": str(tmp_path / "others.txt"), "arch": "resnet18"}
    bundle = built(folder / "model.safetensors", **said)
    assert isinstance(bundle.manifest.pipeline, ImageConfig)
    assert bundle.manifest.pipeline == ImageConfig(106, 64, (0.1, 0.1, 0.1), (0.25, 0.5, 0.75), "bicubic")
    assert named(bundle) == ["a", "b", "c"]
    assert bundle.manifest.architecture is not None
    assert bundle.manifest.architecture.registry == "torchvision"  # whose name it is


@pytest.mark.slow
def test_links_are_followed_as_the_hub_lays_them(folder: Path, built: Build, tmp_path: Path) -> None:
    """`snapshots/REVISION/model.safetensors` is a link to `blobs/SHA256`, where no other file lies."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshots").mkdir()
    for name in ("model.safetensors", "config.json"):
        shutil.copy(folder / name, tmp_path / "blobs" / f"of-{name}")
        (tmp_path / "snapshots" / name).symlink_to(tmp_path / "blobs" / f"of-{name}")
    pipeline = built(tmp_path / "snapshots" / "model.safetensors").manifest.pipeline
    assert isinstance(pipeline, ImageConfig)
    assert pipeline.mean == (0.5, 0.5, 0.5)


def test_without_timm_its_twin_of_torchvision_is_taken(folder: Path) -> None:
    report = examine(folder / "model.safetensors")
    tensors = choose(report, None)[0].tensors
    config = timm_config.read(folder / "config.json")
    fit = identify.detect(tensors, config=config, timm=False).fit
    assert fit is not None
    assert (fit.architecture.registry, fit.architecture.name) == ("torchvision", "resnet18")


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ({"crop_mode": "border"}, "--resize 106 --crop 96"),
        ({"input_size": [3, 96, 128]}, "images of 96 × 128 pixels"),
        ({"interpolation": "lanczos"}, "write one of these there"),
        ({"input_size": [1, 96, 96], "model_args": None}, "images of 1 channels"),
        ({"model_args": {"in_chans": 1}}, "timm.create_model('resnet18', in_chans=1)"),
        ({"mean": [0.5]}, "mean of 1 numbers for images of 3 channels"),
        ({"num_classes": 10}, "a network with 10 classes, and they have 3 classes"),
        ({"num_classes": 0}, "a network with no head, and they have 3 classes"),
        ({"architecture": "resnet34"}, "timm's resnet34, but the weights do not fill"),
        ({"architecture": "resnet18x"}, "--arch resnet18 takes"),
        ({"model_args": {"act_layer": "gelu"}}, "made with act_layer"),
        ({"model_args": {"checkpoint_path": "/etc/passwd"}}, "made with checkpoint_path"),
        ({"mean": "0.5"}, "correct it, or remove it"),
        ({"std": [0.5, 0, 0.5]}, "correct it, or remove it"),
        ({"crop_pct": -1}, "correct it, or remove it"),
        ({"input_size": [3, 100000, 100000]}, "correct it, or remove it"),
        ({"input_size": [3, 96]}, "correct it, or remove it"),
    ],
)
def test_what_is_not_done_as_it_says_is_refused_with_a_way(
    members: dict[str, Any], told: str, folder: Path, built: Build, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "net")
    changed(tmp_path / "net", **members)
    with pytest.raises(SourceError) as refused:
        built(tmp_path / "net" / "model.safetensors")
    assert told in str(refused.value)
    inspected = run_with_torch("inspect", tmp_path / "net" / "model.safetensors")
    assert inspected.returncode == 1
    assert told in inspected.stdout + inspected.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("members", "way"),
    [
        ({"crop_mode": "border"}, {"resize": 106, "crop": 96}),
        ({"input_size": [3, 96, 128]}, {"crop": 96}),
        ({"architecture": "resnet34"}, {"arch": "timm/resnet18"}),
    ],
)
def test_the_way_that_is_named_leads_on(
    members: dict[str, Any], way: dict[str, Any], folder: Path, built: Build, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "net")
    changed(tmp_path / "net", **members)
    bundle = built(tmp_path / "net" / "model.safetensors", **way)
    assert isinstance(bundle.manifest.pipeline, ImageConfig)
    assert bundle.manifest.pipeline.mean == (0.5, 0.5, 0.5)


@pytest.mark.long
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"architecture": "resnet18", "pretrained_cfg": {"mean": [0.5', "correct it, or remove it"),
        ("x" * 9_000_000 + '"pretrained_cfg"', None),
        ('"pretrained_cfg"' + "x" * 9_000_000, "it has more than"),
        (
            '{"model_type": "resnet", "architectures": ["ResNetForImageClassification"]}',
            "those of another network, name it with --arch",
        ),
        ("not JSON", None),
        ("[" * 100_000, None),
        ("", None),
        ("[1]", None),
    ],
)
def test_only_timms_own_file_is_read(text: str, told: str | None, folder: Path, built: Build, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "net")
    (tmp_path / "net" / "config.json").write_text(text)
    if told:
        with pytest.raises(SourceError, match=told):
            built(tmp_path / "net" / "model.safetensors")
    else:
        assert built(tmp_path / "net" / "model.safetensors").manifest.pipeline == ImageConfig()


@pytest.mark.slow
def test_a_file_of_before_there_was_pretrained_cfg_is_read(folder: Path, built: Build, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "net")
    old = {"architecture": "resnet18", "num_classes": 3, "input_size": [3, 64, 64], "mean": [0.5, 0.4, 0.3],
           "labels": {"0": "a", "1": "b", "2": "c"}}  # fmt: skip
    (tmp_path / "net" / "config.json").write_text(json.dumps(old))
    bundle = built(tmp_path / "net" / "model.safetensors")
    assert isinstance(bundle.manifest.pipeline, ImageConfig)
    assert bundle.manifest.pipeline == ImageConfig(73, 64, (0.5, 0.4, 0.3), (0.229, 0.224, 0.225), "bicubic")
    assert named(bundle) == ["a", "b", "c"]
    found, image = answered(bundle, photograph("coffee"))[1], photograph("coffee")
    assert np.abs(found - expected(tmp_path / "net", image)).max() < 1e-5


@pytest.mark.long
@pytest.mark.parametrize(
    ("names", "told"),
    [(["a", "b"], "it names 2 classes, and there are 3"), ({"0": "a", "2": "c"}, "no name for class 1")],
)
def test_names_that_do_not_fit_are_not_taken(names: object, told: str, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "net")
    changed(tmp_path / "net", label_names=names)
    inspected = run_with_torch("inspect", tmp_path / "net" / "model.safetensors")
    assert told in inspected.stdout
    assert inspected.stdout.rstrip().endswith("--labels FILE")
    if isinstance(names, list):
        built = run_with_torch("build", tmp_path / "net" / "model.safetensors", "-o", tmp_path / "bundle")
        assert told in built.stderr
        assert not (tmp_path / "bundle" / "labels.json").exists()


@pytest.mark.long
def test_other_weights_in_the_folder_are_not_prepared_by_it(folder: Path, built: Build, notes: list[str]) -> None:
    other = folder / "other.safetensors"
    shutil.copy(folder / "model.safetensors", other)
    assert built(other).manifest.pipeline == ImageConfig()
    told = "config.json in the folder, as timm writes it, is not read"
    assert told in "\n".join(notes)
    assert told in run_with_torch("inspect", other).stdout
    other.unlink()


def test_the_only_weights_in_the_folder_are_its_own_whatever_they_are_called(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "model.safetensors", tmp_path / "flowers.safetensors")
    shutil.copy(folder / "config.json", tmp_path)
    assert "Resize(106, bicubic)" in run_with_torch("inspect", tmp_path / "flowers.safetensors").stdout


@pytest.mark.long
def test_a_model_of_a_repository_is_served_with_it(folder: Path, serve: Serve, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "models" / "flowers" / "3")
    image = photograph("chelsea")
    with serve(tmp_path / "models") as server:
        answer = server.post("/predict/flowers/3?top_k=3", data=encoded(image)).json()
    wanted = expected(folder, image)
    assert {each["class_name"] for each in answer["predictions"]} == set(NAMES)
    for each in answer["predictions"]:
        assert abs(each["probability"] - wanted[NAMES.index(each["class_name"])]) < 1e-5
