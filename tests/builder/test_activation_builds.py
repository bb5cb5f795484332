"""W1 to W7 and U10 the whole way, from a file to the answer of what is built of it, with PyTorch's own numbers."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

import activation_nets
import flambeau
from flambeau.architectures import torchvision_compat
from flambeau.bundle.storage import Activation, Bundle, ImageConfig
from flambeau.errors import LabelsError, SourceError
from flambeau.pipelines import image
from flambeau.types import Classification, Embedding, MultiLabel, Regression
from tests.support.photographs import encoded, photograph
from tests.support.server import Serve
from tests.support.warm import run_with_torch

pytestmark = [pytest.mark.usefixtures("warm_builds"), pytest.mark.timeout(300)]  # they build, on a busy machine

NETS = Path(activation_nets.__file__)
SIDE = 64
PREPARED = ImageConfig(resize=SIDE, crop=SIDE)


def own(name: str, folder: Path) -> tuple[nn.Module, Path, dict[str, Any]]:
    """An own network with its weights in a file, and the options that serve it."""
    torch.manual_seed(11)
    network: nn.Module = getattr(activation_nets, name)().eval()
    torch.save(network.state_dict(), folder / f"{name}.pth")
    options = {"arch": f"{NETS}:{name}", "allow_code": True, "crop": SIDE}
    return network, folder / f"{name}.pth", options


def pixels(data: bytes, prepared: ImageConfig = PREPARED) -> torch.Tensor:
    """A picture as the service prepares it: `tests/unit/test_image_pipeline.py` holds that against torchvision."""
    decoded = image.decode(data, max_pixels=10**8)
    cropped = image.resize_and_crop(
        decoded, prepared.resize, prepared.crop, resampling=image._RESAMPLING[prepared.interpolation]
    )
    mean, std = np.array(prepared.mean, np.float32), np.array(prepared.std, np.float32)
    return torch.from_numpy(image.normalise(cropped, mean, std))


def scores(network: nn.Module, data: bytes, prepared: ImageConfig = PREPARED) -> torch.Tensor:
    with torch.inference_mode():
        result: torch.Tensor = network(pixels(data, prepared))
    return result[0]


def answer(made: Bundle, data: bytes) -> Any:
    with flambeau.load(made.path, allow_code=True) as model:
        return model.predict(data)


def resnet(outputs: int | None) -> nn.Module:
    """A ResNet-18 whose head was replaced, or taken off."""
    torchvision_compat.declare_missing()
    from torchvision import models

    torch.manual_seed(7)
    network: nn.Module = models.resnet18()
    network.fc = nn.Identity() if outputs is None else nn.Linear(512, outputs)
    return network.eval()


def test_one_output_is_never_a_softmax(tmp_path: Path) -> None:
    """W1: by path and by inspect, with the ways out, and nothing is written."""
    torch.save(resnet(1).state_dict(), tmp_path / "binary.pth")
    refused = run_with_torch("build", tmp_path / "binary.pth", "-o", tmp_path / "never")
    shown = run_with_torch("inspect", tmp_path / "binary.pth").stdout
    assert refused.returncode == 1
    assert not (tmp_path / "never").exists()
    for text in (refused.stderr, shown):
        assert "one output, of which a softmax would always make 1" in text
        assert "--task regression" in text
        assert "--task multi-label" in text
    assert "\nserve" not in shown


def test_one_output_can_be_a_number(built: Callable[..., Bundle], cat: bytes, tmp_path: Path) -> None:
    """W1: the first way out, by path."""
    network = resnet(1)
    torch.save(network.state_dict(), tmp_path / "age.pth")
    made = built(tmp_path / "age.pth", task="regression")
    assert made.manifest.task == "regression"
    assert made.labels() is None
    found = answer(made, cat)
    assert isinstance(found, Regression)
    assert found.output == pytest.approx(float(scores(network, cat, ImageConfig())[0]), abs=1e-4)


@pytest.mark.long
def test_one_output_can_be_the_score_of_a_class(built: Callable[..., Bundle], cat: bytes, tmp_path: Path) -> None:
    """W1: the second way out: binary, trained with BCEWithLogitsLoss. Its threshold is one half."""
    network, file, options = own("OneSqueezed", tmp_path)
    made = built(file, **options, activation="sigmoid")
    assert (made.manifest.task, made.manifest.activation) == ("multi-label", Activation("sigmoid", known="said"))
    assert isinstance(made.manifest.pipeline, ImageConfig)
    assert made.manifest.pipeline.threshold == 0.5
    found = answer(made, cat)
    assert isinstance(found, MultiLabel)
    with torch.inference_mode():
        expected = torch.sigmoid(network(pixels(cat)))
    assert found.scores == pytest.approx([float(expected)], abs=1e-5)


def test_the_softmax_over_a_checkpoint_is_said_and_can_be_declined(
    built: Callable[..., Bundle], notes: list[str], cat: bytes, tmp_path: Path
) -> None:
    """W4: a plain ResNet-18 with five outputs, trained with BCEWithLogitsLoss."""
    network = resnet(5)
    torch.save(network.state_dict(), tmp_path / "findings.pth")
    shown = run_with_torch("inspect", tmp_path / "findings.pth").stdout
    assert "softmax" in shown
    assert "--task multi-label" in shown
    made = built(tmp_path / "findings.pth", task="multi-label")
    found = answer(made, cat)
    assert isinstance(found, MultiLabel)
    expected = torch.sigmoid(scores(network, cat, ImageConfig()))
    assert found.scores == pytest.approx(expected.tolist(), abs=1e-5)
    of_bundle = run_with_torch("inspect", made.path).stdout
    assert "multi-label" in of_bundle
    assert "sigmoid, applied by Flambeau" in of_bundle


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "task", "by"),
    [
        ("Softmax", "classification", "network"),
        ("LogSoftmax", "classification", "network"),
        ("Undecided", "classification", "network"),
        ("Sigmoid", "multi-label", "network"),
        ("OnePlaceHead", "classification", "flambeau"),
    ],
)
def test_what_the_network_ends_in_is_not_applied_again(
    built: Callable[..., Bundle], notes: list[str], cat: bytes, tmp_path: Path, name: str, task: str, by: str
) -> None:
    """W2, W3: with ONNX Runtime, and with PyTorch itself where no exporter takes the network."""
    network, file, options = own(name, tmp_path)
    made = built(file, **options)
    assert (made.manifest.task, made.manifest.activated_by.by) == (task, by)
    assert (made.manifest.engine == "eager") == (name == "Undecided")
    assert any(note.startswith(f"task: {task}") for note in notes)
    with torch.inference_mode():
        given = network(torch.cat([pixels(cat)] * 2))[0]  # two rows: `.squeeze()` takes the axis of a single one
    expected = {"LogSoftmax": given.exp(), "OnePlaceHead": given.softmax(0)}.get(name, given)
    found = answer(made, cat)
    numbers = found.scores if isinstance(found, MultiLabel) else found.probabilities
    assert numbers == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.long
def test_features_are_never_classes(built: Callable[..., Bundle], notes: list[str], cat: bytes, tmp_path: Path) -> None:
    """W5: a whole module whose head was taken off gives its features; a body of one's own is asked for."""
    network = resnet(None)
    torch.save(network, tmp_path / "body.pt")
    made = built(tmp_path / "body.pt", allow_code=True)
    assert made.manifest.task == "embedding"
    assert any("fc in the place of its head does nothing" in note for note in notes)
    found = answer(made, cat)
    assert isinstance(found, Embedding)
    assert np.allclose(found.embedding, scores(network, cat, ImageConfig()), atol=1e-3)


