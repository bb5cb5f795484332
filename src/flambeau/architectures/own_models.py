"""Flambeau's own registry: the EfficientNet-Lite family, and plain networks over numbers."""

from collections.abc import Callable

from torch import nn

from flambeau.architectures import efficientnet_lite, mlp


def names() -> list[str]:
    """Every architecture of it."""
    return [*efficientnet_lite.names(), mlp.NAME]


def constructor(name: str) -> Callable[..., nn.Module]:
    """The constructor of that name."""
    return mlp.construct if name == mlp.NAME else efficientnet_lite.constructor(name)
