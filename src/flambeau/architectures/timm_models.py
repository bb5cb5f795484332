"""timm's models, by name, where timm is installed (the extra `timm`)."""

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from flambeau.architectures import torchvision_compat
from flambeau.errors import SourceError
from flambeau.system.machine import pip_install

if TYPE_CHECKING:
    from torch import nn


def names() -> list[str]:
    """Every model of the installed timm; none where it is not installed."""
    if importlib.util.find_spec("timm") is None:
        return []
    torchvision_compat.declare_missing()  # timm imports torchvision
    import timm

    return list(timm.list_models())


def constructor(name: str) -> "Callable[..., nn.Module]":
    """The constructor of that name, which takes `num_classes`. It is given no weights, and fetches none."""
    if importlib.util.find_spec("timm") is None:
        raise SourceError(f"{name} is an architecture of timm, which is not installed: {pip_install('timm')}")
    torchvision_compat.declare_missing()
    import timm

    return partial(timm.create_model, name, pretrained=False)
