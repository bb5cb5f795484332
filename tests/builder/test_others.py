"""Files are told for what they are: weights beside modules and in parts, what has no task, graphs (U5 to U14)."""

import ast
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import corpus_nets
from flambeau import checkpoints
from flambeau.builder import parts
from flambeau.errors import SourceError
from flambeau.identify import detect, unsupported
from flambeau.identify.finding import assess_graph
from flambeau.settings.source import SourceOptions
from flambeau.sources import request
from flambeau.sources.inspection import inspect
from tests.support.checkpoints import described
from tests.support.corpus_images import prefixed
from tests.support.corpus_numbers import write_onnx
from tests.support.warm import run_with_torch

LINE = nn.Linear(4, 3)


@pytest.mark.parametrize(
    ("contents", "where"),
    [
        ({"classifier": LINE, "state_dict": LINE.state_dict(), "class_to_idx": {"a": 0, "b": 1}}, ("state_dict",)),
        ({"model": LINE, "weights": LINE.state_dict()}, ("weights",)),
        ({"network": LINE, "mine": LINE.state_dict()}, ("network",)),
        ({"thing": LINE, "mine": LINE.state_dict()}, ("mine",)),
        ({"model": LINE, "stats": {"mean": torch.zeros(3)}}, ("model",)),
    ],
)
def test_weights_go_before_a_module_beside_them(tmp_path: Path, contents: Any, where: tuple[str, ...]) -> None:
    """U5: known names of mappings, then of modules, then the largest; a table of statistics is no network's weights."""
    torch.save(contents, tmp_path / "course.pth")
    entry, _ = checkpoints.choose(checkpoints.examine(tmp_path / "course.pth"), None)
    assert entry.where == where
    assert entry.module == isinstance(contents[where[0]], nn.Module)


def test_weights_beside_a_module_take_the_options_of_weights(tmp_path: Path) -> None:
    """U5: what one sentence asked for was refused by the next as being of no effect."""
    file = tmp_path / "course.pth"
    torch.save({"classifier": LINE, "state_dict": LINE.state_dict()}, file)
    order = request.build_request(SourceOptions(source=str(file), hidden_activation="relu", allow_code=True))
    assert order.kind == "program"
    own = f"{corpus_nets.__file__}:Norms"
    assert request.build_request(SourceOptions(source=str(file), arch=own, allow_code=True)).code is not None
    torch.save({"model": LINE}, file)
    with pytest.raises(SourceError, match="--hidden-activation has no effect on"):
        request.build_request(SourceOptions(source=str(file), hidden_activation="relu", allow_code=True))


def pruned(layer: nn.Module) -> None:
    prune.random_unstructured(layer, "weight", amount=0.5)
    prune.random_unstructured(layer, "bias", amount=0.5)


def length(layer: Any, dim: int | None = 0) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.weight_norm(layer, dim=dim)  # type: ignore[arg-type]
    layer.weight_g.data.mul_(1.7)


def new_length(layer: Any, dim: int = 0) -> None:
    nn.utils.parametrizations.weight_norm(layer, dim=dim)
    layer.parametrizations.weight.original0.data.mul_(1.7)


KEPT: dict[str, Callable[[nn.Module], Any]] = {
    "pruned": pruned,
    "weight_norm": length,
    "weight_norm of columns": lambda layer: length(layer, 1),
    "weight_norm of the whole": lambda layer: length(layer, None),
    "weight_norm, parametrised": new_length,
    "spectral_norm": nn.utils.spectral_norm,
    "spectral_norm, parametrised": nn.utils.parametrizations.spectral_norm,
}


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Linear(6, 4), lambda: nn.Linear(6, 1), lambda: nn.Linear(5, 5), lambda: nn.Conv2d(3, 8, 3),
        lambda: nn.Conv2d(4, 4, 1), lambda: nn.ConvTranspose2d(3, 8, 2),
    ],
    ids=["linear", "one-row", "square", "conv", "square-conv", "transposed"],
)  # fmt: skip
def test_weights_in_parts_are_those_that_the_layer_computes_with(make: Callable[[], nn.Module], kept: str) -> None:
    """U9: to the last bit, as in evaluation mode."""
    torch.manual_seed(3)
    layer: Any = make()
    KEPT[kept](layer)
    given = torch.randn(2, 3, 9, 9) if isinstance(layer, nn.ConvTranspose2d) else None
    if given is None:
        given = (
            torch.randn(2, layer.in_channels, 9, 9)
            if isinstance(layer, nn.Conv2d)
            else torch.randn(2, layer.in_features)
        )
    with torch.no_grad():
        layer.train()(given)
        expected = layer.eval()(given)
        plain = make().eval()
        plain.load_state_dict(parts.multiplied_out(dict(layer.state_dict())))
        assert torch.equal(plain(given), expected)


