"""Honest files of every kind that people have, made with the programs they have them from."""

import io
import zipfile
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper
import torch
from safetensors.torch import save_file
from torch import nn

from flambeau.checkpoints import Format, Safety
from tests.support import forge

Contents = dict[str, Any]


class Net(nn.Module):
    """A small network with what makes checkpoints interesting: a norm, a buffer that is not kept, and tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU())
        self.fc = nn.Linear(6, 3)
        self.register_buffer("grid", torch.arange(4), persistent=False)

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        """Class scores, of shape (batch, 3)."""
        scores: torch.Tensor = self.fc(self.features(numbers))
        return scores


class Config:
    """What somebody's program keeps its settings in."""


NET = Net().eval()
WEIGHTS = NET.state_dict()


@dataclass(frozen=True)
class Honest:
    """A file that should be told for what it is. `where` is the entry that holds the weights, if it has any."""

    name: str
    format: Format
    write: Callable[[Path], None]
    verdict: Safety = "data"
    where: tuple[str, ...] | None = ()
    words: str = ""


def saved(contents: Any, **options: Any) -> Callable[[Path], None]:
    return lambda path: torch.save(contents, path, **options)


def prefixed(prefix: str, weights: Contents = WEIGHTS) -> Contents:
    return {f"{prefix}{key}": tensor for key, tensor in weights.items()}


def trained() -> Contents:
    """What a training loop saves after an epoch with Adam."""
    network = Net()
    adam = torch.optim.Adam(network.parameters())
    network(torch.rand(8, 4)).sum().backward()
    adam.step()
    return {
        "epoch": 3, "best_acc": np.float64(0.75), "steps": np.int64(12), "model_state_dict": network.state_dict(),
        "optimizer": adam.state_dict(), "rng_state": torch.get_rng_state(), "device": torch.device("cpu"),
    }  # fmt: skip


def lightning() -> Contents:
    return {
        "epoch": 1, "global_step": 10, "pytorch-lightning_version": "2.5.0",
        "state_dict": prefixed("model."), "loops": {"fit_loop": {"state_dict": {}}}, "callbacks": {},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(6, 4)}}, "param_groups": []}], "lr_schedulers": [],
        "hparams_name": "kwargs", "hyper_parameters": {"lr": 0.1, "class_names": ["ant", "bee", "cat"]},
    }  # fmt: skip


def shared() -> Contents:
    table = torch.rand(3, 6)
    whole = torch.rand(10, 6)
    return {"table": table, "tied": table, "row": whole[4:5], "turned": whole.t(), "empty": torch.empty(0, 6)}


def attributed() -> Contents:
    parameter = nn.Parameter(torch.rand(2))
    parameter.origin = "somewhere"  # type: ignore[attr-defined]
    tensor = torch.rand(2)
    tensor.origin = "elsewhere"  # type: ignore[attr-defined]
    return {"parameter": parameter, "tensor": tensor}


def tar(path: Path) -> None:
    path.write_bytes(forge.old())


def viewed(path: Path) -> None:
    """As torch 0.3 wrote: the tensor lies in a part of a storage, which has a key of its own."""
    part = forge.tuple_of(forge.text("part"), forge.number(1), forge.number(3))
    weights = forge.dict_of({"w": forge.tensor(forge.storage(last=part), size=(3,))})
    values = np.int64(4).tobytes() + np.arange(4, dtype=np.float32).tobytes()
    path.write_bytes(forge.legacy(body=forge.pickle(weights), keys=b"](" + forge.text("0") + b"e", after=values))


def torchscript(path: Path) -> None:
    torch.jit.script(NET).save(path)


def pt2(path: Path) -> None:
    torch.export.save(torch.export.export(NET, (torch.rand(2, 4),)), path)


def onnx_model() -> onnx.ModelProto:
    helper = onnx.helper
    weights = onnx.numpy_helper.from_array(np.ones((4, 3), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["numbers", "w"], ["scores"])], "tiny",
        [helper.make_tensor_value_info("numbers", onnx.TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, ["batch", 3])], [weights],
    )  # fmt: skip
    return helper.make_model(graph, producer_name="by hand", opset_imports=[helper.make_opsetid("", 17)])


def onnx_file(path: Path) -> None:
    onnx.save(onnx_model(), path)


def onnx_beside(path: Path) -> None:
    onnx.save(onnx_model(), path, save_as_external_data=True, location="tiny.data", size_threshold=0)


