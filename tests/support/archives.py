"""Archives in the layout of `torch-model-archiver`, without it: as a zip, a tar with a folder around it, a folder."""

import io
import json
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Files = Mapping[str, str | bytes]

MANIFEST = "MAR-INF/MANIFEST.json"


def contents(model: Mapping[str, Any], files: Files) -> dict[str, bytes]:
    """All files of an archive. `model` is what its manifest says, over what the archiver always says."""
    manifest = {
        "createdOn": "26/11/2026 20:00:00", "runtime": "python", "archiverVersion": "0.12.0",
        "model": {"modelName": "net", "modelVersion": "1.0", **model},
    }  # fmt: skip
    found = {name: each.encode() if isinstance(each, str) else each for name, each in files.items()}
    return {**found, MANIFEST: json.dumps(manifest).encode()}


def write_mar(file: Path, model: Mapping[str, Any], files: Files) -> Path:
    """A `.mar`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in contents(model, files).items():
            archive.writestr(name, data)
    return file


def write_tar(file: Path, files: Mapping[str, bytes], *, top: str = "net/") -> Path:
    """A tar with gzip, and a folder around everything."""
    with tarfile.open(file, "w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(top + name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file


def write_folder(folder: Path, files: Mapping[str, bytes]) -> Path:
    """The same as a folder."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


# Handlers, one for each style that people use.

NETWORK = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x):
        return self.fc(x)
"""

SUBCLASS = """
import json
import os
import time

import torch
from shared.words import WORDS
from ts.handler_utils.timer import timed
from ts.torch_handler.base_handler import BaseHandler
from ts.utils.util import PredictionException


class Rows(BaseHandler):
    '''A subclass with two of the three steps of its own.'''

    def initialize(self, context):
        super().initialize(context)
        with open("settings.json") as file:
            self.settings = json.load(file)
        self.here = os.path.realpath(os.getcwd()) == os.path.realpath(context.system_properties["model_dir"])
        self.scale = context.model_yaml_config["handler"]["scale"]

    @timed
    def preprocess(self, data):
        rows = []
        for index, row in enumerate(data):
            body = row.get("data") or row.get("body")
            if isinstance(body, (bytes, bytearray)):
                body = json.loads(body)
            if body == "refuse":
                raise PredictionException("there is no row", 422)
            if body == "fail":
                raise RuntimeError("secret of the author")
            if body == "die":
                os._exit(7)
            if body == "fork":
                child = os.fork() or time.sleep(600) or os._exit(0)
                self.context.set_response_header(index, "X-Child", str(child))
                body = [0, 0, 0]
            if body == "print":
                print("printed by the handler")
                body = [0, 0, 0]
            self.context.set_response_header(index, "X-Batch", str(len(data)))
            rows.append(body)
        return torch.tensor(rows, dtype=torch.float32) * self.scale

    def postprocess(self, data):
        self.context.metrics.add_counter("Rows", len(data))
        return [
            {"scores": row, "word": WORDS[0], "set": self.settings, "here": self.here, "class": self.mapping["0"]}
            for row in data.tolist()
        ]
"""

FUNCTIONS = """
state = {"loaded": 0}


def handle(data, context):
    if data is None:
        state["loaded"] += 1
        return None
    answers = []
    for index, row in enumerate(data):
        if "text" in row:
            context.set_response_content_type(index, "text/html")
            answers.append(f"<b>{row['text'].decode()}</b>")
        elif "bytes" in row:
            context.set_response_status(202, "Accepted", index)
            answers.append(bytes(row["bytes"])[::-1])
        elif "status" in row:
            context.set_response_status(int(row["status"]), "Odd", index)
            answers.append(b"told")
        else:
            answers.append({
                "loaded": state["loaded"], "keys": sorted(row), "id": bool(context.get_request_id(index)),
                "agent": context.get_request_header(index, "User-Agent"),
                "token": context.get_request_header(index, "Authorization"),
                "kinds": sorted(type(value).__name__ for value in row.values()),
            })
    return answers
"""

PLAIN_CLASS = """
class Counter:
    '''A class of nobody's, with `initialize` and `handle`.'''

    def __init__(self):
        self.count = None

    def initialize(self, context):
        self.count = 0
        self.name = context.manifest["model"]["modelName"]

    def handle(self, data, context):
        self.count += len(data)
        return [f"{self.name} {self.count}"] * len(data)
"""

SCRIPT = """
import json
import os

from times import times


def model_fn(model_dir, context):
    with open(os.path.join(model_dir, "factor.json")) as file:
        return json.load(file)


def predict_fn(data, model):
    return times(data, model)
"""

VISION = """
import torch
from torchvision import transforms
from ts.torch_handler.vision_handler import VisionHandler


class Brightness(VisionHandler):
    '''A handler of pictures with a transform of its own, and no network but an average.'''

    image_processing = transforms.Compose([transforms.Resize((8, 8)), transforms.ToTensor()])

    def initialize(self, context):
        super().initialize(context)
        self.floor = context.model_yaml_config.get("handler", {}).get("floor", 0.0)

    def postprocess(self, data):
        return [{"rows": [round(each, 4) for each in row], "floor": self.floor} for row in data.tolist()]
"""

CLASSIFIER = """
from ts.torch_handler.image_classifier import ImageClassifier
from ts.utils.util import map_class_to_label


class BestTwo(ImageClassifier):
    '''The classifier of pictures with two classes in place of five, and the sum of what it left out.'''

    topk = 2

    def postprocess(self, data):
        named = super().postprocess(data)
        return [{"best": each, "rest": round(1 - sum(each.values()), 4)} for each in named]
"""

RESNET = """
from torchvision.models.resnet import BasicBlock, ResNet


class Classifier(ResNet):
    def __init__(self):
        super().__init__(BasicBlock, [2, 2, 2, 2], num_classes=12)
"""

FASTER_RCNN = """
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FasterRCNN


class Detector(FasterRCNN):
    def __init__(self, num_classes=7, **kwargs):
        backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None)
        super(Detector, self).__init__(backbone, num_classes, **kwargs)
"""

SEGMENTER = """
from torchvision.models import mobilenet_v3_large
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.segmentation.lraspp import LRASPP


class Segmenter(LRASPP):
    def __init__(self):
        features = mobilenet_v3_large(weights=None, dilated=True).features
        super().__init__(IntermediateLayerGetter(features, return_layers={"4": "low", "16": "high"}), 40, 960, 6)
"""

AVERAGE = """
from torch import nn


class Average(nn.Module):
    def forward(self, x):
        return x.mean(dim=(2, 3))
"""

ROWS = """
class Rows:
    '''Answers with what it is given, and of which kind: what an envelope makes of a request.'''

    def handle(self, data, context):
        if data is None:
            return None
        return [
            {name: type(value).__name__ for name, value in row.items()} if isinstance(row, dict)
            else bytes(row).decode() if isinstance(row, (bytes, bytearray)) else row
            for row in data
        ]
"""

NUMBERS = """
class Numbers:
    '''The double of each input's numbers, as answers of the second version of KServe's protocol are made.'''

    def handle(self, data, context):
        return [[2 * number for number in row["data"]] for row in data]
"""
