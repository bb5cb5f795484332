"""Identifies the architecture of weights by the names and shapes of their tensors, without torch and without a number.

The result is certain, or it is a refusal that names the nearest architectures. It reads no file and constructs nothing.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from flambeau.bundle.storage import ImageConfig
from flambeau.checkpoints.report import TensorInfo
from flambeau.identify import choose, index, naming, nearest
from flambeau.identify.finding import Identified, Published
from flambeau.identify.index import REGISTRIES, Registry


def detect(
    tensors: Mapping[str, TensorInfo],
    *,
    wanted: str | None = None,
    args: Mapping[str, Any] = {},
    hidden_activation: str | None = None,
    timm: bool | None = None,
) -> Identified:
    """The architecture that these tensors fill completely, or the nearest misses.

    With `wanted`, a registered name such as `resnet50` or `timm/resnet50`, only that one is tried; `args` are arguments
    for its constructor. `hidden_activation` (relu, gelu, silu, tanh, sigmoid, none) is the activation between the
    linear layers of a replaced head. timm's architectures count if timm is installed, unless `timm` says otherwise.
    """
    shapes, made = naming.fold_parts({key: info.shape for key, info in tensors.items()})
    found = choose.find(shapes, wanted=wanted, args=args, activation=hidden_activation, registries=_registries(timm))
    if found.fit is None and (module := naming.unknown_parametrisation(shapes)):
        return msgspec.structs.replace(found, advice=nearest.parametrised(module))
    notes = [f"{next(iter(made))} is kept in parts, which are multiplied out"] if made else []
    return msgspec.structs.replace(found, notes=(*found.notes, *notes))


def published(sha256: str, *, architecture: str) -> Published | None:
    """The official weights of this architecture whose file has this sha256, or `None`."""
    for registry in REGISTRIES:
        facts = index.facts(registry)
        for digits, weights in facts.weights.items():
            if sha256.startswith(digits) and weights.architecture == architecture:
                return Published(architecture, weights.name, facts.pipelines[weights.pipeline])
    return None


def pipeline_for(registry: Registry, name: str) -> ImageConfig:
    """The image transform of an architecture, or the default recipe's if the index does not have the architecture.

    The recipe fits all of torchvision's models of its size. A model trained at another size takes the size from its
    library's metadata: at 224 its answers would be wrong, not just slightly different.
    """
    facts = index.facts(registry)
    found = facts.architectures.get(name)
    return facts.pipelines[found[1]] if found else ImageConfig()


def _registries(timm: bool | None) -> tuple[Registry, ...]:
    return tuple(
        registry for registry in REGISTRIES if registry != "timm" or (index.present("timm") if timm is None else timm)
    )
