"""Python models, as text, for files that have no task here yet: what `flambeau inspect` prints to be saved and served.

Names out of a file go into the text as literals, whatever they hold: nothing of a file becomes code.
"""

from collections.abc import Sequence

from flambeau.identify.unsupported import Known

AROUND = (
    "a PythonModel of your own serves it, as in docs/sources.md#a-python-model-around-a-network: "
    "flambeau serve file.py:Model --allow-code"
)
"""The way out for whatever computes in PyTorch and is no network of one tensor in and out."""

PRINTED = "save the Python model below as file.py, and flambeau serve file.py:Model --allow-code"
"""The way out where `flambeau inspect` prints one."""


def ask(file: str) -> str:
    """The way out where a command line has no room for a Python model."""
    return f"flambeau inspect {file} prints a Python model that serves it"


_IMAGES = '''\
import io

import torch
from PIL import Image
from torchvision import models
from torchvision.transforms.functional import normalize, to_tensor

import flambeau


class Model(flambeau.PythonModel):
    """{what}: pictures to {answer}."""

    def load(self):
        self.net = models.get_model({arguments}).eval()
{read}
        self.net.load_state_dict({state})

    def predict(self, batch):
        with torch.inference_mode():
            return [self.answer(Image.open(io.BytesIO(item)).convert("RGB")) for item in batch]

    def answer(self, picture):
{body}
'''

_BOXES = """\
        [found] = self.net([to_tensor(picture)])
        return {name: value.tolist() for name, value in found.items()}"""

_PIXELS = """\
        pixels = normalize(to_tensor(picture), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # as in your training
        return {"classes": self.net(pixels[None])["out"][0].argmax(0).tolist()}"""

_GRAPH = '''\
import numpy as np
import onnxruntime

import flambeau


class Model(flambeau.PythonModel):
    """The graph as it is: an item is {{"input": {{{example}}}}}, rows included."""

    def load(self):
        self.session = onnxruntime.InferenceSession({file!r})

    def predict(self, batch):
        return [self.answer(item) for item in batch]

    def answer(self, item):
        kinds = {kinds!r}
        given = {{name: np.array(item[name], kind) for name, kind in kinds.items()}}
        names = [each.name for each in self.session.get_outputs()]
        return {{name: each.tolist() for name, each in zip(names, self.session.run(None, given))}}
'''


def of_images(known: Known, file: str, where: Sequence[str]) -> str:
    """The Python model of a detector or a segmenter, whose weights lie in `file` under the keys of `where`.

    Empty for a task that needs more than a picture.
    """
    boxes = known.task in ("object detection", "instance segmentation", "keypoint detection")
    if not boxes and known.task != "semantic segmentation":
        return ""
    arguments = f"{known.names[0]!r}, weights=None, weights_backbone=None, num_classes={known.classes}"
    if known.aux:
        arguments += ", aux_loss=True"
    if file.endswith(".safetensors"):
        read = f"        from safetensors.torch import load_file\n\n        held = load_file({file!r})"
    else:
        held = "".join(f"[{key!r}]" for key in where)
        read = f"        held = torch.load({file!r}, map_location={'cpu'!r}, weights_only=True){held}"
    inner = f"key.removeprefix({known.prefix!r}): value"
    state = (
        f"{{{inner} for key, value in held.items() if key.startswith({known.prefix!r})}}" if known.prefix else "held"
    )
    return _IMAGES.format(
        what=known.names[0],
        answer="boxes" if boxes else "the class of each pixel",
        arguments=arguments,
        read=read,
        state=state,
        body=_BOXES if boxes else _PIXELS,
    )


def of_graph(file: str, inputs: Sequence[tuple[str, str, str]]) -> str:
    """The Python model of an ONNX graph with these inputs, each (name, dtype, sizes in words)."""
    kinds = {name: dtype for name, dtype, _ in inputs}
    example = ", ".join(f'"{name}": ...' if name.isidentifier() else "..." for name in kinds)
    return _GRAPH.format(file=file, kinds=kinds, example=example)
