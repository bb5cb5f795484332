"""A filled network to an ONNX graph, and the graph's answers held against eager PyTorch's."""

from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import nn

from flambeau import agreement
from flambeau.agreement import Agreement
from flambeau.types import Tensors, TensorSpec

_ONE_FILE_LIMIT = 1_500_000_000  # bytes of weights; protobuf ends at 2 GiB
_SEED = 20120930  # probes are the same whenever the same bundle is built


def probe_inputs(spec: TensorSpec, *, images: bool) -> Tensors:
    """Sample inputs. For images, shape (2, 3, size, size): soft blobs like a photograph's, and noise; else 8 rows."""
    generator = torch.Generator().manual_seed(_SEED)
    if not images:
        return {spec.name: torch.randn((8, *spec.shape), generator=generator).to(getattr(torch, spec.dtype)).numpy()}
    size = spec.shape[-1]
    coarse = torch.randn((1, 3, 8, 8), generator=generator) * 1.5
    blobs = nn.functional.interpolate(coarse, size=(size, size), mode="bicubic")
    noise = torch.randn((1, 3, size, size), generator=generator)
    return {spec.name: torch.cat([blobs, noise]).numpy()}


def export(network: nn.Module, sample: torch.Tensor, file: Path, *, input_name: str, output_name: str) -> None:
    """Write the ONNX graph, with a free number of rows. Raises whatever torch's exporter raises."""
    weights = sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
    program = torch.onnx.export(
        network,
        (sample,),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
        input_names=[input_name],
        output_names=[output_name],
        verbose=False,
    )
    assert program is not None  # a path was not given, so the program is returned
    program.save(file, external_data=weights > _ONE_FILE_LIMIT)


def check(file: Path, inputs: Tensors, eager: Tensors, *, classes: bool) -> Agreement:
    """Run the exported graph over the probes, together and one by one, and return the worse agreement."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    [(name, expected)] = eager.items()
    [together] = session.run([name], inputs)
    alone = np.concatenate(
        [session.run([name], {key: rows[i : i + 1] for key, rows in inputs.items()})[0] for i in range(len(expected))]
    )
    found = [agreement.measure(expected, actual, classes=classes) for actual in (together, alone)]
    return max(found, key=lambda each: (not each.holds, each.difference))
