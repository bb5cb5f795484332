"""Construct networks without values, which saves the time and the memory of random initialisation.

Parameters move to torch's meta device as soon as a module registers them, so initialising them only works on shapes.
Buffers stay real: constructors compute with them, and weights files do not hold all of them.
`architectures.load_weights` fills in the values and leaves no parameter without. Knows no architecture.

A few constructors look at the device of their own parameters and put other tensors there, or copy from there. Such a
network cannot be made this way: torch raises `NotImplementedError` or `RuntimeError`, or `require_numbers` finds it.
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
    """Skips in-place initialisation of meta tensors, for which torch would still work out shapes."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _FILLS and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


class MetaInitError(Exception):
    """The network has tensors without values that `load_weights` would not fill."""


def require_numbers(network: nn.Module) -> None:
    """Raise `MetaInitError` unless all tensors except the parameters are real."""
    for path, module in network.named_modules():
        others = {**module._buffers, **{name: value for name, value in vars(module).items() if name[0] != "_"}}
        for name, value in others.items():
            if isinstance(value, torch.Tensor) and value.is_meta:
                raise MetaInitError(f"{path}.{name}")


_thread = threading.local()  # replicas are constructed in parallel, and only those inside `meta_init` are meta


def _empty(*registered: Any) -> nn.Parameter | None:
    """The registration hook: the same parameter on the meta device, or `None` to leave it as it is."""
    parameter = registered[-1]  # of (module, name, parameter)
    if not getattr(_thread, "meta", False) or parameter is None or parameter.is_meta:
        return None
    shape = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
    return nn.Parameter(shape, requires_grad=parameter.requires_grad)


# Registered once and never removed: torch iterates over its hooks in every thread, and they must not change meanwhile.
register_module_parameter_registration_hook(_empty)  # type: ignore[arg-type]  # torch declares that it returns nothing


@contextlib.contextmanager
def meta_init() -> Iterator[None]:
    """Modules that this thread constructs inside the block get parameters on the meta device."""
    _thread.meta = True
    try:
        with _Idle():
            yield
    finally:
        _thread.meta = False
