"""The corpus of what is served by no option at all: detectors, lists of tensors, quantised weights, other programs'
files. Each sentence has to say what the file is, and how to go on.
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from tests.support import segmenters
from tests.support.archives import write_mar
from tests.support.corpus import Kind, Made, alive, classified, picture, pixels, prepared, saved
from tests.support.corpus_images import prefixed, resnet18, shufflenet


def bare(folder: Path) -> Made:
    """U11: list(model.parameters()): numbers without names."""
    network = shufflenet()

    def convert() -> Made:
        probe = picture()
        file = saved(folder, "named.pth", network.state_dict())
        return Made(file, probe, classified(network, prepared(probe)))

    return Made(saved(folder, "bare.pth", list(network.parameters())), convert=convert)


def quantised(folder: Path) -> Made:
    """U9: quantize_dynamic packs its linear layers."""
    import warnings

    network = shufflenet()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        packed = torch.ao.quantization.quantize_dynamic(network, {nn.Linear})
        file = saved(folder, "packed.pth", packed.state_dict())

        def convert() -> Made:
            state = {}
            for key, value in torch.load(file, weights_only=False).items():
                path, _, last = key.rpartition("_packed_params.")
                if path and last == "_packed_params":
                    state[f"{path}weight"], state[f"{path}bias"] = value[0].dequantize(), value[1]
                elif torch.is_tensor(value) and not key.endswith((".scale", ".zero_point")):
                    state[key] = value
            plain = shufflenet()
            plain.load_state_dict(state)
            probe = picture()
            return Made(saved(folder, "plain.pth", state), probe, classified(plain, prepared(probe)))

    return Made(file, convert=convert)


def detector(folder: Path) -> Made:
    """U11: its answer is `boxes`, `labels` and `scores` of a picture.

    The scores of a network without training are nearly the same everywhere: its last layers are made stronger, and the
    background likelier, so that a few boxes stand out.
    """
    from torchvision.models import detection

    torch.manual_seed(31)
    network: Any = alive(
        detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5), variance=0.05
    )
    with torch.no_grad():
        for layers in network.head.classification_head.module_list:
            layers[-1].weight.mul_(45)
            layers[-1].bias.view(-1, 5)[:, 0].add_(25)
    file = saved(folder, "boxes.pth", {"model": prefixed("module.", network.state_dict())})
    probe = mosaic()
    with torch.inference_mode():
        [found] = network([pixels(probe)])
    return Made(file, probe, {name: value.tolist() for name, value in found.items()}, task="object-detection")


def mosaic() -> bytes:
    """200 × 200 pixels of coloured squares, of which no two are alike, as a PNG."""
    colours = np.random.default_rng(5).integers(0, 256, (25, 25, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(colours).resize((200, 200), Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()


def segmenter(folder: Path) -> Made:
    """U11: its answer is the class of each pixel."""
    from torchvision.models import segmentation

    torch.manual_seed(32)
    network = alive(
        segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4), variance=0.1
    )
    file = saved(folder, "seg.pth", network.state_dict())
    probe = picture(64)
    with Image.open(io.BytesIO(probe)) as image:
        found = segmenters.classes_of(network, image)
    return Made(file, probe, {"classes": found.tolist()}, task="semantic-segmentation")


def optimiser(folder: Path) -> Made:
    network: Any = resnet18()
    adam = torch.optim.Adam(network.fc.parameters())
    network.fc(torch.zeros(1, 512)).sum().backward()
    adam.step()
    return Made(saved(folder, "optimiser.pth", adam.state_dict()))


def one_tensor(folder: Path) -> Made:
    return Made(saved(folder, "tensor.pth", torch.rand(3, 4)))


def written(name: str, contents: bytes) -> Callable[[Path], Made]:
    def write(folder: Path) -> Made:
        (folder / name).write_bytes(contents)
        return Made(folder / name)

    return write


def mar(folder: Path) -> Made:
    """With a built-in handler, and a class that says no more than torchvision's network of other sizes."""
    network = shufflenet()
    weights = io.BytesIO()
    torch.save(network.state_dict(), weights)
    class_file = (
        "from torchvision.models.shufflenetv2 import ShuffleNetV2\n\n\nclass Net(ShuffleNetV2):\n"
        "    def __init__(self):\n        super().__init__([4, 8, 4], [24, 48, 96, 192, 1024], num_classes=3)\n"
    )
    named = {"handler": "image_classifier", "serializedFile": "model.pth", "modelFile": "model.py"}
    file = write_mar(folder / "net.mar", named, {"model.py": class_file, "model.pth": weights.getvalue()})
    probe = picture()
    return Made(file, probe, classified(network, prepared(probe, resize=256)))


def cut_short(folder: Path) -> Made:
    file = saved(folder, "cut_short.pth", shufflenet().state_dict())
    contents = file.read_bytes()
    file.write_bytes(contents[: len(contents) // 2])
    return Made(file)


def numpy_array(folder: Path) -> Made:
    np.save(folder / "weights.npy", np.zeros((3, 4)))
    return Made(folder / "weights.npy")


def foreign(folder: Path) -> Made:
    """A folder of Hugging Face, whose model's file lies in it."""
    from safetensors.torch import save_file

    network = shufflenet()
    (folder / "hub").mkdir()
    (folder / "hub" / "config.json").write_text("{}")
    save_file(network.state_dict(), folder / "hub" / "model.safetensors")

    def convert() -> Made:
        probe = picture()
        return Made(folder / "hub" / "model.safetensors", probe, classified(network, prepared(probe)))

    return Made(folder / "hub", convert=convert)


KINDS = (
    Kind("numbers without names", bare, "refused", "U11"),
    Kind("quantised dynamically", quantised, "refused", "U9"),
    Kind("a detector", detector, "path", "U11"),
    Kind("a segmenter", segmenter, "path", "U11"),
    Kind("an optimiser alone", optimiser, "refused", "U11", end="torch.save(model.state_dict(), "),
    Kind("one tensor", one_tensor, "refused", "U11", end="torch.save(model.state_dict(), "),
    Kind("a TorchServe archive", mar, "path"),
    Kind("a folder of a hub", foreign, "refused"),
    Kind("cut short", cut_short, "refused", end="download"),
    Kind("a web page", written("model.pth", b"<!doctype html><html><title>Sign in</title>"), "refused", end="download"),
    Kind("a pointer of Git LFS", written("model.bin", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n"),
         "refused", end="git lfs pull"),
    Kind("HDF5", written("model.h5", b"\x89HDF\r\n\x1a\n" + bytes(64)), "refused", end="ONNX"),
    Kind("an array of numpy", numpy_array, "refused", end="torch.save(model.state_dict(), "),
    Kind("an index of several files", written("model.safetensors.index.json", b'{"weight_map": {}}'), "refused",
         end="join them"),
)  # fmt: skip