def test_parts_that_the_network_has_itself_stay_as_they_are() -> None:
    """U9: an own class that norms its weights fills as before."""
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    state = dict(layer.state_dict())
    assert parts.multiplied_out(state, unless=state.keys()).keys() == state.keys()
    gate = {"w_g": torch.ones(3, 4), "w_v": torch.ones(3, 4), "fc.weight_orig": torch.ones(2)}
    assert parts.multiplied_out(gate).keys() == gate.keys()


def test_a_parametrisation_that_is_not_known_says_how_it_is_taken_off() -> None:
    """U9."""
    layer = nn.utils.parametrizations.orthogonal(nn.Linear(4, 4))
    finding = detect(described(prefixed("fc.", layer.state_dict())))
    assert finding.fit is None
    assert finding.advice.startswith("fc keeps its weight in a parametrisation that is not known")
    assert "torch.nn.utils.parametrize.remove_parametrizations" in finding.advice


@pytest.mark.long
def test_every_network_without_a_task_is_named_with_its_classes() -> None:
    """U11: detectors, segmenters and the others of torchvision, with other numbers of classes than their own."""
    from torchvision import models

    for number, other in enumerate(unsupported.known()):
        prefix = ("", "module.", "model.net.")[number % 3]
        args: dict[str, Any] = {"weights": None}
        if other.task not in ("video classification", "optical flow"):
            args["weights_backbone"] = None
        if other.classes:
            args["num_classes"] = 7
        with torch.device("meta"):
            state = models.get_model(other.name, **args).state_dict()
        found = detect(described(prefixed(prefix, state)), timm=False)
        if other.task not in ("video classification", "optical flow"):  # all others are served
            assert found.fit is not None, other.name
            assert other.name in (found.fit.architecture.name, *found.fit.same_weights)
            assert found.fit.classes == 7
            continue
        assert found.fit is None
        assert found.known is not None, other.name
        assert other.name in found.known.names
        assert (found.known.task, found.known.classes) == (other.task, 7 if other.classes else None)
        assert f"this is torchvision's {found.known.names[0]}" in found.advice
        assert f"{other.task} is not served yet" in found.advice
        assert unsupported.image_sketch(found.known, "a.pth", ()) == ""  # it needs more than one picture


def test_names_of_a_file_become_literals_of_an_example_and_never_code(tmp_path: Path) -> None:
    """U7, U11: a Python model is printed to be run, and the names in it are a stranger's."""
    evil = 'x"]); import os; os.system("touch canary"); ("'
    inputs = [(evil, "float32", "n, 4"), ("it's", "int64", ""), ("line\nbreak", "float32", "n")]
    text = unsupported.graph_sketch("a'b.onnx", inputs)
    calls = {
        node.func.attr
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    assert "system" not in calls
    assert evil in {node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)}
    known = unsupported.Known(("maskrcnn_resnet50_fpn",), "instance segmentation", "p'q.", 3)
    tree = ast.parse(unsupported.image_sketch(known, "a'b.pth", ("key'], exit(), ['",)))
    names = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert "exit" not in names


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ("x float32[n, 4]", ""),
        ("x float32[1, 3, 64, 64]", ""),
        ("x float32[n, 3, h, w]", ""),
        ("x float32[4, 2]", "takes 4 rows at a time only"),
        ("x float32[n, h]", ""),
        ("x int64[n, 4]", ""),
        ("x float32[]", "does not say its shape"),
        ("a float32[n, 4], b float32[n, h]", ""),
        ("a float32[n, 4], rate int64[]", ""),
        ("a float32[n, 4], b float32[4, 2]", "it takes 4 rows of b at a time only"),
        ("a int64[], b int64[]", "no input of it has rows"),
        ("", "it takes 0 inputs"),
    ],
)
def test_a_graph_is_judged_as_the_build_judges_it(inputs: str, words: str) -> None:
    """U11: inspect prints a serve line for what serve takes, and for nothing else."""
    judged = assess_graph({"inputs": inputs, "outputs": "y float32[n, 3]"}, "a.onnx")
    assert (words in judged.needs) if words else judged.needs == ""
    assert bool(judged.example) == (bool(words) and bool(inputs))


