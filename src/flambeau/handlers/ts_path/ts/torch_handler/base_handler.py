"""The base of handlers: it loads the network of an archive, and answers in three steps."""

import importlib.util
import logging
import os
import time
from typing import Any

import torch

from ..utils.util import list_classes_from_module, load_label_mapping

logger = logging.getLogger(__name__)


class BaseHandler:
    """Subclasses override `preprocess`, `inference` and `postprocess`, or `handle` as a whole."""

    def __init__(self) -> None:
        self.model: Any = None
        self.mapping: dict[str, Any] | None = None
        self.device: Any = None
        self.initialized = False
        self.context: Any = None
        self.model_pt_path: str | None = None
        self.manifest: dict[str, Any] | None = None
        self.map_location: str | None = None
        self.explain = False
        self.target = 0
        self.profiler_args: dict[str, Any] = {}
        self.model_yaml_config: dict[str, Any] = {}

    def initialize(self, context: Any) -> None:
        """Load the network, and the table of class names if there is one."""
        properties = context.system_properties
        self.context = context
        self.manifest = context.manifest
        self.model_yaml_config = getattr(context, "model_yaml_config", None) or {}
        self.map_location, self.device = _device(properties.get("gpu_id"))
        folder = properties.get("model_dir")
        model = context.manifest.get("model", {})
        if model.get("serializedFile"):
            self.model_pt_path = os.path.join(folder, os.path.basename(model["serializedFile"]))
        if model.get("modelFile"):
            self.model = self._load_pickled_model(folder, model["modelFile"], self.model_pt_path)
        elif self.model_pt_path and self.model_pt_path.endswith((".pt", ".pth")):
            self.model = self._load_torchscript_model(self.model_pt_path)
        elif self.model_pt_path and self.model_pt_path.endswith(".onnx"):
            self.model = self._load_onnx_model(self.model_pt_path)
        else:
            raise RuntimeError("the archive has neither a file of weights nor a class of a network")
        if isinstance(self.model, torch.nn.Module):
            self.model.to(self.device)
            self.model.eval()
        self.mapping = load_label_mapping(os.path.join(folder, "index_to_name.json"))
        self.initialized = True

    def _load_torchscript_model(self, model_pt_path: str) -> Any:
        return torch.jit.load(model_pt_path, map_location=self.device)  # type: ignore[no-untyped-call]

    def _load_onnx_model(self, model_onnx_path: str) -> Any:
        import onnxruntime

        return onnxruntime.InferenceSession(model_onnx_path, providers=["CPUExecutionProvider"])

    def _load_pickled_model(self, model_dir: str, model_file: str, model_pt_path: str | None) -> Any:
        """The network of the archive's class, with its weights: tensors alone, never other pickled objects."""
        path = os.path.join(model_dir, os.path.basename(model_file))
        spec = importlib.util.spec_from_file_location(os.path.splitext(os.path.basename(path))[0], path)
        if spec is None or spec.loader is None:
            raise RuntimeError(f"Missing the model.py file: {os.path.basename(path)}")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        classes = list_classes_from_module(module)
        if len(classes) != 1:
            raise ValueError(f"Expected only one class as model definition. {classes}")
        network = classes[0]()
        if model_pt_path:
            network.load_state_dict(torch.load(model_pt_path, map_location=self.device, weights_only=True))
        return network

    def preprocess(self, data: list[Any]) -> Any:
        """The numbers of all requests, as one tensor."""
        return torch.as_tensor([_content(row) for row in data], device=self.device)

    def inference(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        """What the network makes of the batch."""
        with torch.inference_mode():
            moved = data.to(self.device) if hasattr(data, "to") else data
            if not callable(self.model):  # a session of ONNX Runtime
                [first, *_] = self.model.get_inputs()
                return torch.as_tensor(self.model.run(None, {first.name: moved.cpu().numpy()})[0])
            return self.model(moved, *args, **kwargs)

    def postprocess(self, data: Any) -> list[Any]:
        """One answer for each row."""
        found: list[Any] = data.tolist()
        return found

    def handle(self, data: list[Any], context: Any) -> list[Any]:
        """Answer a batch: one answer for each request, in order."""
        started = time.monotonic()
        self.context = context
        if self._is_describe():
            return [self.describe_handle()]
        if self._is_explain():
            return self.explain_handle(self.preprocess(data), data)
        output = self.postprocess(self.inference(self.preprocess(data)))
        context.metrics.add_time("HandlerTime", round(1000 * (time.monotonic() - started), 2))
        return output

    def explain_handle(self, data_preprocess: Any, raw_data: list[Any]) -> list[Any]:
        """Explanations are not made by Flambeau: a handler that makes its own overrides `get_insights`."""
        target = next((row["target"] for row in raw_data if isinstance(row, dict) and row.get("target")), 0)
        found: list[Any] = self.get_insights(data_preprocess, raw_data, target)
        return found

    def get_insights(self, tensor_data: Any, raw_data: list[Any], target: Any) -> Any:
        """To be overridden."""
        raise NotImplementedError("this handler makes no explanations")

    def describe_handle(self) -> Any:
        """What a handler says about its model."""
        return None

    def _is_explain(self) -> bool:
        return bool(self.context and self.context.request_processor and self.context.get_request_header(0, "explain"))

    def _is_describe(self) -> bool:
        return bool(self.context and self.context.request_processor and self.context.get_request_header(0, "describe"))

    def get_device(self) -> Any:
        """Where the network computes."""
        return self.device


def _content(row: Any) -> Any:
    """What a request brought: its field `data`, or its body."""
    if not isinstance(row, dict):
        return row
    found = row.get("data")
    return row.get("body") if found is None else found


def _device(gpu_id: Any) -> tuple[str, Any]:
    if torch.cuda.is_available() and gpu_id is not None:
        return "cuda", torch.device(f"cuda:{gpu_id}")
    if torch.backends.mps.is_available():
        return "mps", torch.device("mps")
    return "cpu", torch.device("cpu")
