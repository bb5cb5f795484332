"""Describe the result of calling an allowed global, from its arguments alone.

Each may have only the arguments that `torch.save` writes. An allowed name is not enough: `bytearray(10**12)` names
nothing forbidden either.
"""

import contextlib
import re
from collections.abc import Callable
from typing import Any

from flambeau.checkpoints.allowlist import BESIDE, DTYPES, ITEM_SIZES, NAMESPACE, PATHS, UNHOLDABLE
from flambeau.checkpoints.pickle_stack import Mapping, Named, Namespace, PlainObject, Storage, Tensor, key
from flambeau.checkpoints.report import ScanError, TensorInfo, plain

_MOST_DIMENSIONS = 64
_LARGEST = 2**62
_FREE_EXPANSION = 2**20
"""A tensor may be larger than its storage (`expand`) up to this many bytes, because it is written out in full later."""
_DEVICE = re.compile(r"(cpu|cuda|mps|xpu|xla|meta)(:\d{1,3})?")
_NUMPY_CODE = re.compile(r"[?biufc](1|2|4|8|16)?")
_NUMPY_STATES = {(3, order, None, None, None, -1, -1, 0) for order in "<>|="}


def call(name: str, arguments: Any) -> Any:
    """A description of `name(*arguments)`. Raises `ScanError` for arguments that `torch.save` does not write."""
    if name in UNHOLDABLE:
        raise ScanError(
            f"holds {UNHOLDABLE[name]}, which cannot be kept in a bundle",
            "save dense tensors in its place, with dequantize(), to_dense() or cpu() before torch.save",
        )
    result = None
    with contextlib.suppress(TypeError):  # too few arguments, or too many
        if name in _CALLS and type(arguments) is tuple:
            result = _CALLS[name](*arguments)
    if result is None:
        raise ScanError(f"calls {name} in a way that torch.save does not write")
    return result


def build(target: Any, state: Any) -> None:
    """Check the state that `BUILD` would set on an allowed object. Raises `ScanError`."""
    if isinstance(target, Mapping) and type(state) is dict:  # `_metadata`, which every state_dict has
        fits = all(type(key) is str and not hasattr(Mapping, key) for key in state)
    elif isinstance(target, PlainObject) and target.name == "numpy.dtype" and type(state) is tuple:
        # any other state could give the dtype fields of its own, and numpy does not check them
        fits = all(type(part) in (int, str, type(None)) for part in state) and state in _NUMPY_STATES
    elif isinstance(target, Namespace) and type(state) is dict:
        fits = all(type(key) is str for key in state)
        target.state = state
    else:
        fits = False
    if not fits:
        raise ScanError("fills an object in a way that torch.save does not write (BUILD)")


def _ordered(members: Any = ()) -> Any:
    if type(members) is dict:
        return Mapping(members)
    if type(members) not in (list, tuple):
        return None
    result = Mapping()
    for pair in members:  # as Python 2 wrote them: a list of [key, value]
        if type(pair) not in (list, tuple) or len(pair) != 2 or type(pair[0]) not in (str, int, bytes):
            return None
        result[key(pair[0])] = pair[1]
    return result


def _counter(members: Any = None) -> Any:
    return Mapping() if members is None else Mapping(members) if type(members) is dict else None


def _size(dimensions: Any = ()) -> Any:
    if type(dimensions) not in (tuple, list) or len(dimensions) > _MOST_DIMENSIONS or not _whole(dimensions):
        return None
    return tuple(dimensions)


def _encode(text: Any, codec: Any = "latin1") -> Any:
    if type(text) is not str or codec not in ("latin1", "latin-1"):
        return None
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return None


def _bytearray(*arguments: Any) -> Any:
    contents = arguments[0] if len(arguments) == 1 else _encode(*arguments) if len(arguments) == 2 else b""
    return PlainObject("bytearray") if type(contents) is bytes else None


def _complex(real: Any, imaginary: Any = 0.0) -> Any:
    return PlainObject("complex") if type(real) is float and type(imaginary) is float else None


def _set(members: Any = ()) -> Any:
    if type(members) is not list or not all(type(member) in (str, int, float, bool, bytes) for member in members):
        return None
    return PlainObject("set", tuple(members))


