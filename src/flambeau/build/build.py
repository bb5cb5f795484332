"""The steps of a build, in order. Each says what it is doing before it does it."""

import importlib.metadata
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch
from safetensors.numpy import save_file as save_arrays
from torch import nn

from flambeau import architectures, bundle, engines
from flambeau.agreement import Agreement
from flambeau.architectures import torchvision_models
from flambeau.build import code, export, labels, networks, onnx_source, optimise, programs, quantise, samples, trials
from flambeau.build.networks import Filled
from flambeau.build.reading import tensors_file
from flambeau.build.weights import Opening
from flambeau.bundle import ImagePipeline, Manifest, Optimised, Source
from flambeau.errors import SourceError
from flambeau.measurements import Quantised
from flambeau.orders import Advance, BuildOrder, Event, Note, Step
from flambeau.pipelines.opening import open_pipeline
from flambeau.process import give_memory_back
from flambeau.types import Label, Tensors, TensorSpec
from flambeau.version import VERSION

Say = Callable[[Event], None]


def build(order: BuildOrder, folder: Path, *, opening: Opening | None, say: Say) -> None:
    """Fill `folder` with the bundle that `order` asks for. `opening` is its weights file. Raises `SetupError`."""
    given = samples.gather(Path(order.options.samples)) if order.options.samples else ()
    if order.kind == "python":
        code.build(order, folder, given, say=say)
    else:
        _Build(order, folder, opening, given, say).run()


class _Build:
    """The build of a network."""

    STEPS = 5

    def __init__(
        self, order: BuildOrder, folder: Path, opening: Opening | None, given: Sequence[samples.Given], say: Say
    ) -> None:
        self._order = order
        self._folder = folder
        self._opening = opening
        self._given = given
        self._say = say
        self._number = 0
        self._graph = folder / bundle.ONNX

    def run(self) -> None:
        filled, source = self._open()
        classes = isinstance(filled.pipeline, ImagePipeline)
        inputs = export.probe_inputs(filled.input, images=classes)
        eager = _outputs(filled, inputs)
        named = self._write_labels(filled, outputs=eager.shape[1]) if classes else None
        spec = TensorSpec(filled.output, str(eager.dtype), tuple(eager.shape[1:]))
        checked = [(inputs, {filled.output: eager}), *self._collect(filled, spec, named)]
        ready = filled.exports == "ready"
        self._step("taking its graph as it is" if ready else "exporting it for ONNX Runtime")
        error = self._export(filled, inputs)
        give_memory_back()
        self._step("checking that its answers repeat" if ready else "checking the export against PyTorch")
        found = None if error else export.check(self._graph, checked, classes=classes)
        if found is not None and not found.holds:
            error = f"the export disagrees with PyTorch: {found}"
            for file in self._folder.glob(f"{bundle.ONNX}*"):
                file.unlink()
        self._conclude(filled, found, error)
        here = None if error else optimise.optimise(self._folder, checked, classes=classes, tell=self._tell)
        int8 = self._quantise(filled, spec, named, error) if self._order.int8 else None
        self._step("writing the bundle")
        probes = {f"input.{name}": array for name, array in inputs.items()} | {f"output.{filled.output}": eager}
        save_arrays(probes, self._folder / bundle.PROBES)
        self._write(filled, source, spec, found, error, here, int8)
        allow_code = self._order.options.allow_code
        trials.settle(self._folder, self._order.engine, allow_code=allow_code, tell=self._tell)

    def _collect(
        self, filled: Filled, output: TensorSpec, named: tuple[Label, ...] | None
    ) -> list[tuple[Tensors, Tensors]]:
        """Keep the golden samples, and return them as one more thing that the export is checked with."""
        if not self._given:
            return []
        pipeline = open_pipeline(filled.pipeline, labels=named, inputs=(filled.input,), outputs=(output,))
        golden = samples.collect(
            self._given, self._folder, pipeline=pipeline, compute=lambda rows: {output.name: _outputs(filled, rows)}
        )
        return [(golden.inputs, golden.outputs)]

    def _quantise(
        self, filled: Filled, output: TensorSpec, named: tuple[Label, ...] | None, error: str | None
    ) -> Quantised:
        """Make the int8 twin of the graph, and say how well it agrees."""
        if error or filled.rows is not None:
            why = error or "it takes one row at a time"
            raise SourceError(f"--int8 needs a graph that computes batches, and {filled.name} has none ({why})")
        pipeline = open_pipeline(filled.pipeline, labels=named, inputs=(filled.input,), outputs=(output,))
        found = quantise.quantise(
            self._folder,
            quantise.gather(Path(str(self._order.int8)), pipeline),
            compute=lambda rows: {output.name: _outputs(filled, rows)},
            classes=isinstance(filled.pipeline, ImagePipeline),
        )
        self._tell(quantise.told(found))
        return found

    def _step(self, what: str) -> None:
        self._number += 1
        self._say(Step(self._number, self.STEPS, what))

    def _tell(self, text: str) -> None:
        self._say(Note(text))

    def _open(self) -> tuple[Filled, Source]:
        """The network, ready to compute, and where it came from."""
        order = self._order
        if order.kind == "pretrained":
            architecture = architectures.find(str(order.architecture), args=order.options.arch_args)
            self._step(f"fetching the weights of {architecture.name}")
            if architecture.registry != "torchvision":
                raise SourceError(f"{architecture.name} has no weights to fetch: name a file with --weights")
            state, pipeline = torchvision_models.pretrained(architecture.name)
            self._step("filling the network")
            filled = networks.pretrained(architecture, state, pipeline, order.options)
            return filled, Source(kind="pretrained", name=architecture.name)
        if order.file is not None and self._opening is None:
            source = Source(kind=order.kind, name=Path(order.file).name, sha256=bundle.sha256_of(Path(order.file)))
            self._step(f"reading {source.name}")
            take = onnx_source.take if order.kind == "onnx" else programs.load
            self._step("finding out what it takes")
            return take(order, self._graph, tell=self._tell), source
        assert self._opening is not None  # the build process opens the file of every other order
        self._step(f"reading the weights of {order.name}")
        weights = self._opening.result(progress=lambda done, of: self._say(Advance(done / of)))
        for note in (weights.sandbox, weights.note):
            if note:
                self._tell(note)
        self._step(
            "finding the network" if order.architecture is None and order.code is None else "filling the network"
        )
        fill = networks.own if order.code is not None else networks.registered
        source = Source(kind=order.kind, name=self._opening.name, sha256=weights.sha256)
        return fill(order, weights, tell=self._tell), source

    def _write_labels(self, filled: Filled, *, outputs: int) -> tuple[Label, ...] | None:
        if filled.labels is not None:
            named = labels.load(filled.labels, outputs=outputs)
        elif filled.classes is not None and len(filled.classes) == outputs:
            self._tell(f"the names of the {outputs} classes lay beside the weights: --labels says otherwise")
            named = tuple(Label(str(index), name) for index, name in enumerate(filled.classes))
        else:
            hint = "imagenet or a file" if outputs == 1000 else "a file"
            self._tell(f"answers carry class numbers for names: name the {outputs} classes with --labels ({hint})")
            return None
        bundle.write_labels(self._folder, named)
        return named

    def _export(self, filled: Filled, inputs: Tensors) -> str | None:
        """Export the network. Returns why not, where it cannot be exported: then PyTorch itself will serve it."""
        try:
            export.export(filled, torch.from_numpy(inputs[filled.input.name]), self._graph)
        except Exception as error:  # the exporter's own tree of exceptions is large and not public
            return f"it cannot be exported: {str(error).strip().splitlines()[0] if str(error).strip() else type(error)}"
        return None

    def _conclude(self, filled: Filled, found: Agreement | None, error: str | None) -> None:
        """Say how the network will be served. Raises `SourceError` when nothing can serve it."""
        if error and filled.architecture is None:
            raise SourceError(
                f"{self._order.name} cannot be served, for {error}: "
                "save its weights alone, and name its class with --arch file.py:Class --allow-code"
            )
        if error:
            self._tell(f"serving with eager PyTorch, for {error}")
        elif filled.exports != "ready":
            self._tell(f"ONNX Runtime agrees with PyTorch: {found}")

    def _write(
        self,
        filled: Filled,
        source: Source,
        output: TensorSpec,
        found: Agreement | None,
        error: str | None,
        here: Optimised | None,
        int8: Quantised | None,
    ) -> None:
        if filled.architecture is not None:
            assert isinstance(filled.network, nn.Module)  # only such have an architecture
            with (self._folder / bundle.WEIGHTS).open("wb") as file:
                tensors_file.write(filled.network.state_dict(), file, say=lambda done, of: None)
        architecture = filled.architecture
        if architecture is not None and architecture.code is not None:
            kept = code.keep_code(architecture.code, self._folder, portable=self._order.portable)
            architecture = msgspec.structs.replace(architecture, code=kept)
        manifest = Manifest(
            format=bundle.FORMAT,
            name=self._order.name,
            flambeau=VERSION,
            source=source,
            pipeline=filled.pipeline,
            engine="eager" if error else "onnxruntime",
            inputs=(filled.input,),
            outputs=(output,),
            architecture=architecture,
            agreement=None if filled.exports == "ready" else found,
            export_error=error,
            optimised=here,
            int8=int8,
            tools=_tools(),
        )
        bundle.write_manifest(self._folder, manifest)


