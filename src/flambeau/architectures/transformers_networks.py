"""Networks of Hugging Face's transformers, made of the configuration beside their weights. Nothing is fetched.

Each is wrapped, so that it takes tensors and returns one: the logits of a classifier, or a vector for every token.
"""

import importlib.util
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

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
_SHOWN = 8


def constructor(name: str) -> Callable[..., nn.Module]:
    """What makes the network of that name, without weights, of the settings in its configuration."""

    def construct(**settings: Any) -> nn.Module:
        made, config = _class_of(name, settings)
        return _wrapped(made(config))

    return construct


def filled(name: str, settings: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> nn.Module:
    """The network with its weights, which transformers gives the names of its own version. Raises `SourceError`."""
    made, config = _class_of(name, settings)
    network, found = made.from_pretrained(
        None, config=config, state_dict=dict(weights), dtype=torch.float32, output_loading_info=True,
        local_files_only=True,
    )  # fmt: skip
    problems = [
        f"{len(found[key])} {what}: {', '.join(map(_key, sorted(found[key])[:_SHOWN]))}"
        for key, what in _PROBLEMS.items()
        if found[key]
    ]  # fmt: skip
    if problems or found.get("error_msgs"):
        raise SourceError(f"the weights do not fit {name}: {'; '.join(problems or found['error_msgs'])}")
    return _wrapped(network.eval()).requires_grad_(False).eval()


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


def _wrapped(network: Any) -> nn.Module:
    if network.main_input_name == "pixel_values":
        return _OverImages(network)
    return _Classifier(network) if type(network).__name__.endswith("Classification") else _Encoder(network)


class _OverImages(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixel_values: torch.Tensor) -> Any:
        return self.network(pixel_values=pixel_values, return_dict=True).logits


class _OverTexts(nn.Module):
    """Of one sentence: what kind of sentence a token belongs to is left to the network, for which it is the first."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network


class _Classifier(_OverTexts):
    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return self.network(input_ids=input_ids, attention_mask=attention_mask, return_dict=True).logits


class _Encoder(_OverTexts):
    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return self.network(input_ids=input_ids, attention_mask=attention_mask, return_dict=True).last_hidden_state