def test_what_may_be_features_is_asked(built: Callable[..., Bundle], tmp_path: Path) -> None:
    """W5: a body of one's own. Labels say that they are classes, and of an embedding they say nothing."""
    _, file, options = own("Pooled", tmp_path)
    with pytest.raises(SourceError, match="--task embedding"):
        built(file, **options)
    (tmp_path / "names.txt").write_text("a\nb\n")
    with pytest.raises(SourceError, match="--labels has no effect"):
        built(file, **options, task="embedding", labels=str(tmp_path / "names.txt"))
    with pytest.raises(LabelsError, match="has 2 classes, but the model has 8 outputs"):
        built(file, **options, labels=str(tmp_path / "names.txt"))


def test_the_weights_of_a_body_without_its_head_make_features(
    built: Callable[..., Bundle], notes: list[str], cat: bytes, tmp_path: Path
) -> None:
    """W5: a state dict of `fc = nn.Identity()` lacks the head's keys, and no more."""
    network = resnet(None)
    torch.save(network.state_dict(), tmp_path / "body.pth")
    shown = run_with_torch("inspect", tmp_path / "body.pth").stdout
    assert "embedding" in shown
    made = built(tmp_path / "body.pth")
    assert made.manifest.task == "embedding"
    found = answer(made, cat)
    assert isinstance(found, Embedding)
    assert np.allclose(found.embedding, scores(network, cat, ImageConfig()), atol=1e-3)