def test_what_is_no_number_to_numpy_needs_a_python_model_of_ones_own() -> None:
    judged = assess_graph({"inputs": "x bfloat16[n, 4]", "outputs": "y float32[n, 3]"}, "a.onnx")
    assert "its input x is bfloat16, and numbers of at most 64 bits are served" in judged.needs
    assert not judged.example


@pytest.mark.long
def test_inspect_fails_where_serve_would(tmp_path: Path) -> None:
    """U11: numbers without names, an optimiser, a network that nobody knows, and a graph of four rows."""
    torch.save(list(LINE.parameters()), tmp_path / "bare.pth")
    torch.save(torch.optim.SGD(LINE.parameters(), lr=0.1, momentum=0.9).state_dict(), tmp_path / "optimiser.pth")
    torch.save(corpus_nets.Digits().state_dict(), tmp_path / "mnist.pth")
    write_onnx(tmp_path / "four.onnx", [], {"a": [4, 4]}, {"a": [4, 4]}, {})
    for name in ("bare.pth", "optimiser.pth", "mnist.pth", "four.onnx"):
        done = run_with_torch("inspect", tmp_path / name)
        assert done.returncode == 1, done.stdout
        assert "\nto do" in done.stdout
        assert "flambeau serve " + str(tmp_path) not in done.stdout
    assert "2 tensors without names" in run_with_torch("inspect", tmp_path / "bare.pth").stdout
    torch.save(LINE.state_dict(), tmp_path / "line.pth")
    assert run_with_torch("inspect", tmp_path / "line.pth").returncode == 0


def test_quantised_weights_are_refused_with_the_way_to_floats(tmp_path: Path) -> None:
    """U9: one remedy led to a file that lacked its head."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        packed = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 3)), {nn.Linear})
        torch.save(packed.state_dict(), tmp_path / "packed.pth")
    found = inspect(tmp_path / "packed.pth")
    assert found.report.verdict == "refused"
    assert "quantised" in found.report.reason
    assert "docs/sources.md#quantised-weights" in found.needs


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: nn.ModuleDict({"emb": nn.Embedding(1000, 16), "fc": nn.Linear(16, 2)}),
         "a table of 1000 vectors of 16 numbers (emb.weight), so their network may take whole numbers"),
        (corpus_nets.Steps, "an LSTM over steps of 4 numbers"),
        (corpus_nets.Words, "a table of 100 vectors of 8 numbers (embedding.weight) and a GRU over steps of 8 numbers"),
        (corpus_nets.Attending, "which have attention: give your own class"),
        (corpus_nets.Wave, "which have convolutions over series"),
        (lambda: nn.Sequential(nn.Conv3d(1, 2, 3), nn.Linear(2, 2)), "which have convolutions over volumes"),
        (lambda: nn.ModuleDict({"users": nn.Embedding(50, 8), "films": nn.Embedding(70, 8)}),
         "these are linear layers and norms over numbers, and the weights do not show how they are joined"),
    ],
    ids=["embedding", "lstm", "gru", "attention", "conv1d", "conv3d", "factors"],
)  # fmt: skip
def test_layers_are_called_what_they_are(make: Callable[[], nn.Module], words: str) -> None:
    """U14: an embedding's table was called a linear layer, and served as a network over numbers."""
    finding = detect(described(dict(make().state_dict())))
    assert finding.fit is None
    assert words in finding.advice