def mar(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("handler.py", "def handle(data, context): return data\n" * 20)
        archive.writestr("model.pth", b"weights")
        archive.writestr(
            "MAR-INF/MANIFEST.json",
            '{"runtime": "python", "model": {"modelName": "tiny", "handler": "handler.py", "modelVersion": "1.0",'
            ' "serializedFile": "model.pth"}}',
        )


def safetensors(path: Path) -> None:
    save_file({**WEIGHTS, "half": torch.rand(2).half(), "brain": torch.rand(2).bfloat16()}, path, {"format": "pt"})


def packed_again(path: Path) -> None:
    """What `zip -0` makes of an unpacked checkpoint: other headers, and the same contents."""
    file = io.BytesIO()
    torch.save(WEIGHTS, file)
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as target:
        for member in source.infolist():
            target.writestr(member.filename, source.read(member))


_EMA = {"state_dict": WEIGHTS, "state_dict_ema": prefixed("module."), "epoch": 2}
_DTYPES = {
    str(dtype).removeprefix("torch."): torch.zeros(3, 2).to(dtype)
    for dtype in (
        torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16,
        torch.float32, torch.float64, torch.complex64, torch.complex128,
    )
}  # fmt: skip
_NEWER_DTYPES = {
    str(dtype).removeprefix("torch."): torch.zeros(3, 2).to(dtype)
    for dtype in (torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2)
}

HONEST = (
    Honest("state-dict", "torch-zip", saved(WEIGHTS)),
    Honest("state-dict-legacy", "torch-legacy", saved(WEIGHTS, _use_new_zipfile_serialization=False)),
    Honest("packed-again", "torch-zip", packed_again),
    Honest("half", "torch-zip", saved({key: tensor.half() for key, tensor in WEIGHTS.items()})),
    Honest("dtypes", "torch-zip", saved(_DTYPES)),
    Honest("newer-dtypes", "torch-zip", saved(_NEWER_DTYPES)),
    Honest("dtypes-legacy", "torch-legacy", saved(_DTYPES, _use_new_zipfile_serialization=False)),
    Honest("parameters", "torch-zip", saved(dict(NET.named_parameters()))),
    Honest("shared", "torch-zip", saved(shared())),
    Honest("shared-legacy", "torch-legacy", saved(shared(), _use_new_zipfile_serialization=False)),
    Honest("part-of-a-storage", "torch-legacy", viewed),
    Honest("attributes", "torch-zip", saved(attributed())),
    Honest("data-parallel", "torch-zip", saved(prefixed("module."))),
    Honest("training", "torch-zip", saved(trained()), where=("model_state_dict",)),
    Honest("training-legacy", "torch-legacy", saved(trained(), _use_new_zipfile_serialization=False),
           where=("model_state_dict",)),
    Honest("lightning", "torch-zip", saved(lightning()), where=("state_dict",)),
    Honest("ema", "torch-zip", saved(_EMA), where=("state_dict_ema",)),
    Honest("nested", "torch-zip", saved({"checkpoint": {"net": WEIGHTS}}), where=("checkpoint", "net")),
    Honest("one-tensor", "torch-zip", saved(torch.rand(2, 3)), verdict="refused", words="single tensor", where=None),
    Honest("optimiser-alone", "torch-zip", saved(trained()["optimizer"]), verdict="refused", words="optimiser",
           where=None),
    Honest("module", "torch-zip", saved(NET), "code", words="whole module of class tests.support.checkpoint_files.Net"),
    Honest("module-legacy", "torch-legacy", saved(NET, _use_new_zipfile_serialization=False), "code",
           words="whole module of class tests.support.checkpoint_files.Net"),
    Honest("module-within", "torch-zip", saved({"model": NET, "epoch": 1}), "code", ("model",), "checkpoint_files.Net"),
    Honest("with-arguments", "torch-zip", saved({"args": Namespace(lr=0.1, data=Path("a/b")), "model": WEIGHTS}),
           where=("model",)),
    Honest("with-a-config", "torch-zip", saved({"args": Config(), "model": WEIGHTS}), "code", ("model",),
           "checkpoint_files.Config"),
    Honest("protocol-4", "torch-zip", saved(WEIGHTS, pickle_protocol=4), "code", words="protocol"),
    Honest("tar", "torch-tar", tar, "refused", None, "before torch 0.2"),
    Honest("torchscript", "torchscript", torchscript, "code", None, "TorchScript"),
    Honest("pt2", "pt2", pt2, "code", None, "torch.export"),
    Honest("mar", "mar", mar, "code", None, "TorchServe"),
    Honest("onnx", "onnx", onnx_file, where=None),
    Honest("onnx-beside", "onnx", onnx_beside, where=None),
    Honest("safetensors", "safetensors", safetensors),
)  # fmt: skip
