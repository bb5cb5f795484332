"""What a network of unknown making takes, in words, where that is not one tensor of decimal numbers.

Such a network is not served by itself, and a Python model around it serves it at once: so every sentence here names
that way.
"""

import inspect
from typing import Any

import torch
from torch import nn

from flambeau.errors import SourceError
from flambeau.identify import unsupported

_NAMED = 6


def require_one_input(network: nn.Module, name: str) -> None:
    """Raise `SourceError` for a network whose `forward` does not take one argument."""
    needed = _arguments(network)
    if needed is None or len(needed) == 1:
        return
    taken = f"{len(needed)} inputs ({', '.join(needed[:_NAMED])})" if needed else "no input"
    raise SourceError(f"{name} takes {taken}, and one tensor in is served: {unsupported.AROUND}")


def require_decimals(network: nn.Module, name: str, shape: tuple[int, ...]) -> None:
    """Raise `SourceError` for a network that looks a row of that shape up in a table of vectors.

    What else it cannot compute is not judged here.
    """
    try:
        with torch.inference_mode():
            network(torch.zeros(1, *shape))
    except (TypeError, RuntimeError) as error:
        if "indices" in str(error) and any(
            isinstance(module, nn.Embedding | nn.EmbeddingBag) for module in _all(network)
        ):
            raise SourceError(
                f"{name} looks its inputs up in a table of vectors, so it takes whole numbers such as token ids, and "
                f"only decimal numbers are served: {unsupported.AROUND}"
            ) from None
        return
    except Exception:  # whoever computes it next says why
        return


def of(network: nn.Module, shape: tuple[int, ...]) -> Any:
    """What the network answers to a row of zeros of that shape; `None` where it raises."""
    try:
        with torch.inference_mode():
            return network(torch.zeros(1, *shape))
    except Exception:  # that it raises is the answer
        return None


def _all(network: nn.Module) -> list[nn.Module]:
    return list(network.modules())


def _arguments(network: nn.Module) -> list[str] | None:
    """The arguments that `forward` needs, or `None` where that cannot be told."""
    if isinstance(network, torch.jit.ScriptModule):
        schema = network.forward.schema  # type: ignore[attr-defined]
        return [each.name for each in schema.arguments[1:] if not each.has_default_value()]
    try:
        parameters = inspect.signature(network.forward).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD) for each in parameters):
        return None
    needed = [each.name for each in parameters if each.default is each.empty]
    given = [each.name for each in parameters if each.kind is not each.KEYWORD_ONLY]
    return needed if needed else given[:1]  # an only argument with a default is still the input
