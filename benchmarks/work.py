"""What is asked of every peer: the works, their files, their requests, and how a right answer is told.

The files are made once, by Flambeau itself: its bundles carry the ONNX graph and the class names that peers are given.
"""

import base64
import compileall
import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import flambeau
from benchmarks.apps.model import load
from benchmarks.apps.order import Order
from benchmarks.environments import WORK

FILES = WORK / "files"
"""Weights, bundles and requests of all works."""

CACHE = WORK / "cache"
"""Flambeau's bundle cache of these runs."""

Encoding = Literal["form", "raw", "v2"]
"""How a request is written: multipart form or JSON; the bare bytes; the V2 inference protocol."""

_PHOTOGRAPH = (500, 375)  # pixels, width and height
_NUMBERS = [1.5, 2.0, -0.5, 4.0]
_RANDOM_CLASS = "densenet121.txt"
_BOUNDARY = "benchmark-7d9f1c"


@dataclass(frozen=True, slots=True)
class Work:
    """One kind of request. `source` is what Flambeau is told to serve; `recipe` tells whether the untuned recipe takes
    part: it is slow, and to see it once is enough."""

    name: str
    title: str
    source: tuple[str, ...]
    clients: tuple[int, ...]
    recipe: bool = True


WORKS = {
    work.name: work
    for work in (
        Work("lite0", "photographs → EfficientNet-Lite0", ("default",), (1, 8, 32)),
        Work(
            "densenet121", "photographs → DenseNet-121 (random weights)",
            (str(FILES / "densenet121.pth"), "--labels", "imagenet"), (1, 8),
            recipe=False,
        ),
        Work("tiny", "four numbers → Linear(4, 3)", (str(FILES / "tiny.pth"),), (1, 8, 32, 128)),
    )
}  # fmt: skip


def make_files() -> None:
    """Make the weights and bundles that are not there yet; minutes, the first time."""
    compileall.compile_dir(Path(flambeau.__file__).parent, quiet=1)  # as pip has done with the peers
    FILES.mkdir(parents=True, exist_ok=True)
    _weights()
    (FILES / "photograph.jpg").write_bytes(photograph())
    for work in WORKS.values():
        # The bundle in the cache is what Flambeau serves, the one beside the weights is what the peers are given.
        if not (FILES / work.name / "manifest.json").exists():
            build = [sys.executable, "-m", "flambeau", "build", *work.source, "-o", str(FILES / work.name)]
            subprocess.run(build, check=True, env=os.environ | {"FLAMBEAU_CACHE": str(CACHE)})
    _random_class()


def _weights() -> None:
    import torch

    from flambeau.architectures import torchvision_compat

    if not (FILES / "tiny.pth").exists():
        rows = [[0.5, -1.0, 2.0, 0.25], [1.0, 1.0, 1.0, 1.0], [-0.5, 0.25, 0.0, 1.0]]
        torch.save({"0.weight": torch.tensor(rows), "0.bias": torch.tensor([0.125, 0.5, -0.25])}, FILES / "tiny.pth")
    if not (FILES / "densenet121.pth").exists():
        torchvision_compat.declare_missing()
        from torchvision import models

        torch.manual_seed(0)
        torch.save(models.densenet121(weights=None).state_dict(), FILES / "densenet121.pth")


def _random_class() -> None:
    """What the random weights see in the photograph. It may differ between versions of torch, so it is computed."""
    if not (FILES / _RANDOM_CLASS).exists():
        model = load(Order("densenet121", "eager", FILES, 0, threads=len(os.sched_getaffinity(0))))
        [answer] = model.answer([model.prepare((FILES / "photograph.jpg").read_bytes())])
        (FILES / _RANDOM_CLASS).write_text(answer["class_name"])


def right_text(work: Work) -> str:
    """What is in every right answer to a work's request."""
    if work.name == "tiny":  # weights and input are sums of powers of two: every engine's output is this exactly
        return "7.5"
    return "Egyptian_cat" if work.name == "lite0" else (FILES / _RANDOM_CLASS).read_text()


def photograph() -> bytes:
    """scikit-image's cat, scaled to fill 500x375 pixels and cut, as a JPEG of quality 90."""
    from PIL import Image, ImageOps
    from skimage import data_dir  # type: ignore[attr-defined]  # public, though its stub does not say so

    with Image.open(Path(data_dir) / "chelsea.png") as cat:
        filled = ImageOps.fit(cat.convert("RGB"), _PHOTOGRAPH, Image.Resampling.BICUBIC)
    file = io.BytesIO()
    filled.save(file, "JPEG", quality=90)
    return file.getvalue()


def request(work: Work, encoding: Encoding, path: str, port: int) -> bytes:
    """One HTTP request, head and body, as the load generator sends it over and over."""
    kind, body = _body(work, encoding)
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _body(work: Work, encoding: Encoding) -> tuple[str, bytes]:
    if work.name == "tiny":
        numbers = {"name": "input", "shape": [1, 4], "datatype": "FP32", "data": _NUMBERS}
        return "application/json", json.dumps(
            {"inputs": [numbers]} if encoding == "v2" else {"input": _NUMBERS}
        ).encode()
    file = (FILES / "photograph.jpg").read_bytes()
    if encoding == "raw":
        return "image/jpeg", file
    if encoding == "v2":
        text = base64.b64encode(file).decode()
        given: dict[str, Any] = {"name": "file", "shape": [1, 1], "datatype": "BYTES", "data": [text]}
        given["parameters"] = {"content_type": "base64"}
        return "application/json", json.dumps({"inputs": [given]}).encode()
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="cat.jpg"\r\n'
    form = head.encode() + b"Content-Type: image/jpeg\r\n\r\n" + file + f"\r\n--{_BOUNDARY}--\r\n".encode()
    return f"multipart/form-data; boundary={_BOUNDARY}", form