def _outputs(filled: Filled, inputs: Tensors) -> np.ndarray:
    """What the network itself answers to the rows, shape (rows, ...). Raises `SourceError` for what is no tensor."""
    rows = torch.from_numpy(inputs[filled.input.name])
    parts = torch.split(rows, filled.rows or len(rows))
    return np.concatenate([_answer(filled, part) for part in parts])


def _answer(filled: Filled, rows: torch.Tensor) -> np.ndarray:
    name = filled.name
    try:
        with torch.inference_mode():
            result = filled.network(rows)
    except Exception as error:
        raise SourceError(f"{name} cannot compute an input of shape {list(rows.shape)}: {error}") from error
    if not isinstance(result, torch.Tensor) or result.shape[:1] != rows.shape[:1]:
        shape = list(result.shape) if isinstance(result, torch.Tensor) else type(result).__name__
        raise SourceError(f"{name} answers {len(rows)} rows with {shape}: one tensor with a row for each is needed")
    if isinstance(filled.pipeline, ImagePipeline) and result.dim() != 2:
        raise SourceError(
            f"{name} is no classifier: it answers an image with shape {list(result.shape[1:])}: "
            "serve it over numbers with --pipeline tensor"
        )
    array: np.ndarray = result.numpy()
    return array


def _tools() -> dict[str, str]:
    tools = ["torch", "torchvision", "onnx", "onnxruntime", *(["openvino"] if engines.installed("openvino") else [])]
    return {name: importlib.metadata.version(name) for name in tools}
