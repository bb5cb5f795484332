"""Architectures by name: torchvision's classification models, EfficientNet-Lite, timm's, and the user's own code.

Constructs networks without weights, and fills them; reads no files. One of the three packages that import torch (with
`builder` and `engines.pytorch`).
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flambeau import usercode
from flambeau.architectures import torchvision_compat
from flambeau.architectures.registries import REGISTRIES
from flambeau.bundle.storage import Architecture, CodeReference
from flambeau.errors import SourceError

if TYPE_CHECKING:
    import torch
    from torch import nn

_COUNTER = "num_batches_tracked"
_SHOWN = 8  # keys of each kind in a report of differences


def find(name: str, *, args: Mapping[str, Any] | None = None) -> Architecture:
    """The architecture of that name. `timm/NAME` is timm's, where torchvision has one of the same name.

    Raises `SourceError` with the nearest names when there is none.
    """
    asked, _, plain = name.rpartition("/")
    known: list[str] = []
    for name_of_registry, registry in REGISTRIES.items():
        if asked in ("", name_of_registry):
            names = registry.names()
            if plain in names:
                return Architecture(registry=name_of_registry, name=plain, args=dict(args or {}))  # type: ignore[arg-type]
            known += names
    import difflib

    near = difflib.get_close_matches(plain, known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "write a torchvision model's name, or module:Class"
    raise SourceError(f"there is no architecture named {name!r}: {hint}")


def own_constructor(code: CodeReference, *, within: Path | None = None, allow_code: bool = False) -> Any:
    """The class or function of the user's own code. Raises `CodeNotAllowed` or `SourceError`."""
    torchvision_compat.stand_by()
    return usercode.load(code, within=within, allow_code=allow_code)


def create(
    architecture: Architecture,
    *,
    within: Path | None = None,
    allow_code: bool = False,
    constructor: Callable[..., Any] | None = None,
) -> "nn.Module":
    """Construct the network in evaluation mode, without its weights: `load_weights` fills them.

    The parameters of a registered architecture have shapes but no values. `within` is the bundle that own code belongs
    to, `constructor` what `own_constructor` found already. Raises `SourceError` when the constructor fails.
    """
    from torch import nn

    if constructor is None and architecture.code is not None:
        constructor = own_constructor(architecture.code, within=within, allow_code=allow_code)
    elif constructor is None:
        constructor = REGISTRIES[architecture.registry].constructor(architecture.name)
    try:
        network = _construct(architecture, constructor)
    except SourceError:
        raise
    except Exception as error:
        raise SourceError(
            f"{architecture.name} cannot be constructed: {type(error).__name__}: {error}: correct --arch-args"
        ) from error
    if not isinstance(network, nn.Module):
        raise SourceError(f"{architecture.name} makes a {type(network).__name__}, not a torch.nn.Module")
    return network.eval()


def _construct(architecture: Architecture, constructor: Callable[..., Any]) -> Any:
    from flambeau.architectures import heads
    from flambeau.architectures.meta_init import MetaInitError, meta_init, require_numbers

    def whole() -> Any:
        network = constructor(**architecture.args)
        if architecture.head is not None:
            heads.attach(network, architecture.head)
        return network

    if architecture.code is not None:  # own code may need real parameters
        return whole()
    try:
        with meta_init():
            network = whole()
        require_numbers(network)
    except (MetaInitError, NotImplementedError, RuntimeError):  # reading a meta tensor raises the latter two
        return whole()
    return network


def load_weights(network: "nn.Module", weights: Mapping[str, "torch.Tensor"], *, name: str, remedy: str = "") -> None:
    """Fill the network with exactly its own weights. Raises `SourceError` with the differences, and the remedy.

    The batch counters of batch norms may be missing, as in every file from before PyTorch 0.4.1, and be there for norms
    that are frozen, as torchvision's detectors have them: only training needs them. Weights of another precision are
    converted to the network's; others are used without copying, mapped or not.
    """
    expected = network.state_dict()
    missing = sorted(key for key in expected.keys() - weights.keys() if not key.endswith(_COUNTER))
    counters = {key.removesuffix("running_var") + _COUNTER for key in expected if key.endswith("running_var")}
    unexpected = sorted(weights.keys() - expected.keys() - counters)
    misshaped = [
        f"{key} is {tuple(weights[key].shape)} in the file and {tuple(expected[key].shape)} in {name}"
        for key in sorted(expected.keys() & weights.keys())
        if weights[key].shape != expected[key].shape
    ]
    problems = [
        f"{len(keys)} {what}: {', '.join(keys[:_SHOWN])}{', …' if len(keys) > _SHOWN else ''}"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshaped))
        if keys
    ]
    if problems:
        raise SourceError(f"the weights do not fit {name}: {'; '.join(problems)}" + (f": {remedy}" if remedy else ""))
    for key in expected.keys() & weights.keys():
        expected[key] = weights[key].to(expected[key].dtype)
    # The network's own dictionary carries the versions of its layers, which a plain one and safetensors lose.
    network.load_state_dict(expected, strict=True, assign=True)
    network.requires_grad_(False)
