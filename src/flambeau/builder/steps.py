"""The steps of a build, in order. Each announces itself before it runs.

PyTorch and onnx are imported only in the steps that need them: Python models are built without either, ONNX graphs
without PyTorch.
"""

import dataclasses
import functools
import importlib.metadata
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from safetensors.numpy import save_file as save_arrays

from flambeau import architectures, engines
from flambeau.answers.activation import Activation
from flambeau.answers.agreement import Agreement, Compare
from flambeau.builder import (
    activation,
    axis_words,
    checking,
    dense_probe,
    dense_task,
    engine_choice,
    golden_samples,
    labels,
    optimise,
    own_code,
    probing,
    scaling,
    text_trials,
    texts,
)
from flambeau.builder.filled import Filled
from flambeau.builder.weights import Opening
from flambeau.bundle import storage
from flambeau.bundle.measurements import Quantised
from flambeau.bundle.pipeline_config import facts_of
from flambeau.bundle.storage import DenseConfig, HasTask, Manifest, Optimised, PictureConfig, Source, TextConfig
from flambeau.errors import SourceError
from flambeau.pipelines.base import Pipeline, open_pipeline
from flambeau.sources import request
from flambeau.sources.request import Advance, BuildRequest, BuildStep, Event, Imported, Note
from flambeau.system.process import give_memory_back
from flambeau.system.staging import no_space
from flambeau.tasks import TASKS, TaskName
from flambeau.types import Label, Tensors, TensorSpec
from flambeau.version import VERSION

if TYPE_CHECKING:
    from flambeau.builder.shared_weights import Stored

Announce = Callable[[Event], None]


def build(order: BuildRequest, folder: Path, *, opening: Opening | None, say: Announce) -> None:
    """Fill `folder` with the bundle that `order` asks for. `opening` is its weights file, if any, being read already.

    Raises `SetupError`.
    """
    given = golden_samples.gather(Path(order.options.samples)) if order.options.samples else ()
    if order.kind == "python":
        own_code.build(order, folder, given, say=say)
    else:
        _Build(order, folder, opening, given, say).run()
        say(Imported(own_code.imported()))


