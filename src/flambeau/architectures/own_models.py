"""Flambeau's own registry: the EfficientNet-Lite family, and plain networks over numbers."""

from collections.abc import Callable

from torch import nn

from flambeau.architectures import efficientnet_lite, heads


def names() -> list[str]:
    """Every architecture of it."""
    return [*efficientnet_lite.names(), heads.NAME]


def constructor(name: str) -> Callable[..., nn.Module]:
    """The constructor of that name."""
    return heads.construct if name == heads.NAME else efficientnet_lite.constructor(name)
