"""The arguments for the constructor of a user's own class: those of `--arch-args`, and those that the file states.

Example: `self.activation = "gelu"` leaves no trace in the weights. Where the checkpoint says `activation: gelu` and the
class would be made with its default, `relu`, the network would load without a fault and compute something else.
"""

import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

from flambeau.builder.filled import Tell
from flambeau.checkpoints.stated import LIGHTNING, LIGHTNING_NAME
from flambeau.errors import SourceError

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_LOADS_ITSELF = "load_from_checkpoint"
"""The method of a LightningModule that gives the class the arguments in its checkpoint."""


def of_class(
    constructor: Callable[..., Any],
    given: Mapping[str, Any],
    stated: Mapping[str, Mapping[str, Any]],
    *,
    name: str,
    tell: Tell,
) -> dict[str, Any]:
    """The arguments to make the class with. `given` are those of `--arch-args`, `stated` those of the file.

    A LightningModule is made with its own `hyper_parameters`, as Lightning makes it. Raises `SourceError` where any
    other class would be made with other arguments than the file states, for they may mean something else there.
    """
    try:
        parameters = inspect.signature(constructor).parameters
    except (TypeError, ValueError):  # it is not Python's own
        return dict(given)
    named = {key: each.default for key, each in parameters.items() if each.kind in _NAMED}
    if LIGHTNING in stated and hasattr(constructor, _LOADS_ITSELF):
        every = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values())
        return _of_lightning(named, given, stated, every=every, name=name, tell=tell)
    differing: dict[str, Any] = {}
    where: dict[str, str] = {}
    for key, members in stated.items():
        for argument, value in members.items():
            if argument in named and argument not in (*given, *differing) and _differs(named[argument], value):
                differing[argument], where[argument] = value, key
    if not differing:
        return dict(given)
    [first, *_] = differing
    within = f", under {where[first]}" if where[first] else ""
    default = named[first]
    otherwise = "without a default" if default is inspect.Parameter.empty else f"which is {_shown(default)} otherwise"
    args = json.dumps({**given, **differing})
    raise SourceError(
        f"the file says {first}: {_shown(differing[first])}{within}, and {name} takes an argument {first}, "
        f"{otherwise}: say --arch-args '{args}', or with other values if the file means something else"
    )


def names(constructor: Callable[..., Any]) -> list[str]:
    """The arguments that can be named, in order; empty where they are unknown."""
    try:
        parameters = inspect.signature(constructor).parameters
    except (TypeError, ValueError):  # it is not Python's own
        return []
    return [key for key, each in parameters.items() if each.kind in _NAMED]


def _of_lightning(
    named: Mapping[str, Any],
    given: Mapping[str, Any],
    stated: Mapping[str, Mapping[str, Any]],
    *,
    every: bool,
    name: str,
    tell: Tell,
) -> dict[str, Any]:
    """What `load_from_checkpoint` would give it; what the user says goes before."""
    kept: dict[str, Any] = dict(stated[LIGHTNING])
    together = stated.get("", {}).get(LIGHTNING_NAME)
    if isinstance(together, str) and together in named:
        kept = {together: kept}
    used = {key: value for key, value in kept.items() if (every or key in named) and key not in given}
    if used:
        shown = ", ".join(f"{key}={_shown(value)}" for key, value in used.items())
        tell(f"{name} is made with the arguments in the file, as Lightning makes it: {shown}; --arch-args says others")
    return {**used, **given}


def _differs(default: Any, stated: Any) -> bool:
    """Whether the constructor would get another value than the file states, of a kind that it takes."""
    if default is inspect.Parameter.empty:
        return True
    default, stated = _listed(default), _listed(stated)
    if default is not None and stated is not None and _kind(default) != _kind(stated):
        return False  # such as the names of the classes, where their number is wanted
    return bool(default != stated)


def _kind(value: Any) -> type:
    return float if type(value) is int else type(value)


def _listed(value: Any) -> Any:
    """The value with lists for tuples."""
    return [_listed(each) for each in value] if isinstance(value, list | tuple) else value


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:59]}…"
