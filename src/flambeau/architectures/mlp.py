"""Plain networks over numbers: linear layers, norms and activations, one after the other."""

from collections.abc import Sequence
from typing import Any

import msgspec
from torch import nn

from flambeau.architectures import heads
from flambeau.bundle import HeadLayer

NAME = "mlp"


def construct(layers: Sequence[dict[str, Any]]) -> nn.Sequential:
    """The network of these layers, each as `HeadLayer` has it. Rows (N, inputs), float32, to rows (N, outputs)."""
    return heads.sequential(msgspec.convert(layers, list[HeadLayer]))
