"""Builds of networks with several named inputs and outputs, and of those over rows of any length: every output is the
one of PyTorch, or of ONNX Runtime over the file itself."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper
from torch import nn

import flambeau
from flambeau.bundle import storage
from flambeau.bundle.storage import Bundle
from flambeau.errors import EngineError, RequestError, SourceError
from flambeau.settings.source import SourceOptions
from flambeau.sources import build_cache
from tests.support.server import run_flambeau
from tests.support.tensor_bundles import alike, save, unlike

pytestmark = [pytest.mark.usefixtures("warm_builds"), pytest.mark.timeout(600)]

NETS = '''
import torch
from torch import nn


class Two(nn.Module):
    """Two inputs, one output."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(4, 3), nn.Linear(6, 3)

    def forward(self, left, right):
        return self.left(left) * self.right(right.flatten(1)).tanh()


class Both(Two):
    """Two inputs, and outputs by name: one per row of the second input."""

    def forward(self, left, right):
        return {"scores": super().forward(left, right), "sums": right.sum(2), "best": left.argmax(1)}


class Pair(nn.Module):
    """One input, two outputs in a tuple."""

    def __init__(self):
        super().__init__()
        self.line, self.value = nn.Linear(4, 3), nn.Linear(4, 1)

    def forward(self, rows):
        return self.line(rows), self.value(rows)


class State(Pair):
    """Its second output has no row for each of the input."""

    def forward(self, rows):
        return self.line(rows), self.value.weight


class Marked(nn.Module):
    """Two series of one length, and a third of any."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, series, mask, other):
        return (series * mask).sum(1) @ self.weight + other.sum((1, 2))


class Steps(nn.Module):
    """A series of any length through an LSTM, to its last state and a number for each step."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 6, batch_first=True)
        self.last, self.each = nn.Linear(6, 2), nn.Linear(6, 1)

    def forward(self, series):
        found = self.lstm(series)[0]
        return {"last": self.last(found[:, -1]), "each": self.each(found)}


class Wave(nn.Module):
    """A signal of two channels, of five samples or more."""

    def __init__(self):
        super().__init__()
        self.conv, self.out = nn.Conv1d(2, 4, 5), nn.Linear(4, 3)

    def forward(self, signals):
        return self.out(torch.relu(self.conv(signals)).mean(2))


class Tens(nn.Module):
    """Ten steps and no other number of them."""

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(8, 2)

    def forward(self, steps):
        return self.line(steps.flatten(1))
