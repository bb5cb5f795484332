"""Messages about a network outside the registries whose input is not one float tensor.

Most such networks cannot be served as they are, but a Python model around them can: so the messages name that remedy.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from flambeau.architectures import single_output
from flambeau.errors import SourceError
from flambeau.identify import unsupported

_NAMED = 6
_PLAIN = ("int", "float", "bool", "str", "number")
"""Types of a script's arguments that no tensor can take the place of."""


def arguments(network: nn.Module, name: str) -> list[str]:
    """The names of the tensors that `forward` takes; empty where they are unknown. Raises `SourceError` where it
    takes none, or something else besides."""
    if other := _no_tensor(network):
        raise SourceError(f"{name} takes {other}, and tensors are served: {unsupported.AROUND}")
    needed = _arguments(network)
    if needed == []:
        raise SourceError(f"{name} takes no input, and an item is a row of one at least: {unsupported.AROUND}")
    return needed or []


def optional(network: nn.Module) -> list[str]:
    """The names of what `forward` takes and does without, such as a mask; the only input is not among them."""
    if isinstance(network, torch.jit.ScriptModule):
        return []
    try:
        parameters = list(inspect.signature(network.forward).parameters.values())
    except (TypeError, ValueError):
        return []
    found = [each.name for each in parameters if each.default is None]
    return found if any(each.default is each.empty for each in parameters) else found[1:]


def shapes_wanted(name: str, needed: list[str]) -> SourceError:
    """The error for a network with several inputs of unknown shape."""
    example = ",".join(f"{each}={place + 3}" for place, each in enumerate(needed[:_NAMED]))
    return SourceError(
        f"{name} takes {len(needed)} inputs ({', '.join(needed[:_NAMED])}): say the shape of one row of each "
        f"with --input-shape, such as --input-shape {example}, or {unsupported.AROUND}"
    )


def require_decimals(network: nn.Module, name: str, *shapes: tuple[int, ...]) -> None:
    """Raise `SourceError` for a network that looks up its input in an embedding table, tried with rows of these shapes.

    Other errors are left to the code that computes the network next.
    """
    try:
        with torch.inference_mode():
            network(*(torch.zeros(1, *shape) for shape in shapes))
    except (TypeError, RuntimeError) as error:
        if "indices" in str(error) and any(
            isinstance(module, nn.Embedding | nn.EmbeddingBag) for module in network.modules()
        ):
            raise SourceError(
                f"{name} looks its inputs up in a table of vectors, so it takes whole numbers such as token ids: "
                "add --input-dtype int64"
            ) from None
        return
    except Exception:  # the next computation reports why
        return


def computes(network: nn.Module, rows: Sequence[torch.Tensor]) -> bool:
    """Whether the network takes these rows, one of each input."""
    try:
        with torch.inference_mode():
            network(*rows)
    except Exception:  # raising is the answer
        return False
    return True


def answers(network: nn.Module, rows: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The tensors of decimal numbers that it returns for these rows; empty where it raises, or returns none."""
    try:
        with torch.inference_mode():
            found = single_output.parts(network(*rows)).values()
    except Exception:  # raising is the answer
        return []
    return [each for each in found if each.is_floating_point()]


def of(network: nn.Module, shape: tuple[int, ...]) -> Any:
    """What the network returns for one row of zeros of that shape; `None` where it raises."""
    try:
        with torch.inference_mode():
            return network(torch.zeros(1, *shape))
    except Exception:  # raising is the answer
        return None


def _arguments(network: nn.Module) -> list[str] | None:
    """The arguments that `forward` needs, or `None` where they are unknown."""
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


def _no_tensor(network: nn.Module) -> str:
    """An argument that `forward` needs and that is no tensor, in words, as its script says; empty if there is none."""
    if not isinstance(network, torch.jit.ScriptModule):
        return ""
    schema = network.forward.schema  # type: ignore[attr-defined]
    needed = (each for each in schema.arguments[1:] if not each.has_default_value())
    return next((f"{each.name} as {each.type}" for each in needed if str(each.type) in _PLAIN), "")