@pytest.mark.long
@pytest.mark.parametrize("engine", ["auto", "eager"])
def test_an_answer_does_not_depend_on_strangers(
    built: Callable[..., Bundle], notes: list[str], serve: Serve, tmp_path: Path, engine: str
) -> None:
    """W6: `BatchNorm2d(track_running_stats=False)`. Many pictures at once get what each gets alone from PyTorch."""
    network, file, options = own("BatchNorm", tmp_path)
    pictures = [encoded(photograph(name)) for name in ("chelsea", "coffee", "rocket", "astronaut")]
    expected = [scores(network, each).softmax(0).tolist() for each in pictures]
    made = built(file, **options)
    assert made.manifest.one_row is not None
    assert engine == "eager" or any("one row at a time" in note for note in notes)  # the second time it is found built
    assert "one row" in run_with_torch("inspect", made.path).stdout
    flags = ("--allow-code", "--engine", engine, "--replicas", 1, "--max-queue-delay-ms", 20)
    with serve(made.path, *flags) as server, ThreadPoolExecutor(8) as pool:
        posted = [each for _ in range(8) for each in pictures]
        bodies = list(pool.map(lambda each: server.post(files={"image": ("a.png", each)}).json(), posted))
    assert np.allclose([body["probabilities"] for body in bodies], expected * 8, atol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "says"),
    [("AlwaysDropping", "AlwaysDropping is random"), ("NeedsCompany", "NeedsCompany needs more than one row")],
)
def test_networks_that_would_never_start_are_refused_when_they_are_built(tmp_path: Path, name: str, says: str) -> None:
    """U10: the true sentence, and no bundle is left."""
    _, file, options = own(name, tmp_path)
    flags = ("--arch", options["arch"], "--allow-code", "--crop", SIDE)
    refused = run_with_torch("build", file, *flags, "-o", tmp_path / "never")
    assert refused.returncode == 1
    assert says in refused.stderr
    assert "build it again" not in refused.stderr
    assert not (tmp_path / "never").exists()


def test_of_what_a_network_returns_the_user_says_what_is_served(
    built: Callable[..., Bundle], notes: list[str], cat: bytes, tmp_path: Path
) -> None:
    """W7, U7: a tuple, with ONNX Runtime and with PyTorch itself."""
    network, file, options = own("ScoresAndFeatures", tmp_path)
    with pytest.raises(SourceError, match="--output-name 0"):
        built(file, **options)
    made = built(file, **options, output_name="0")
    with torch.inference_mode():
        expected = network(pixels(cat))[0][0].softmax(0)
    for engine in ("onnxruntime", "eager"):
        with flambeau.load(made.path, allow_code=True, engine=engine) as model:
            assert model.predict(cat).probabilities == pytest.approx(expected.tolist(), abs=1e-5)


def graph(*outputs: str, last: str = "Softmax", axis: int = 1) -> onnx.ModelProto:
    """(N, 3, 8, 8) to five scores, and an activation of them; `outputs` says which of them come out."""
    weights = np.random.default_rng(5).normal(0, 0.2, (192, 5)).astype(np.float32)
    fixed: dict[str, Any] = {"Softmax": {"axis": axis}, "LogSoftmax": {"axis": axis}}.get(last, {})
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        helper.make_node(last, ["logits"], ["activated"], **fixed),
        helper.make_node("Unsqueeze", ["activated", "two"], ["wide"]),
        helper.make_node("Squeeze", ["wide", "two"], ["probabilities"]),
    ]
    constants = [
        helper.make_tensor("weights", TensorProto.FLOAT, weights.shape, weights.flatten().tolist()),
        helper.make_tensor("two", TensorProto.INT64, [1], [2]),
    ]
    sizes = {"flat": 192}
    made = helper.make_graph(
        nodes,
        "head",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info(each, TensorProto.FLOAT, ["n", sizes.get(each, 5)]) for each in outputs],
        constants,
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def logits(data: bytes) -> torch.Tensor:
    weights = np.random.default_rng(5).normal(0, 0.2, (192, 5)).astype(np.float32)
    return pixels(data, ImageConfig(resize=8, crop=8)).flatten(1)[0] @ torch.from_numpy(weights)


