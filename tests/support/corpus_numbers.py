"""The corpus over numbers: own networks, their ways of taking and answering, ONNX graphs and programs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import nn

import corpus_nets
from tests.support.corpus import Kind, Made, alive, numbers, own, saved

ROW = [0.5, -1.0, 2.0, 0.25]


def seeded(make: Callable[[], nn.Module], seed: int = 21) -> nn.Module:
    torch.manual_seed(seed)
    return alive(make())


def line(folder: Path) -> Made:
    network = seeded(lambda: nn.Sequential(nn.Linear(4, 3)))
    answer = numbers(network, torch.tensor([ROW]))
    return Made(saved(folder, "line.pth", network.state_dict()), ROW, answer, task="tensor")


def chain(folder: Path) -> Made:
    network = seeded(lambda: nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3)))
    options = ("--arch", "mlp", "--arch-args", '{"activation": "relu"}')
    return Made(
        saved(folder, "flowers.pth", network.state_dict()), ROW, numbers(network, torch.tensor([ROW])), options=options,
        task="tensor",
    )  # fmt: skip


def norms(folder: Path) -> Made:
    """U6: the first layer is a norm, and the chain has a place without weights."""
    network = seeded(lambda: nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)))
    row = [*ROW, 1.5, -0.5]
    options = ("--arch", "mlp", "--arch-args", '{"activation": "relu"}')
    answer = numbers(network, torch.tensor([row]))
    return Made(saved(folder, "norms.pth", network.state_dict()), row, answer, options=options, task="tensor")


def by_class(name: str, file: str, probe: Any, *, shape: str = "") -> Callable[[Path], Made]:
    """A network of `corpus_nets`, served by its class."""

    def write(folder: Path) -> Made:
        network = seeded(getattr(corpus_nets, name))
        options = ["--arch", own(folder, name), "--allow-code", *(["--input-shape", shape] if shape else [])]
        answer = numbers(network, torch.tensor([probe, probe]))  # two rows, for a squeeze leaves those alone
        made = saved(folder, file, network.state_dict())
        return Made(made, probe, answer, options=tuple(options), own=own(folder, name), shape=shape, task="tensor")

    return write


def by_python(network: str, model: str, file: str, probe: Any, answer: Callable[[Any], Any]) -> Callable[[Path], Made]:
    """A network of `corpus_nets` that needs a Python model around it."""

    def write(folder: Path) -> Made:
        built = seeded(getattr(corpus_nets, network))
        with torch.inference_mode():
            expected = answer(built)
        path = saved(folder, file, built.state_dict())
        python = own(folder, model)
        return Made(path, probe, expected, own=own(folder, network), shape="4", python=python, task="python")

    return write


def by_name(network: str, file: str, shape: str, **probe: list[float]) -> Callable[[Path], Made]:
    """A network of several inputs or outputs, by their names. One input alone is sent by itself."""

    def write(folder: Path) -> Made:
        built = seeded(getattr(corpus_nets, network))
        with torch.inference_mode():
            found = built(*(torch.tensor([row]) for row in probe.values()))
        if not isinstance(found, torch.Tensor):
            parts = found if isinstance(found, dict) else dict(zip(map(str, range(len(found))), found, strict=True))
            found = {each: tensor[0].tolist() for each, tensor in parts.items()}
        answer = found if isinstance(found, dict) else found[0].tolist()
        path = saved(folder, file, built.state_dict())
        name = own(folder, network)
        options = ("--arch", name, "--allow-code", *(("--input-shape", shape) if shape else ()))
        sent = dict(probe) if len(probe) > 1 else next(iter(probe.values()))
        return Made(path, sent, answer, options=options, own=name, shape=shape, task="tensor")

    return write


def nobody(name: str, file: str) -> Callable[[Path], Made]:
    """A network that has no answer of its own to a row."""

    def write(folder: Path) -> Made:
        path = saved(folder, file, seeded(getattr(corpus_nets, name)).state_dict())
        options = ("--arch", own(folder, name), "--allow-code")
        return Made(path, options=options, own=own(folder, name), shape="4", task="tensor")

    return write


def embedding(folder: Path) -> Made:
    """U14: a table of vectors for 1000 words: two-dimensional as a linear layer is."""
    network: Any = seeded(lambda: nn.Embedding(1000, 16))
    table = network.weight.detach()
    file = saved(folder, "vectors.pth", {"embedding.weight": table})
    return Made(file, 42, table[42].tolist(), python=own(folder, "ServedVectors"), task="python")


def table(folder: Path) -> Made:
    """The same under a name that says nothing: a linear layer without bias looks like this."""
    network = seeded(lambda: nn.Linear(16, 1000, bias=False))
    row = torch.linspace(-1, 1, 16)
    answer = numbers(network, row[None])
    file = saved(folder, "table.pth", network.state_dict())
    return Made(file, row.tolist(), answer, options=("--arch", "mlp"), task="tensor")


def onnx_numbers(folder: Path) -> Made:
    network: Any = seeded(lambda: nn.Linear(4, 3))
    with torch.no_grad():
        weights = {"w": network.weight.numpy().T.copy(), "b": network.bias.numpy()}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["y"])]
    write_onnx(folder / "line.onnx", nodes, {"x": ["n", 4]}, {"y": ["n", 3]}, weights)
    return Made(folder / "line.onnx", ROW, numbers(network, torch.tensor([ROW])), task="tensor")


def onnx_two_outputs(folder: Path) -> Made:
    """W7: scores and their softmax: the latter is the answer."""
    network: Any = seeded(lambda: nn.Linear(4, 3))
    with torch.no_grad():
        weights = {"w": network.weight.numpy().T.copy(), "b": network.bias.numpy()}
        answer = network(torch.tensor([ROW])).softmax(1)[0].tolist()
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Add", ["m", "b"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]  # fmt: skip
    outputs = {"logits": ["n", 3], "probabilities": ["n", 3]}
    write_onnx(folder / "two.onnx", nodes, {"x": ["n", 4]}, outputs, weights)
    return Made(folder / "two.onnx", ROW, answer, task="tensor")


def voice(folder: Path) -> Made:
    """U7: as silero-vad's: samples, a state and a rate to a probability and the new state."""
    weights = {"w": np.float32(np.linspace(-1, 1, 32).reshape(8, 4)), "sum": np.ones((4, 1), np.float32)}
    nodes = [
        helper.make_node("MatMul", ["input", "w"], ["m"]), helper.make_node("Add", ["m", "state"], ["s"]),
        helper.make_node("Tanh", ["s"], ["stateN"]), helper.make_node("MatMul", ["stateN", "sum"], ["logit"]),
        helper.make_node("Cast", ["sr"], ["rate"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["rate", "zero"], ["nothing"]), helper.make_node("Add", ["logit", "nothing"], ["z"]),
        helper.make_node("Sigmoid", ["z"], ["output"]),
    ]  # fmt: skip
    inputs = {"input": ["n", 8], "state": ["n", 4], "sr": []}
    write_onnx(folder / "voice.onnx", nodes, inputs, {"output": ["n", 1], "stateN": ["n", 4]},
               weights | {"zero": np.float32(0)}, integers=("sr",))  # fmt: skip
    samples, state = torch.linspace(0, 1, 8)[None], torch.full((1, 4), 0.5)
    probe = {"input": samples[0].tolist(), "state": state[0].tolist(), "sr": 16000}
    state = torch.tanh(samples @ torch.from_numpy(weights["w"]) + state)
    answer = {"output": torch.sigmoid(state.sum(1)).tolist(), "stateN": state[0].tolist()}
    return Made(folder / "voice.onnx", probe, answer, task="tensor")


def write_onnx(
    file: Path, nodes: list[Any], inputs: dict[str, Any], outputs: dict[str, Any], weights: dict[str, Any],
    *, integers: tuple[str, ...] = (),
) -> None:  # fmt: skip
    def told(name: str, shape: Any) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.INT64 if name in integers else TensorProto.FLOAT, shape)

    held = [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]
    graph = helper.make_graph(
        nodes, "corpus", [told(*each) for each in inputs.items()], [told(*each) for each in outputs.items()], held
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), file)


