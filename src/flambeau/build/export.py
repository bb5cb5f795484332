"""A filled network to an ONNX graph, and the graph's answers held against eager PyTorch's."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from flambeau import agreement
from flambeau.agreement import Agreement
from flambeau.architectures.returned import Answering
from flambeau.build.networks import Filled
from flambeau.engines.onnx_session import open_session
from flambeau.types import Tensors, TensorSpec

_ONE_FILE_LIMIT = 50_000_000
"""Bytes. More weights than that lie in a file beside the graph, `model.onnx.data`, which is mapped: within the graph
they would be in memory three times while it is written and twice while it is loaded, and it ends at 2 GiB."""
_SEED = 20120930  # probes are the same whenever the same bundle is built


def probe_inputs(spec: TensorSpec, *, images: bool) -> Tensors:
    """Sample inputs. For images (4, channels, size, size): soft blobs like a photograph's, noise, faint blobs,
    strong ones; else 8 rows."""
    generator = torch.Generator().manual_seed(_SEED)
    if not images:
        return {spec.name: torch.randn((8, *spec.shape), generator=generator).to(getattr(torch, spec.dtype)).numpy()}
    channels, size, _ = spec.shape

    def blobs(strength: float) -> torch.Tensor:
        coarse = torch.randn((1, channels, 8, 8), generator=generator) * strength
        return nn.functional.interpolate(coarse, size=(size, size), mode="bicubic")

    first, noise = blobs(1.5), torch.randn((1, channels, size, size), generator=generator)
    return {spec.name: torch.cat([first, noise, blobs(0.5), blobs(2.5)]).numpy()}


def export(filled: Filled, sample: torch.Tensor, file: Path) -> None:
    """Write the ONNX graph, with a free number of rows unless the network has its own. Raises what torch raises."""
    if filled.exports == "ready":
        return
    network = answering(filled)
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
    weights = sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
    program.save(file, external_data=weights > _ONE_FILE_LIMIT)
    # onnxscript's rewriting rules keep the graph they saw last, and that a second copy of the weights: this lets it go
    for value in program.model.graph.initializers.values():
        value.const_value = None


def answering(filled: Filled) -> nn.Module:
    """The network as one that returns its answer and nothing else: itself, where it does."""
    network = filled.network
    assert isinstance(network, nn.Module)  # whatever else computes has its graph already
    return network if filled.plain else Answering(network, filled.output, filled.shape)


def check(
    file: Path,
    samples: Iterable[tuple[Tensors, Tensors]],
    *,
    classes: bool,
    optimised: bool = False,
    one_row: bool = False,
) -> Agreement:
    """Run the graph over inputs with known outputs, one by one and, unless it takes `one_row`, together.

    Returns the worst agreement.
    """
    session = open_session(file, optimised=optimised)
    free = not one_row and session.get_inputs()[0].shape[0] != 1
    found: list[Agreement] = []
    for inputs, outputs in samples:
        [(name, expected)] = outputs.items()
        rows = [{key: array[i : i + 1] for key, array in inputs.items()} for i in range(len(expected))]
        alone = np.concatenate([session.run([name], row)[0] for row in rows])
        found.append(agreement.measure(expected, alone, classes=classes))
        if free:
            found.append(agreement.measure(expected, session.run([name], inputs)[0], classes=classes))
    return max(found, key=lambda each: (not each.holds, each.difference))
