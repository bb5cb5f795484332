"""Networks of Hugging Face's transformers, made of the configuration beside their weights. Nothing is fetched.

Each is wrapped, so that it takes tensors and returns one: the logits of a classifier, or the vector of a text.
"""

import importlib.util
import os
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from flambeau.architectures import torchvision_compat
from flambeau.errors import SourceError
from flambeau.system.machine import pip_install

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_FETCHING = ("auto_map", "quantization_config", "use_pretrained_backbone", "backbone", "use_timm_backbone")
"""Settings by which transformers would run or fetch what others wrote, or decode weights by other libraries."""
_PROBLEMS = {
    "missing_keys": "missing", "unexpected_keys": "unexpected", "mismatched_keys": "of another shape",
}  # fmt: skip
_COUNTS = re.compile(r"(layer|depth|block|stage)s?$")
"""Settings that say of how many parts a network is made: of more than there are weights it is not."""
_SHOWN = 8
_UNUSED = "pooler."
"""Weights that have no part in the vectors of tokens: files may have them or not."""

PooledBy = Literal["mean", "first"]


def constructor(name: str) -> Callable[..., nn.Module]:
    """What makes the network of that name, without weights, of what `config.json` says and how vectors are pooled."""

    def construct(*, config: Mapping[str, Any], pooling: PooledBy | None = None) -> nn.Module:
        made, settings = _class_of(name, config)
        return _wrapped(made(settings), pooling)

    return construct


def filled(
    name: str, config: Mapping[str, Any], weights: Mapping[str, torch.Tensor], *, pooling: PooledBy | None
) -> nn.Module:
    """The network with its weights, which transformers gives the names of its own version.

    `pooling`: how one vector is made of those of all tokens, where it has vectors. Raises `SourceError`.
    """
    for key, value in config.items():
        counts = value if isinstance(value, list) else [value]
        if _COUNTS.search(key) and any(type(count) is int and count > len(weights) for count in counts):
            raise SourceError(f"config.json says {key} {value}, and the file has {len(weights)} tensors: correct it")
    made, settings = _class_of(name, config)
    try:
        network, found = made.from_pretrained(
            None, config=settings, state_dict=dict(weights), dtype=torch.float32, output_loading_info=True,
            local_files_only=True,
        )  # fmt: skip
    except Exception as error:
        raise SourceError(f"the weights do not fit the {name} that config.json describes: {error}") from error
    keys = {what: sorted(map(_key, found[kind])) for kind, what in _PROBLEMS.items()}
    if pooling is not None:
        keys = {what: [key for key in some if not key.startswith(_UNUSED)] for what, some in keys.items()}
    problems = [f"{len(some)} {what}: {', '.join(some[:_SHOWN])}" for what, some in keys.items() if some]
    if problems or found.get("error_msgs"):
        raise SourceError(f"the weights do not fit {name}: {'; '.join(problems or found['error_msgs'])}")
    return _wrapped(network, pooling).requires_grad_(False).eval()


def _key(found: Any) -> str:
    return str(found[0] if isinstance(found, tuple) else found)


def _class_of(name: str, settings: Mapping[str, Any]) -> "tuple[Any, PreTrainedConfig]":
    """transformers' class and its configuration. Raises `SourceError` if it has none of that name."""
    if importlib.util.find_spec("transformers") is None:
        raise SourceError(f"{name} is a network of transformers, which is not installed: {pip_install('transformers')}")
    if more := [key for key in _FETCHING if settings.get(key)]:
        raise SourceError(
            f"config.json of {name} has {more[0]}, with which transformers runs or fetches more: remove it"
        )
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    torchvision_compat.declare_missing()
    import transformers

    made: Any = getattr(transformers, name, None)
    told = {key: value for key, value in settings.items() if not key.startswith("_") and key != "attn_implementation"}
    kind = told.pop("model_type")
    known = isinstance(made, type) and issubclass(made, transformers.PreTrainedModel)
    if not known:
        raise SourceError(
            f"transformers {transformers.__version__} has no {name}: install the version that it was trained with"
        )
    if getattr(made.config_class, "model_type", None) != kind:
        raise SourceError(f"config.json says model_type {kind}, and {name} is of another: correct it")
    try:
        # Eager: others may be fetched, and only this one is the same for every version and export.
        return made, made.config_class.from_dict({**told, "attn_implementation": "eager"})
    except Exception as error:
        raise SourceError(f"transformers makes no {name} of config.json: {error}") from error


def _wrapped(network: Any, pooling: PooledBy | None) -> nn.Module:
    if network.main_input_name == "pixel_values":
        return _OfImages(network)
    return _OfTexts(network) if pooling is None else _OfSentences(network, pooling)


class _OfImages(nn.Module):
    """Logits of images."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: torch.Tensor) -> Any:
        return self.network(pixel_values=pixel_values, return_dict=True).logits


class _OfTexts(nn.Module):
    """Logits of texts of one sentence: without being told, a network takes every token for one of the first."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return self.network(input_ids=input_ids, attention_mask=attention_mask, return_dict=True).logits


class _OfSentences(nn.Module):
    """One vector of a text, of those of its tokens: their mean, or that of the first."""

    def __init__(self, network: nn.Module, pooling: PooledBy) -> None:
        super().__init__()
        self.network = network
        self.pooling = pooling

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        found = self.network(input_ids=input_ids, attention_mask=attention_mask, return_dict=True).last_hidden_state
        if self.pooling == "first":
            return found[:, 0]
        counts = attention_mask.unsqueeze(-1).to(found.dtype)
        return (found * counts).sum(1) / counts.sum(1).clamp(min=1e-9)
