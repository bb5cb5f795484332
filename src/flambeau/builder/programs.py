"""Networks that come with code: whole pickled modules, TorchScript, exported programs, and weights among other objects.

Loading any of them runs its author's code with the rights of the user who builds. So this module is reached only with
`--allow-code`, and checks that again. It is the only place that unpickles freely: everything else reads with
`weights_only=True`.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flambeau import checkpoints, usercode
from flambeau.architectures import torchvision_compat
from flambeau.builder import dense, dense_recipe, inputs, networks, scaling, signature_words, sounds, texts, trials
from flambeau.builder.filled import Exporter, Filled, Tell, dressed
from flambeau.builder.shapes import InputForm, of_shape
from flambeau.builder.weights import Weights
from flambeau.bundle import storage
from flambeau.checkpoints import prepared
from flambeau.checkpoints.report import Report
from flambeau.errors import SourceError
from flambeau.identify import unsupported
from flambeau.settings.source import SourceOptions
from flambeau.sources.request import BuildRequest


def load(order: BuildRequest, _graph: Path, *, tell: Tell) -> Filled:
    """The network in the file, ready to compute. Raises `CodeNotAllowed`, or `SourceError` with the reason."""
    file = Path(str(order.file))
    usercode.refuse_unless(order.options.allow_code, file.name)
    for folder in (Path.cwd(), file.parent):  # a pickled module names its class, whose file is often in one of these
        usercode.admit(folder)
    report = checkpoints.examine(file, whole=True)
    if report.verdict == "refused":  # the front checked too, but the file may have been replaced since
        raise SourceError(f"{file.name} {report.reason}: {report.remedy}")
    torchvision_compat.stand_by()  # a pickled ResNet imports torchvision
    try:
        if report.format == "pt2":
            return _exported_program(torch.export.load(file), order, tell)
        if report.format == "torchscript":
            scripted = torch.jit.load(file, map_location="cpu")  # type: ignore[no-untyped-call]
            return _module(scripted.eval(), order, tell, exports="torchscript")
        loaded = torch.load(file, map_location="cpu", weights_only=False)
    except SourceError:
        raise
    except Exception as error:
        raise SourceError(
            f"{file.name} cannot be loaded: {type(error).__name__}: {error}: "
            "save the weights alone with torch.save(model.state_dict(), PATH), and name the class with --arch"
        ) from error
    if isinstance(loaded, nn.Module):
        return _module(loaded.float().eval(), order, tell)
    return _within(loaded, report, order, tell)


def _module(network: nn.Module, order: BuildRequest, tell: Tell, *, exports: Exporter = "dynamo") -> Filled:
    name = getattr(network, "original_name", type(network).__name__)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    if dense_recipe.wanted(order.options):
        return dense.own(network, order, name=name, architecture=None, tell=tell)
    taken = sounds.taken(inputs.infer(network, name, order.options), order.options, name)
    taken = texts.taken(taken, order, name, tell=tell)
    return dressed(network, taken, order, name=name, architecture=None, tell=tell, exports=exports)


def _exported_program(program: "torch.export.ExportedProgram", order: BuildRequest, tell: Tell) -> Filled:
    taken = _inputs_of(program, order.options)
    network = _Program(program)
    if taken.image is None:
        tried, note = trials.computable(network, taken.inputs)
        taken = replace(taken, inputs=tried, note=note)
    signature_words.require_decimals(network, "the program", taken.inputs[0].shape)
    return dressed(network, taken, order, name=order.name, architecture=None, tell=tell, exports="dynamo")


class _Program(nn.Module):
    """An exported program as a module, so that it is exported and computed like any other network."""

    def __init__(self, program: "torch.export.ExportedProgram") -> None:
        super().__init__()
        self._module = program.module()

    def forward(self, rows: torch.Tensor) -> Any:
        return self._module(rows)


def _inputs_of(program: "torch.export.ExportedProgram", options: SourceOptions) -> InputForm:
    """The input that the program itself declares. Raises `SourceError` for one that cannot be served."""
    names = program.graph_signature.user_inputs
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    if len(placeholders) != 1:
        raise SourceError(
            f"the program takes {len(placeholders)} inputs, and one tensor in is served: {unsupported.AROUND}"
        )
    value = placeholders[0].meta["val"]
    rows, *shape = value.shape
    if not all(isinstance(size, int) for size in shape):
        raise SourceError(
            f"the program takes inputs of free shape {list(value.shape)}: export it with a free first size only"
        )
    if isinstance(rows, int) and rows != 1:
        raise SourceError(f"the program takes {rows} rows at a time only: export it with a free number of rows")
    if value.dtype != torch.float32:
        raise SourceError(f"the program takes {value.dtype}, and only float32 is served: {unsupported.AROUND}")
    taken = of_shape(tuple(shape), "the program", options)
    fixed = isinstance(rows, int)
    why = "it was exported for one row" if fixed else None
    return InputForm(taken.inputs, image=taken.image, rows=1 if fixed else None, one_row=why)


def _within(loaded: Any, report: Report, order: BuildRequest, tell: Tell) -> Filled:
    """The network or the weights among other objects, as in `{"epoch": 3, "model": network}`.

    As for any checkpoint, the tensors decide which entry is chosen: a loss function is a module too. Raises
    `SourceError` when there are none.
    """
    entry, note = checkpoints.choose(report, order.options.weights_key)
    if note:
        tell(note)
    for key in entry.where:
        loaded = loaded[key]
    if isinstance(loaded, nn.Module):
        return _module(loaded.float().eval(), order, tell)
    tensors = {key: loaded[key] for key in entry.tensors}
    weights = Weights(
        tensors,
        entry,
        storage.sha256_of(Path(str(order.file))),
        classes=report.classes,
        stated=report.stated,
        prepares=prepared.beside(report.prepares, entry.where),
    )
    filled = networks.filled(order, weights, tell=tell)
    return scaling.ask_of_file(filled, weights.prepares, order.options, tell)