def _device(kind: Any, index: Any = 0) -> Any:
    return PlainObject("torch.device") if type(kind) is str and _DEVICE.fullmatch(kind) and type(index) is int else None


def _tensor(storage: Any, offset: Any, size: Any, stride: Any) -> Any:
    return _view(storage, offset, size, stride, dtype=None, grad=False)


def _tensor_v2(storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, metadata: Any = None) -> Any:
    if metadata or hooks:
        return None
    return _view(storage, offset, size, stride, dtype=None, grad=grad)


def _tensor_v3(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, metadata: Any = None
) -> Any:
    if metadata or hooks or not isinstance(dtype, Named) or dtype.name not in DTYPES:
        return None
    return _view(storage, offset, size, stride, dtype=dtype.name.removeprefix("torch."), grad=grad)


def _parameter(data: Any, grad: Any, hooks: Any, state: Any = None) -> Any:
    fits = isinstance(data, Tensor) and not hooks and _may_want_grad(grad, data.info.dtype)
    return data if fits else None


def _from_type(function: Any, kind: Any, arguments: Any, state: Any) -> Any:
    tensors = {"torch.Tensor", "torch.nn.parameter.Parameter"}
    if not isinstance(function, Named) or not isinstance(kind, Named) or kind.name not in tensors:
        return None
    if not function.name.startswith("torch._utils._rebuild_"):
        return None
    return call(function.name, arguments)


def _numpy_dtype(code: Any, align: Any = False, copy: Any = False) -> Any:
    return PlainObject("numpy.dtype", (code,)) if type(code) is str and _NUMPY_CODE.fullmatch(code) else None


def _numpy_scalar(dtype: Any, contents: Any = b"") -> Any:
    right = isinstance(dtype, PlainObject) and dtype.name == "numpy.dtype" and type(contents) is bytes
    return PlainObject("numpy scalar") if right else None


def _namespace() -> Any:
    return Namespace()


def _path(*parts: Any) -> Any:
    return PlainObject("path") if all(type(part) is str for part in parts) else None


def _view(storage: Any, offset: Any, size: Any, stride: Any, *, dtype: str | None, grad: Any) -> Any:
    """A tensor over a storage. Raises `ScanError` when it extends beyond the storage."""
    if not isinstance(storage, Storage) or type(offset) is not int or not 0 <= offset < _LARGEST:
        return None
    if type(size) is not tuple or type(stride) is not tuple or len(size) != len(stride):
        return None
    if len(size) > _MOST_DIMENSIONS or not _whole(size) or not _whole(stride):
        return None
    dtype = dtype or storage.dtype
    if not _may_want_grad(grad, dtype):
        return None
    elements, last = 1, offset
    for count, step in zip(size, stride, strict=True):
        elements *= count
        last += (count - 1) * step
    taken = elements * ITEM_SIZES[dtype]
    if elements and (last + 1) * ITEM_SIZES[dtype] > storage.size:
        what = plain(f"a tensor of shape {list(size)} and dtype {dtype}")
        raise ScanError(f"declares {what} that reaches over the end of its storage, which has {storage.size:,} bytes")
    if taken > max(storage.size, _FREE_EXPANSION):
        what = plain(f"a tensor of shape {list(size)} and dtype {dtype}")
        raise ScanError(
            f"declares {what} over a storage of only {storage.size:,} bytes, so that it would grow when it is loaded",
            "save the tensor itself in place of an expanded view of it, with contiguous() before torch.save",
        )
    return Tensor(TensorInfo(dtype, size), taken)


def _whole(numbers: Any) -> bool:
    return all(type(number) is int and 0 <= number < _LARGEST for number in numbers)


def _may_want_grad(grad: Any, dtype: str) -> bool:
    return grad is False or (grad is True and ("float" in dtype or "complex" in dtype))


_CALLS: dict[str, Callable[..., Any]] = {
    "_codecs.encode": _encode,
    "builtins.bytearray": _bytearray,
    "builtins.complex": _complex,
    "builtins.set": _set,
    "collections.Counter": _counter,
    "collections.OrderedDict": _ordered,
    "torch.Size": _size,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch.device": _device,
    "numpy.dtype": _numpy_dtype,
    **{name: _numpy_scalar for name in BESIDE if name.endswith(".scalar")},
    NAMESPACE: _namespace,
    **dict.fromkeys(PATHS, _path),
}