@pytest.mark.long
@pytest.mark.parametrize(
    ("last", "expected", "ends"),
    [
        ("Softmax", lambda scores: scores.softmax(0), "a softmax"),
        ("LogSoftmax", lambda scores: scores.softmax(0), "a log-softmax"),
        ("Sigmoid", torch.sigmoid, "a sigmoid"),
        ("Identity", lambda scores: scores.softmax(0), "a linear layer"),
    ],
)
def test_an_onnx_graph_tells_what_it_ends_in(
    built: Callable[..., Bundle], cat: bytes, tmp_path: Path, last: str, expected: Callable[..., Any], ends: str
) -> None:
    """W2, W3: through trailing reshapes; and inspect reads the same off the file."""
    onnx.save(graph("probabilities", last=last), tmp_path / "head.onnx")
    made = built(tmp_path / "head.onnx")
    found = answer(made, cat)
    assert isinstance(found, MultiLabel if last == "Sigmoid" else Classification)
    numbers = found.scores if isinstance(found, MultiLabel) else found.probabilities
    assert numbers == pytest.approx(expected(logits(cat)).tolist(), abs=1e-5)
    shown = json.loads(run_with_torch("inspect", tmp_path / "head.onnx", "--json").stdout)
    assert ends in shown["report"]["facts"]["ends in"]


@pytest.mark.long
def test_of_two_outputs_of_an_onnx_graph_the_probabilities_are_taken(
    built: Callable[..., Bundle], notes: list[str], cat: bytes, tmp_path: Path
) -> None:
    """W7: logits and probabilities, which is said. Anything else is asked."""
    onnx.save(graph("logits", "probabilities"), tmp_path / "two.onnx")
    made = built(tmp_path / "two.onnx")
    assert made.manifest.activation == Activation("softmax", by="network", known="graph")
    assert [each.name for each in made.manifest.outputs] == ["probabilities"]
    assert any("its output probabilities is the answer, because it is the softmax of logits" in note for note in notes)
    assert answer(made, cat).probabilities == pytest.approx(logits(cat).softmax(0).tolist(), abs=1e-5)
    made = built(tmp_path / "two.onnx", output_name="logits", task="embedding")
    assert np.allclose(answer(made, cat).embedding, logits(cat), atol=1e-4)
    onnx.save(graph("logits", "flat"), tmp_path / "asked.onnx")
    with pytest.raises(SourceError, match=r"logits float32\[N, 5\], flat float32\[N, 192\].*--output-name logits"):
        built(tmp_path / "asked.onnx")


@pytest.mark.long
def test_an_onnx_graph_over_its_batch_is_given_one_row_at_a_time(
    built: Callable[..., Bundle], notes: list[str], tmp_path: Path
) -> None:
    """W6: a softmax over the rows of a batch, under scores that are told to be a regression."""
    onnx.save(graph("probabilities", axis=0), tmp_path / "rows.onnx")
    with pytest.raises(SourceError, match="do not sum to 1"):
        built(tmp_path / "rows.onnx")
    made = built(tmp_path / "rows.onnx", task="regression")
    assert made.manifest.one_row is not None
    assert any("one row at a time" in note for note in notes)


@pytest.mark.long
@pytest.mark.parametrize(("option", "value"), [("task", "embedding"), ("activation", "softmax")])
def test_a_network_over_numbers_has_no_task_to_choose(
    built: Callable[..., Bundle], tmp_path: Path, option: str, value: str
) -> None:
    torch.save(nn.Linear(4, 3).state_dict(), tmp_path / "line.pth")
    with pytest.raises(SourceError, match=f"--{option} has no effect"):
        built(tmp_path / "line.pth", **{option: value})
    made = built(tmp_path / "line.pth")
    assert (made.manifest.task, made.manifest.activated_by.function) == ("tensor", "none")