class _Build:
    """One build of a network."""

    STEPS = 5

    def __init__(
        self,
        order: BuildRequest,
        folder: Path,
        opening: Opening | None,
        given: Sequence[golden_samples.GivenSample],
        say: Announce,
    ) -> None:
        self._order = order
        self._folder = folder
        self._opening = opening
        self._given = given
        self._say = say
        self._number = 0
        self._graph = folder / storage.ONNX

    def run(self) -> None:
        filled, source = self._open()
        scaling.ask(filled, self._order.options, self._graph)
        probed = self._probe(filled)
        filled, spec = probed.filled, probed.output
        task, applied = self._decide(probed)
        config = filled.pipeline
        classes = config.classes if isinstance(config, PictureConfig | DenseConfig) else math.prod(spec.shape)
        filled, named = self._name(filled, task, outputs=classes)
        facts = facts_of(filled.pipeline, inputs=filled.inputs, outputs=probed.outputs, activation=applied)
        compare = functools.partial(TASKS[task].agreement, facts)
        inputs, eager = probed.kept()
        outputs = probed.outputs
        pipeline = open_pipeline(
            filled.pipeline,
            labels=named,
            inputs=filled.inputs,
            outputs=outputs,
            task=task,
            activation=applied,
            tokenizer=filled.tokenizer.read_bytes() if filled.tokenizer else b"",
        )
        texts.keep(filled, self._folder)
        kept = functools.partial(TASKS[task].kept, facts)
        checked = [(inputs, eager), *probed.longer, *self._collect(filled, pipeline, kept)]
        ready = filled.exports == "ready"
        self._step("taking its graph as it is" if ready else "exporting it for ONNX Runtime")
        stored = self._store(filled)
        error = self._export(filled, inputs, stored)
        give_memory_back()
        self._step("checking that its answers repeat" if ready else "checking the export against PyTorch")
        one_row = probed.one_row is not None
        found: Agreement | None = None
        here: Optimised | None = None
        if not error and optimise.worth_it(self._folder):
            # Checked as written: optimising it while loading would put its weights into memory two more times.
            found, wrong = self._check(checked, compare=compare, one_row=one_row, as_written=True)
            if not wrong:
                here = optimise.optimise(self._folder, checked, compare=compare, one_row=one_row, tell=self._tell)
        if not error and here is None:
            found, error = self._check(checked, compare=compare, one_row=one_row)
        if found is None or not found.holds:
            for file in self._folder.glob(f"{storage.ONNX}*"):
                file.unlink()
        self._conclude(filled, found, error)
        if error:
            from flambeau.builder import decisions

            probed = decisions.settled(probed, inputs, tell=self._tell)
        int8 = self._quantise(filled, pipeline, error, classes=TASKS[task].answer.RANKS) if self._order.int8 else None
        self._step("writing the bundle")
        probes = {f"input.{name}": array for name, array in inputs.items()}
        probes |= {f"output.{name}": np.ascontiguousarray(array) for name, array in eager.items()}
        save_arrays(probes, self._folder / storage.PROBES)
        manifest = Manifest(
            format=storage.FORMAT,
            name=self._order.name,
            flambeau=VERSION,
            source=source,
            pipeline=filled.pipeline,
            engine="eager" if error else "onnxruntime",
            inputs=self._worded(filled, exported=not error),
            outputs=outputs,
            task=task,
            activation=applied,
            one_row=probed.one_row,
            agreement=None if ready else found,
            export_error=error,
            optimised=here,
            int8=int8,
            tools=_tools(filled),
        )
        self._write(filled, manifest)
        allow_code = self._order.options.allow_code
        engine_choice.settle(self._folder, self._order.engine, allow_code=allow_code, tell=self._tell)

    def _probe(self, filled: Filled) -> probing.Probed:
        if isinstance(filled.pipeline, PictureConfig):
            from flambeau.builder import detectors

            return detectors.probe(filled, tell=self._tell)
        if isinstance(filled.pipeline, DenseConfig):
            return dense_probe.probe(filled, self._order.options.output_name, tell=self._tell)
        if isinstance(filled.pipeline, TextConfig):
            found = probing.probe(filled, self._order.options.output_name, tell=self._tell)
            filled, answered = text_trials.checked(found.filled, self._order.options, tell=self._tell)
            return dataclasses.replace(found, filled=filled, longer=(*found.longer, *answered))
        known = filled.architecture is not None and filled.architecture.registry != "code"  # then it named the head
        return probing.probe(filled, None if known else self._order.options.output_name, tell=self._tell)

    def _decide(self, probed: probing.Probed) -> tuple[TaskName, Activation]:
        """Decide the task and the activation, and tell the user about those of images. Raises `SourceError`."""
        filled, options = probed.filled, self._order.options
        if isinstance(filled.pipeline, PictureConfig):
            from flambeau.builder import detectors

            return detectors.task_of(filled.outputs), Activation("none", known="architecture")
        if isinstance(filled.pipeline, DenseConfig):
            decided = dense_task.decide(probed, options)
            self._tell(decided.note)
            return decided.task, decided.activation
        if not isinstance(filled.pipeline, HasTask):
            if len(probed.outputs) > 1:
                return "tensor", Activation("none", known="graph")
            return "tensor", activation.over_numbers(probed.ending, probed.numbers)
        registry = filled.architecture.registry if filled.architecture else "code"
        seen = activation.ProbedOutput(
            filled.name,
            probed.numbers,
            probed.ending,
            official=filled.official,
            registered=registry != "code",
            headed=registry not in ("code", "transformers"),
            without_head=probed.without_head,
            named=options.labels is not None or len(filled.classes or ()) == probed.output.shape[0],
        )
        task, normalize = options.task or filled.task, bool(options.normalize)
        if isinstance(filled.pipeline, TextConfig):
            task = texts.task_of(filled.pipeline, self._order, self._tell) or filled.task
            if task == "embedding" and not normalize and texts.normalises(self._order):
                self._tell("its vectors are divided by their length, as modules.json says")
                normalize = True
        decided = activation.decide(seen, task, options.activation, normalize=normalize)
        self._tell(decided.note)
        return decided.task, decided.activation

    def _name(self, filled: Filled, task: TaskName, *, outputs: int) -> tuple[Filled, tuple[Label, ...] | None]:
        """Set the class names and the threshold, where the task has them. Raises `SetupError`."""
        options = self._order.options
        does = TASKS[task]
        if not isinstance(filled.pipeline, HasTask):
            return filled, None
        if not does.labelled:
            used = tuple(name for name in request.OPTIONS if name not in ("labels", "threshold"))
            request.refuse_idle(options, f"{filled.name} with --task {task}, which has no classes", used=used)
            return filled, None
        if does.usual_threshold is not None and options.threshold is None:
            pipeline = msgspec.structs.replace(filled.pipeline, threshold=does.usual_threshold)
            filled = dataclasses.replace(filled, pipeline=pipeline)
        return filled, self._write_labels(filled, outputs=outputs)

    def _collect(
        self, filled: Filled, pipeline: Pipeline, kept: Callable[[Tensors], Tensors]
    ) -> list[tuple[Tensors, Tensors]]:
        """Keep the golden samples, and return them as (inputs, outputs) to check the export with."""
        if not self._given:
            return []
        golden = golden_samples.collect(
            self._given, self._folder, pipeline=pipeline, compute=_computing(filled), kept=kept
        )
        return [(each.inputs, each.outputs) for each in golden]

    def _quantise(self, filled: Filled, pipeline: Pipeline, error: str | None, *, classes: bool) -> Quantised:
        """Make the int8 graph, and tell the user how well it agrees."""
        if filled.free:
            raise SourceError(f"--int8 needs inputs of one shape: build {filled.name} without")
        if error or filled.rows is not None:
            why = error or f"it is given one row at a time, because {filled.one_row}"
            raise SourceError(f"--int8 needs a graph that computes batches, and {filled.name} has none ({why})")
        from flambeau.builder import quantise

        given = quantise.gather(Path(str(self._order.int8)), pipeline)
        found = quantise.quantise(self._folder, given, compute=_computing(filled), classes=classes)
        self._tell(quantise.told(found, "the graph's own" if filled.exports == "ready" else "PyTorch's"))
        return found

    def _step(self, what: str) -> None:
        self._number += 1
        self._say(BuildStep(self._number, self.STEPS, what))

    def _tell(self, text: str) -> None:
        self._say(Note(text))

    def _open(self) -> tuple[Filled, Source]:
        """The network, ready to compute, and its source."""
        order = self._order
        if order.kind == "pretrained":
            architecture = architectures.find(str(order.architecture), args=order.options.arch_args)
            self._step(f"fetching the weights of {architecture.name}")
            if architecture.registry != "torchvision":
                raise SourceError(f"{architecture.name} has no weights to fetch: name a file with --weights")
            from flambeau.architectures.registries import TORCHVISION
            from flambeau.builder import networks

            state, pipeline = TORCHVISION.pretrained(architecture.name)
            self._step("filling the network")
            filled = networks.pretrained(architecture, state, pipeline, order.options, tell=self._tell)
            return filled, Source(kind="pretrained", name=architecture.name)
        if order.file is not None and self._opening is None:
            source = Source(kind=order.kind, name=Path(order.file).name, sha256=storage.sha256_of(Path(order.file)))
            self._step(f"reading {source.name}")
            self._step("finding out what it takes")
            if order.kind == "onnx":
                from flambeau.builder import onnx_source

                return onnx_source.take(order, self._graph, tell=self._tell), source
            from flambeau.builder import programs

            return programs.load(order, self._graph, tell=self._tell), source
        assert self._opening is not None  # the build process opens the file for every other kind of source
        self._step(f"reading the weights of {order.name}")
        weights = self._opening.result(progress=lambda done, of: self._say(Advance(done / of)))
        for note in filter(None, (weights.sandbox, weights.note)):
            self._tell(note)
        from flambeau.builder import networks

        self._step("filling the network" if order.architecture or order.code else "finding the network")
        source = Source(kind=order.kind, name=self._opening.name, sha256=weights.sha256)
        filled = networks.filled(order, weights, tell=self._tell)
        return scaling.ask_of_file(filled, weights.prepares, order.options, self._tell), source

    def _write_labels(self, filled: Filled, *, outputs: int) -> tuple[Label, ...] | None:
        detects = isinstance(filled.pipeline, PictureConfig | DenseConfig)
        beside = tuple(Label(str(index), name) for index, name in enumerate(filled.classes or ()))
        if filled.labels is not None:
            named = labels.load(filled.labels, outputs=outputs, background=detects)
        elif beside and len(beside) in (outputs, outputs - 1 if detects else outputs):
            self._tell(f"the names of the {len(beside)} classes were found beside the weights: --labels names others")
            named = beside if len(beside) == outputs else labels.with_background(beside)
        else:
            known = {1000: "imagenet or a file"} | ({91: "coco or a file", 21: "voc or a file"} if detects else {})
            hint = known.get(outputs, "a file")
            self._tell(f"answers carry class numbers, not names: name the {outputs} classes with --labels ({hint})")
            return None
        if detects:
            self._tell(f"class 0 is {named[0].name}, class 1 is {named[1].name if named[1:] else 'missing'}")
        storage.write_labels(self._folder, named)
        return named

    def _store(self, filled: Filled) -> "Stored | None":
        """Write the weights for serving with PyTorch itself, if the architecture is known. Raises `SourceError`."""
        if filled.architecture is None:
            return None
        from torch import nn

        from flambeau.builder import shared_weights

        assert isinstance(filled.network, nn.Module)  # nothing else has an architecture
        return shared_weights.store(filled.network, self._folder / storage.WEIGHTS)

    def _export(self, filled: Filled, inputs: Tensors, stored: "Stored | None") -> str | None:
        """Export the network. Returns the reason if that fails: then PyTorch itself has to serve it."""
        if filled.exports == "ready":
            return None
        from flambeau.builder import export

        try:
            export.export(filled, inputs, self._graph, stored)
        except Exception as error:  # the exporter's exception types are many and not public
            if no_space(error):
                raise
            first = str(error.__cause__ or error).strip().partition("\n")[0]  # the exporter's own text has colour codes
            return f"it cannot be exported: {first or type(error).__name__}"
        return None

    def _worded(self, filled: Filled, *, exported: bool) -> tuple[TensorSpec, ...]:
        """The inputs, with the words of those lengths that have to be alike; the sides of pictures have none."""
        if not filled.free or isinstance(filled.pipeline, PictureConfig):
            return filled.inputs
        return axis_words.settled(filled.inputs, self._graph if exported else None)

    def _check(
        self, checked: list[tuple[Tensors, Tensors]], *, compare: Compare, one_row: bool, as_written: bool = False
    ) -> tuple[Agreement | None, str | None]:
        """How well the graph agrees with the network, and why it cannot serve, or `None` if it can."""
        try:
            found = checking.check(self._graph, checked, compare=compare, one_row=one_row, as_written=as_written)
        except Exception as error:  # onnxruntime's own exception types, for graphs that only the exporter accepts
            if no_space(error):
                raise
            return None, f"ONNX Runtime cannot compute the export: {str(error).strip().partition(chr(10))[0]}"
        return found, None if found.holds else f"the export disagrees with PyTorch: {found}"

    def _conclude(self, filled: Filled, found: Agreement | None, error: str | None) -> None:
        """Tell the user how the network will be served. Raises `SourceError` when nothing can serve it."""
        if error and filled.exports == "ready":
            raise SourceError(
                f"{self._order.name} cannot be served: its graph does not repeat its own answers: {found or error}"
            )
        if error and filled.architecture is None:
            raise SourceError(
                f"{self._order.name} cannot be served, because {error}: "
                "save its weights alone, and name its class with --arch file.py:Class --allow-code"
            )
        if error:
            self._tell(f"serving with eager PyTorch, because {error}")
        elif filled.exports != "ready":
            self._tell(f"ONNX Runtime agrees with PyTorch: {found}")

    def _write(self, filled: Filled, manifest: Manifest) -> None:
        """Write the code for serving with PyTorch itself, and then the manifest, which covers all members."""
        architecture = filled.architecture
        if architecture is not None and architecture.code is not None:
            kept = own_code.keep_code(architecture.code, self._folder, portable=self._order.portable)
            architecture = msgspec.structs.replace(architecture, code=kept)
        storage.write_manifest(self._folder, msgspec.structs.replace(manifest, architecture=architecture))


def _computing(filled: Filled) -> Callable[[Tensors], Tensors]:
    """The network itself as a function of rows."""
    return lambda rows: probing.compute(filled, rows)


def _tools(filled: Filled) -> dict[str, str]:
    """The packages that made the bundle, with their versions."""
    tools = [] if filled.exports == "ready" else ["torch", "torchvision"]
    tools += ["onnx", "onnxruntime", *(["openvino"] if engines.installed("openvino") else [])]
    return {name: importlib.metadata.version(name) for name in tools}