def program(name: str, save: Callable[[nn.Module, Path], None]) -> Callable[[Path], Made]:
    def write(folder: Path) -> Made:
        network = seeded(corpus_nets.Norms)
        row = [*ROW, 1.5, -0.5]
        own(folder, "Norms")
        save(network, folder / name)
        return Made(
            folder / name, row, numbers(network, torch.tensor([row])),
            options=("--allow-code", "--input-shape", "6"),
            own=own(folder, "Norms"), shape="6", task="tensor",
        )  # fmt: skip

    return write


def save_script(network: nn.Module, file: Path) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(network).save(file)


def save_program(network: nn.Module, file: Path) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(network, (torch.zeros(2, 6),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.export.save(program, file)


SERIES = [[round(0.1 * (step + number), 1) for number in range(4)] for step in range(10)]
EIGHTS = [[round(0.1 * (step - number), 1) for number in range(8)] for step in range(10)]
SIGNAL = [[round(0.01 * (step % 7) * (channel + 1), 2) for step in range(64)] for channel in range(2)]
TOKENS = [3, 14, 15, 92, 6]

KINDS = (
    Kind("a linear layer", line, "path"),
    Kind("layers in a chain", chain, "options"),
    Kind("a norm first", norms, "options", "U6"),
    Kind("a series through an LSTM", by_class("Steps", "steps.pth", SERIES, shape="10,4"), "options", "U14"),
    Kind("a signal through a Conv1d", by_class("Wave", "wave.pth", SIGNAL, shape="2,64"), "options", "U14"),
    Kind("a transformer", by_class("Attending", "attending.pth", EIGHTS, shape="10,8"), "options", "U14"),
    Kind("an embedding table", embedding, "refused", "U14"),
    Kind("a table or a linear layer", table, "options", "U14"),
    Kind("token ids", by_python("Words", "ServedWords", "words.pth", TOKENS,
                                lambda network: network(torch.tensor([TOKENS]))[0].tolist()), "refused", "U7"),
    Kind("outputs in a tuple", by_name("Pair", "tuple.pth", "", rows=ROW), "options", "U7"),
    Kind("outputs in a dict", by_name("Named", "dict.pth", "", rows=ROW), "options", "U7"),
    Kind("two inputs", by_name("Two", "two.pth", "left=4,right=2", left=ROW, right=[1.0, 2.0]), "options", "U7"),
    Kind("an ONNX graph with a state", voice, "path", "U7"),
    Kind("an ONNX graph", onnx_numbers, "path"),
    Kind("an ONNX graph of two outputs", onnx_two_outputs, "path", "W7"),
    Kind("a whole network", program("norms.pt", torch.save), "options"),
    Kind("TorchScript", program("norms.ts", save_script), "options"),
    Kind("torch.export", program("norms.pt2", save_program), "options"),
    Kind("dropout that never stops", nobody("Noisy", "noisy.pth"), "refused", "U10", end="random"),
    Kind("a norm over rows", nobody("RowsTogether", "together.pth"), "refused", "U10", end="row"),
    Kind("squeezed rows", by_class("Squeezed", "squeezed.pth", ROW), "path", "U10"),
)  # fmt: skip
