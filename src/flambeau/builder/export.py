"""A filled network to an ONNX graph."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from flambeau.architectures.single_output import Answering
from flambeau.builder import shared_weights
from flambeau.builder.filled import Filled
from flambeau.builder.shared_weights import Stored

ONE_FILE_LIMIT = 50_000_000
"""Bytes. More weights than that lie in a file beside the graph, `model.onnx.data`, which is mapped: within the graph
they would be in memory three times while it is written and twice while it is loaded, and it ends at 2 GiB."""


def export(filled: Filled, rows: np.ndarray, file: Path, stored: Stored | None) -> None:
    """Write the ONNX graph, with a free number of rows unless the network has its own. `rows` are such as it takes.

    What is `stored` beside it already, it refers to. Raises what torch raises.
    """
    network = answering(filled)
    sample = torch.from_numpy(rows)
    given, answered = filled.input.name, filled.output
    if filled.exports == "torchscript":  # the newer exporter traces Python, and TorchScript has none
        free = None if filled.rows else {given: {0: "rows"}, answered: {0: "rows"}}
        torch.onnx.export(
            network, (sample[: filled.rows],), file,
            dynamo=False, dynamic_axes=free, input_names=[given], output_names=[answered],
        )  # fmt: skip
        return
    program = torch.onnx.export(
        network,
        (sample[: filled.rows],),
        dynamo=True,
        dynamic_shapes=None if filled.rows else ({0: torch.export.Dim.DYNAMIC},),
        input_names=[given],
        output_names=[answered],
        verbose=False,
    )
    assert program is not None  # a path was not given, so the program is returned
    if stored is not None:
        shared_weights.refer(program.model, stored)
    _save(program.model, file)
    # onnxscript's rewriting rules keep the graph they saw last, and that a second copy of the weights: this lets it go
    for value in program.model.graph.initializers.values():
        value.const_value = None


def _save(model: ir.Model, file: Path) -> None:
    """Write the graph, its own weights within it or beside it; those that lie elsewhere already stay there."""
    given = [value for value in model.graph.initializers.values() if value.const_value is not None]
    own = [value for value in given if not isinstance(value.const_value, ir.ExternalTensor)]
    if sum(value.const_value.nbytes for value in own if value.const_value is not None) > ONE_FILE_LIMIT:
        tensors = [value.const_value for value in own if value.const_value is not None]
        beside = ir.external_data.convert_tensors_to_external(tensors, file.parent, f"{file.name}.data")
        for value, tensor in zip(own, beside, strict=True):
            value.const_value = tensor
    ir.save(model, file)


def answering(filled: Filled) -> nn.Module:
    """The network as one that returns its answer and nothing else: itself, where it does."""
    network = filled.network
    assert isinstance(network, nn.Module)  # whatever else computes has its graph already
    return network if filled.plain else Answering(network, filled.output, filled.shape)
