"""Export a filled network to an ONNX graph."""

from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

from flambeau.architectures.single_output import Answering, AnsweringSeveral
from flambeau.builder import places, shared_weights
from flambeau.builder.filled import Filled
from flambeau.builder.shared_weights import Stored
from flambeau.items import FREE
from flambeau.types import Tensors

ONE_FILE_LIMIT = 50_000_000
"""Bytes of weights. More than that go to a file beside the graph, `model.onnx.data`, which is mapped. Inside the graph,
which is limited to 2 GiB, they would be in memory three times while it is written and twice while it is loaded."""


def export(filled: Filled, inputs: Tensors, file: Path, stored: Stored | None) -> None:
    """Write the ONNX graph to `file`, traced with the example `inputs`.

    The number of rows is free unless `filled.rows` fixes it; other axes are free where the inputs' are. Weights that
    are `stored` already are referred to instead of written. Raises what torch raises.
    """
    network = answering(filled)
    sample = tuple(torch.from_numpy(inputs[spec.name])[: filled.rows] for spec in filled.inputs)
    given, answered = [spec.name for spec in filled.inputs], list(filled.outputs)
    free = [_free_axes(spec.shape, rows=not filled.rows) for spec in filled.inputs]
    if filled.exports == "torchscript":  # the newer exporter traces Python, and TorchScript has none
        of_outputs = [_free_axes(shape, rows=not filled.rows) for shape in filled.shapes]
        named = dict(zip([*given, *answered], [*free, *of_outputs], strict=True))
        axes = {
            name: {axis: "rows" if axis == 0 else f"{name}_{axis}" for axis in each} for name, each in named.items()
        }
        torch.onnx.export(
            network, sample, file,
            dynamo=False, dynamic_axes=axes if any(axes.values()) else None, input_names=given, output_names=answered,
        )  # fmt: skip
        network.eval()  # this exporter leaves the mode of training behind in some modules
        _rewrite(file, filled.network, stored)
        return
    shapes: Any = tuple(dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for axes in free)
    if isinstance(network, AnsweringSeveral):  # its forward takes *inputs, which count as one argument
        shapes = (shapes,)
    with places.RefusedClasses():
        program = torch.onnx.export(
            network,
            sample,
            dynamo=True,
            dynamic_shapes=shapes if any(free) else None,
            input_names=given,
            output_names=answered,
            verbose=False,
        )
    assert program is not None  # a path was not given, so the program is returned
    places.refuse_negative(program.model.graph)
    if stored is not None:
        shared_weights.refer(program.model, stored)
    _save(program.model, file)
    # onnxscript's rewrite rules keep the last graph they saw, and with it a second copy of the weights: free that.
    for value in program.model.graph.initializers.values():
        value.const_value = None


def _rewrite(file: Path, network: object, stored: Stored | None) -> None:
    """Have a graph that was written of a script refuse what PyTorch refuses, and refer to weights that are stored."""
    model = ir.load(file)
    places.refuse_negative_of_script(model.graph, network)
    if stored is not None:
        shared_weights.refer(model, stored)
    whole = file.with_name(f"{file.name}.whole")
    file.rename(whole)
    _save(model, file)
    whole.unlink()


def _free_axes(shape: tuple[int, ...], *, rows: bool) -> list[int]:
    """The indices of the free axes, including that of the rows where `rows` says so."""
    return [*([0] if rows else []), *(axis for axis, size in enumerate(shape, 1) if size == FREE)]


def _save(model: ir.Model, file: Path) -> None:
    """Write the graph with its own weights inside or beside it. Weights in another file already stay there."""
    given = [value for value in model.graph.initializers.values() if value.const_value is not None]
    own = [value for value in given if not isinstance(value.const_value, ir.ExternalTensor)]
    if sum(value.const_value.nbytes for value in own if value.const_value is not None) > ONE_FILE_LIMIT:
        tensors = [value.const_value for value in own if value.const_value is not None]
        beside = ir.external_data.convert_tensors_to_external(tensors, file.parent, f"{file.name}.data")
        for value, tensor in zip(own, beside, strict=True):
            value.const_value = tensor
    ir.save(model, file)


def answering(filled: Filled) -> nn.Module:
    """A network that returns its answer and nothing else: the network itself, where it already does."""
    network = filled.network
    assert isinstance(network, nn.Module)  # anything else comes with its graph
    if filled.plain:
        return network
    if len(filled.outputs) == len(filled.inputs) == 1:
        return Answering(network, filled.outputs[0], filled.shapes[0])
    return AnsweringSeveral(network, filled.outputs, filled.shapes)
