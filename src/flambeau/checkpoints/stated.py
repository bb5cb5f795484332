"""The arguments with which a network was made, as far as its checkpoint states them beside the weights.

Example: Lightning keeps `hyper_parameters`, what the module's constructor was given. Other scripts keep a `config` or
their arguments, or write `hidden=64` beside the weights. Weights do not show the ones that change no shape, such as the
name of an activation.
"""

from collections.abc import Mapping
from typing import Any

from flambeau.checkpoints.pickle_stack import Foreign, Namespace
from flambeau.checkpoints.report import ScanBudget, plain

LIGHTNING = "hyper_parameters"
"""The key under which Lightning keeps what the constructor was given."""
LIGHTNING_NAME = "hparams_name"
"""The key of the one argument that was given all of them, if there is one."""

_KEYS = (
    LIGHTNING, "hyperparameters", "hparams", "model_args", "model_kwargs", "model_config", "net_args", "arch_args",
    "kwargs", "config", "cfg", "args", "opt",
)  # fmt: skip
_NETWORKS = ("arch", "architecture", "model_name", "model", "backbone", "encoder", "network", "net")
_MOST = 500
_DEEPEST = 4
_LONGEST = 200
_LARGEST = 2**63


def arguments(value: Any, budget: ScanBudget) -> dict[str, dict[str, Any]]:
    """What could be given to a constructor, by the key under which the file has it; "" is the file itself.

    Only what JSON could say counts: a tensor or an object is left out.
    """
    if not isinstance(value, dict):
        return {}
    found = {key: _plain_members(value.get(key), budget) for key in _KEYS}
    found[""] = _plain_members({name: each for name, each in value.items() if name not in _KEYS}, budget)
    return {key: members for key, members in found.items() if members}


def networks(found: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """The names of networks in what `arguments` found, such as `arch: resnet50` of PyTorch's and timm's scripts."""
    named = (members.get(key) for members in found.values() for key in _NETWORKS)
    return tuple(dict.fromkeys(name for name in named if isinstance(name, str)))


def _plain_members(value: Any, budget: ScanBudget) -> dict[str, Any]:
    if isinstance(value, Namespace):
        value = value.state
    elif isinstance(value, Foreign):
        value = value.items
    if not isinstance(value, dict):
        return {}
    budget.charge_for(value)
    members = list(value.items())[:_MOST]
    return {name: each for name, each in members if _is_text(name) and _is_plain(each, budget, _DEEPEST)}


def _is_text(value: Any) -> bool:
    return type(value) is str and plain(value) == value


def _is_plain(value: Any, budget: ScanBudget, depth: int) -> bool:
    """Whether JSON could say it. What is too long for an argument does not count either."""
    if value is None or type(value) is bool or _is_text(value):
        return True
    if type(value) in (int, float):
        return bool(abs(value) < _LARGEST)  # neither infinite nor NaN
    if not isinstance(value, dict | list | tuple) or not depth or len(value) > _LONGEST:
        return False
    budget.charge_for(value)
    if isinstance(value, dict):
        return all(_is_text(key) and _is_plain(each, budget, depth - 1) for key, each in value.items())
    return all(_is_plain(each, budget, depth - 1) for each in value)
