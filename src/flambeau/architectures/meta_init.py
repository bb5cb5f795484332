"""Networks without numbers: constructing one costs neither the time nor the memory of its random start.

Parameters go to torch's meta device the moment a module registers them, so whatever initialises them afterwards works
on shapes alone. Buffers stay real: constructors compute with them, and not all of them are kept in weights files. The
numbers come with `architectures.load_weights`, which leaves no parameter without them. It knows no architecture.

A few constructors look at the device of their own parameters and put other tensors there, or copy from there: such a
network cannot be made like this, and is `MetaInitError`.
"""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

_FILLS: frozenset[object] = frozenset(
    getattr(Tensor, name) for name in ("uniform_", "normal_", "erfinv_", "mul_", "add_", "clamp_", "fill_", "zero_")
)


class _Idle(TorchFunctionMode):
    """Filling a tensor that has no numbers makes torch work out shapes; here it does nothing at once."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _FILLS and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


class MetaInitError(Exception):
    """The network has tensors without numbers that filling would not give it."""


def require_numbers(network: nn.Module) -> None:
    """Raise `MetaInitError` unless everything but the parameters is real."""
    for path, module in network.named_modules():
        others = {**module._buffers, **{name: value for name, value in vars(module).items() if name[0] != "_"}}
        for name, value in others.items():
            if isinstance(value, torch.Tensor) and value.is_meta:
                raise MetaInitError(f"{path}.{name}")


_thread = threading.local()  # replicas are made side by side, and only those within a block of their own are meta


def _empty(*registered: Any) -> nn.Parameter | None:
    """The same parameter without numbers; `None` leaves it as it is."""
    parameter = registered[-1]  # of (module, name, parameter)
    if not getattr(_thread, "meta", False) or parameter is None or parameter.is_meta:
        return None
    shape = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
    return nn.Parameter(shape, requires_grad=parameter.requires_grad)


# Once and for good: torch iterates over its hooks in every thread, and none may come or go meanwhile.
register_module_parameter_registration_hook(_empty)  # type: ignore[arg-type]  # torch declares that it returns nothing


@contextlib.contextmanager
def meta_init() -> Iterator[None]:
    """Modules constructed by this thread within the block get parameters on the meta device."""
    _thread.meta = True
    try:
        with _Idle():
            yield
    finally:
        _thread.meta = False
