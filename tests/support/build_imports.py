"""What commands and the build of a network import and work out on their way; for the process that `warm` forks from.

The exporter works out the same tables for each network: what ONNX has for which operator, and what has to be taken
apart. Here they are made once, by its own functions, and whoever is forked finds them made.
"""

import copy
import sys
from collections.abc import Callable
from typing import Any

import onnxruntime  # noqa: F401
import onnxscript  # noqa: F401
import torch._dynamo
import torch.onnx._internal.exporter._core
from torch import nn
from torch.onnx._internal.exporter import _decomp, _registration

import flambeau.__main__
import flambeau.builder.sandbox.__main__
import flambeau.builder.sandbox.checkpoint
import flambeau.builder.sandbox.safetensors_writer
import flambeau.builder.steps
import flambeau.checkpoints
import flambeau.cli.predict
import flambeau.cli.serve
import flambeau.cli.source
import flambeau.http.server  # noqa: F401
from flambeau.architectures import torchvision_compat

torchvision_compat.declare_missing()

import torchvision  # noqa: E402, F401  # which needs what was declared

PATH = (*sys.path,)


def _remember(owner: Any, name: str) -> None:
    """From now on the function computes once for the same arguments. Each caller gets a copy, which it may change."""
    compute: Callable[..., Any] = getattr(owner, name)
    known: list[tuple[object, Any]] = []

    def remembering(*arguments: Any, **options: Any) -> Any:
        asked = (arguments, options)
        for other, made in known:
            if other == asked:
                return copy.copy(made)
        made = compute(*arguments, **options)
        known.append((asked, copy.copy(made)))
        return made

    setattr(owner, name, staticmethod(remembering) if isinstance(owner, type) else remembering)


def _export() -> None:
    """What is imported and worked out only when a network is exported."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)).eval()
    rows = {0: torch.export.Dim.DYNAMIC}
    torch.onnx.export(network, (torch.zeros(2, 3, 4, 4),), dynamo=True, dynamic_shapes=(rows,), verbose=False)


torch.set_num_threads(1)  # a process that has others cannot be forked
_remember(_registration.ONNXRegistry, "from_torchlib")
_remember(_decomp, "create_onnx_friendly_decomposition_table")
_export()