'''


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("nets")
    (folder / "tensor_nets.py").write_text(NETS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        import tensor_nets  # type: ignore[import-not-found]

        yield tensor_nets


Built = Callable[..., Bundle]


def made(nets: Any, name: str, folder: Path) -> tuple[nn.Module, Path, dict[str, Any]]:
    """A network with numbers, its file, and the options that name its class."""
    torch.manual_seed(9)
    network = getattr(nets, name)().eval()
    torch.save(network.state_dict(), folder / f"{name}.pth")
    return network, folder / f"{name}.pth", {"arch": f"{nets.__file__}:{name}", "allow_code": True}


def computed(network: nn.Module, *rows: Any) -> Any:
    with torch.inference_mode():
        return network(*(torch.tensor(each, dtype=torch.float32) for each in rows))


LEFT = [[0.5, -1.0, 2.0, 0.25], [1.0, 3.0, -2.0, 0.0]]
RIGHT = [[[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]], [[1.0, 0.0, -1.0], [2.0, 1.0, 0.0]]]
SHAPES = {"left": (4,), "right": (2, 3)}


@pytest.mark.parametrize("engine", ["onnxruntime", "eager"])
def test_a_network_of_two_inputs_takes_them_by_the_names_of_its_arguments(
    nets: Any, built: Built, tmp_path: Path, engine: str
) -> None:
    network, file, options = made(nets, "Two", tmp_path)
    bundle = built(file, input_shape=SHAPES, **options)
    assert [spec.name for spec in bundle.manifest.inputs] == ["left", "right"]
    assert (bundle.manifest.engine, bundle.manifest.export_error) == ("onnxruntime", None)
    with flambeau.load(bundle.path, allow_code=True, engine=engine) as model:
        alike(model.predict({"right": RIGHT, "left": LEFT}), computed(network, LEFT, RIGHT))
        alike(model.predict({"left": LEFT[1], "right": RIGHT[1]}), computed(network, LEFT, RIGHT)[1])


@pytest.mark.long
@pytest.mark.parametrize("engine", ["onnxruntime", "eager"])
def test_every_output_of_a_dict_is_answered_by_its_key(
    nets: Any, built: Built, notes: list[str], tmp_path: Path, engine: str
) -> None:
    network, file, options = made(nets, "Both", tmp_path)
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "one.json").write_text(json.dumps({"input": {"left": LEFT[0], "right": RIGHT[0]}}))
    bundle = built(file, input_shape=SHAPES, samples=str(tmp_path / "samples"), **options)
    assert [(spec.name, spec.dtype, spec.shape) for spec in bundle.manifest.outputs] == [
        ("scores", "float32", (3,)), ("sums", "float32", (2,)), ("best", "int64", ()),
    ]  # fmt: skip
    assert bundle.manifest.export_error is None
    assert any("answers with 3 outputs, scores float32[N, 3], sums" in note for note in notes), notes
    expected = computed(network, LEFT, RIGHT)
    with flambeau.load(bundle.path, allow_code=True, engine=engine) as model:
        found = model.predict({"left": LEFT, "right": RIGHT})
        for name in ("scores", "sums", "best"):
            alike(found[name], expected[name])
        assert model.predict({"left": LEFT[1], "right": RIGHT[1]})["best"] == int(expected["best"][1])


def test_outputs_in_a_tuple_are_called_by_their_numbers_and_one_may_be_taken(
    nets: Any, built: Built, tmp_path: Path
) -> None:
    network, file, options = made(nets, "Pair", tmp_path)
    line, value = computed(network, LEFT)
    with flambeau.load(built(file, **options).path, allow_code=True) as model:
        found = model.predict(LEFT)
        assert list(found) == ["0", "1"]
        alike(found["0"], line)
        alike(found["1"], value)
    with flambeau.load(built(file, output_name="1", **options).path, allow_code=True) as model:
        alike(model.predict(LEFT), value)


def test_an_output_without_rows_is_asked_about(nets: Any, built: Built, tmp_path: Path) -> None:
    _, file, options = made(nets, "State", tmp_path)
    with pytest.raises(SourceError, match=r"State has 2 outputs .*say which is the answer with --output-name"):
        built(file, **options)


def test_shapes_that_are_missing_are_asked_for_by_the_arguments(nets: Any, built: Built, tmp_path: Path) -> None:
    _, file, options = made(nets, "Two", tmp_path)
    with pytest.raises(SourceError, match=r"takes 2 inputs \(left, right\): .*--input-shape left=3,right=4"):
        built(file, **options)
    with pytest.raises(SourceError, match="names left, but Two takes left, right: name exactly those"):
        built(file, input_shape={"left": (4,)}, **options)


def test_the_command_line_names_shapes_by_input(nets: Any, tmp_path: Path) -> None:
    network, file, options = made(nets, "Two", tmp_path)
    done = run_flambeau(
        "build", file, "--arch", options["arch"], "--allow-code", "--input-shape", "left=4,right=2,3",
        "-o", tmp_path / "two",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with flambeau.load(tmp_path / "two", allow_code=True) as model:
        alike(model.predict({"left": LEFT, "right": RIGHT}), computed(network, LEFT, RIGHT))


def test_a_torchscript_network_of_two_inputs(nets: Any, built: Built, tmp_path: Path) -> None:
    network, _, _ = made(nets, "Two", tmp_path)
    torch.jit.script(network).save(tmp_path / "two.ts")
    bundle = built(tmp_path / "two.ts", allow_code=True, input_shape=SHAPES)
    with flambeau.load(bundle.path) as model:
        alike(model.predict({"left": LEFT, "right": RIGHT}), computed(network, LEFT, RIGHT))


@pytest.mark.long
@pytest.mark.parametrize(
    ("words", "third"),
    [
        ("aba", ("a", "")),
        pytest.param("aac", (), marks=pytest.mark.slow),  # a build each
        pytest.param("abc", (), marks=pytest.mark.slow),
    ],
)
def test_the_export_tells_which_lengths_have_to_be_alike(
    nets: Any, built: Built, tmp_path: Path, words: str, third: tuple[str, ...]
) -> None:
    _, file, options = made(nets, "Marked", tmp_path)
    shapes = {name: (word, 3) for name, word in zip(("series", "mask", "other"), words, strict=True)}
    bundle = built(file, input_shape=shapes, **options)
    series, mask, other = (spec.words for spec in bundle.manifest.inputs)
    assert series == mask == ("a", "")
    assert other == third
    row, longer = [[1.0, 2.0, 3.0]], [[1.0, 2.0, 3.0]] * 2
    with flambeau.load(bundle.path, allow_code=True) as model:
        assert float(model.predict({"series": longer, "mask": longer, "other": longer})) == 40
        if third:
            assert "'a' is 2 in the input 'series', and 1 in 'other'" in unlike(
                model, {"series": longer, "mask": longer, "other": row}
            )
        assert "in the input 'series', and 1 in 'mask'" in unlike(model, {"series": longer, "mask": row, "other": row})


# Lengths that are free


@pytest.mark.long
@pytest.mark.parametrize("engine", ["onnxruntime", "eager"])
def test_a_series_of_any_length_through_an_lstm(
    nets: Any, built: Built, notes: list[str], tmp_path: Path, engine: str
) -> None:
    network, file, options = made(nets, "Steps", tmp_path)
    bundle = built(file, input_shape=("steps", 4), **options)
    assert (bundle.manifest.engine, bundle.manifest.export_error) == ("onnxruntime", None)
    assert not notes or any("any length of 1 or more: tried with 8 and 13" in note for note in notes)
    assert [spec.shape for spec in bundle.manifest.outputs] == [(2,), (-1, 1)]
    with flambeau.load(bundle.path, allow_code=True, engine=engine) as model:
        for length in (1, 3, 8, 50):
            rows = np.random.default_rng(length).standard_normal((2, length, 4)).round(3).tolist()
            expected = computed(network, rows)
            found = model.predict(rows)
            alike(found["last"], expected["last"])
            alike(found["each"], expected["each"])
            alike(model.predict(rows[0])["each"], expected["each"][0])


@pytest.mark.long
@pytest.mark.parametrize("engine", ["onnxruntime", "eager"])
def test_the_least_length_of_a_convolution_is_found_and_told(
    nets: Any, built: Built, tmp_path: Path, engine: str
) -> None:
    network, file, options = made(nets, "Wave", tmp_path)
    bundle = built(file, input_shape=(2, "samples"), **options)
    assert bundle.manifest.inputs[0].least == 5
    with flambeau.load(bundle.path, allow_code=True, engine=engine) as model:
        for length in (5, 64, 999):
            rows = np.random.default_rng(length).standard_normal((1, 2, length)).round(3).tolist()
            alike(model.predict(rows), computed(network, rows))
        with pytest.raises(RequestError) as caught:
            model.predict([[1, 2, 3, 4], [1, 2, 3, 4]])
    assert caught.value.message == (
        "input must be nested lists of shape [2, 5 or more], or a list of those, but its shape is [2, 4]"
    )


def test_rows_of_several_lengths_at_once_get_their_own_answers(nets: Any, built: Built, tmp_path: Path) -> None:
    """Those of one length are computed together, and never with others."""
    from flambeau.serving.service import BlockingService, Service
    from flambeau.settings.service import Settings
    from flambeau.types import Options, Payload

    network, file, options = made(nets, "Wave", tmp_path)
    bundle = built(file, input_shape=(2, "samples"), **options)
    numbers = np.random.default_rng(0)
    rows = [numbers.standard_normal((2, 5 + place % 4)).round(3).tolist() for place in range(24)]
    payloads = [Payload("json", json.dumps(each).encode()) for each in rows]
    service = BlockingService(lambda: Service([bundle], Settings(runner="processes", replicas=1, max_batch_size=24)))
    try:
        outcomes = service.call(lambda each: each.predict(each.get(), payloads, Options(), timeout=60.0))
        taken = {"input": np.array(rows[:1], np.float32)}
        inferred = service.call(lambda each: each.infer(each.get(), taken, timeout=60.0))
        with pytest.raises(RequestError, match=r"must be float32 \[N, 2, 5 or more\], but .*\[1, 2, 3\]"):
            service.call(lambda each: each.infer(each.get(), {"input": np.zeros((1, 2, 3), np.float32)}, timeout=60.0))
    finally:
        service.close()
    for row, outcome in zip(rows, outcomes, strict=True):
        assert not isinstance(outcome.result, RequestError)
        alike(outcome.result.returned(), computed(network, [row])[0])
    alike(inferred["output"], computed(network, rows[:1]))


def test_a_network_of_one_length_is_not_said_to_take_any(nets: Any, built: Built, tmp_path: Path) -> None:
    _, file, options = made(nets, "Tens", tmp_path)
    with pytest.raises(SourceError, match=r"free axes are 8 long, but not 13.*without words, with --input-shape"):
        built(file, input_shape=("steps", 1), **options)


def test_golden_samples_may_be_of_several_lengths(nets: Any, built: Built, tmp_path: Path) -> None:
    _, file, options = made(nets, "Steps", tmp_path)
    (tmp_path / "samples").mkdir()
    for length in (2, 9):
        text = json.dumps({"input": np.ones((length, 4)).tolist()})
        (tmp_path / "samples" / f"{length}.json").write_text(text)
    bundle = built(file, input_shape=("steps", 4), samples=str(tmp_path / "samples"), **options)
    flambeau.load(bundle.path, allow_code=True).close()
    assert storage.SAMPLES in bundle.manifest.members


@pytest.mark.long
def test_the_compiled_engine_says_that_it_takes_one_shape(nets: Any, built: Built, tmp_path: Path) -> None:
    _, file, options = made(nets, "Steps", tmp_path)
    bundle = built(file, input_shape=("steps", 4), **options)
    with pytest.raises(EngineError, match="needs inputs of one shape"):
        flambeau.load(bundle.path, allow_code=True, engine="compile")


@pytest.mark.slow  # two builds of a graph, and eight calibrations
def test_every_output_of_a_quantised_graph_is_compared(tmp_path: Path) -> None:
    """The measure is that of the worst output, and each output is kept for replicas to reproduce."""
    numbers = np.random.default_rng(4)
    given = tmp_path / "given"
    given.mkdir()
    for index in range(8):
        rows = {"a": numbers.standard_normal(4).round(3).tolist(), "b": numbers.standard_normal(6).round(3).tolist()}
        (given / f"{index}.json").write_text(json.dumps({"input": rows}))
    nodes = [helper.make_node("MatMul", ["a", "v"], ["sums"]), helper.make_node("MatMul", ["b", "w"], ["scores"])]
    file = save(
        tmp_path / "two.onnx", nodes, {"a": ["n", 4], "b": ["n", 6]}, {"sums": ["n", 2], "scores": ["n", 3]},
        v=numbers.standard_normal((4, 2)).astype(np.float32), w=numbers.standard_normal((6, 3)).astype(np.float32),
    )  # fmt: skip
    target = tmp_path / "bundle"
    build_cache.build_into(SourceOptions(source=str(file)), target, progress=lambda _: None, int8=str(given))
    bundle = storage.read(target)
    assert bundle.manifest.int8 is not None
    assert (bundle.manifest.int8.samples, bundle.manifest.int8.top1) == (8, None)
    assert 0 < bundle.manifest.int8.difference < 0.1
    sent = {"a": [0.5, -0.5, 0.25, 1.0], "b": [1.0] * 6}
    with flambeau.load(target) as exact, flambeau.load(target, engine="onnxruntime-int8") as quantised:
        for name, expected in exact.predict(sent).items():
            np.testing.assert_allclose(quantised.predict(sent)[name], expected, atol=0.2)
