"""The globals that a pickle of weights may name. What stands here decides; nothing else does (T-03).

They are the ones of `torch.load(weights_only=True)` that `torch.save` writes for plain tensors, and what training
scripts keep beside the weights: numpy's scalars as their best accuracy, the arguments of the command line, and paths.
What each makes of its arguments is `calls`'s.
"""

import importlib
from typing import Any

ITEM_SIZES = {
    "bool": 1, "uint8": 1, "int8": 1, "uint16": 2, "int16": 2, "uint32": 4, "int32": 4, "uint64": 8, "int64": 8,
    "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8, "complex64": 8, "complex128": 16,
    "float8_e4m3fn": 1, "float8_e4m3fnuz": 1, "float8_e5m2": 1, "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1,
}  # fmt: skip
"""Bytes per element, by torch's name of the dtype."""

STORAGES = {
    f"{module}.{name}Storage": dtype
    for module in ("torch", "torch.cuda")
    for name, dtype in {
        "Bool": "bool", "Byte": "uint8", "Char": "int8", "Short": "int16", "Int": "int32", "Long": "int64",
        "Half": "float16", "BFloat16": "bfloat16", "Float": "float32", "Double": "float64",
        "ComplexFloat": "complex64", "ComplexDouble": "complex128",
    }.items()
} | {"torch.storage.UntypedStorage": "uint8"}  # fmt: skip
"""The dtype of what lies in a storage, by the name of its class."""

DTYPES = {f"torch.{name}" for name in ITEM_SIZES}

CALLABLE = {
    "_codecs.encode",
    "builtins.bytearray",
    "builtins.complex",
    "builtins.set",
    "collections.Counter",
    "collections.OrderedDict",
    "torch.Size",
    "torch._tensor._rebuild_from_type_v2",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
    "torch.device",
}

NAMED_ONLY = {"torch.Tensor", "torch.nn.parameter.Parameter", "torch.storage.TypedStorage"}
"""Classes that may be spoken of, but that nothing may be made of by calling them: `torch.Tensor(10**12)` allocates."""

PATHS = {
    f"{module}.{kind}": f"pathlib.Pure{kind.removeprefix('Pure')}"
    for module in ("pathlib", "pathlib._local")  # where Python 3.13 has them
    for kind in ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")
}
"""Paths, as files name them, with what they become here: names alone, which can touch no file, on any system."""

NAMESPACE = "argparse.Namespace"
"""The arguments of a training script. Attributes with values, and no code of its own."""

BESIDE = {
    "numpy.core.multiarray.scalar": "numpy._core.multiarray.scalar",
    "numpy._core.multiarray.scalar": "numpy._core.multiarray.scalar",
    "numpy.dtype": "numpy.dtype",
    NAMESPACE: NAMESPACE,
    **PATHS,
}
"""The globals that torch does not know by itself, as files name them, with where they lie here."""

_NUMPY_DTYPES = (
    "BoolDType", "Int8DType", "UInt8DType", "Int16DType", "UInt16DType", "Int32DType", "UInt32DType", "Int64DType",
    "UInt64DType", "Float16DType", "Float32DType", "Float64DType", "Complex64DType", "Complex128DType",
)  # fmt: skip

ALLOWED = frozenset(CALLABLE | NAMED_ONLY | DTYPES | set(STORAGES) | set(BESIDE))

UNHOLDABLE = {
    "torch._utils._rebuild_meta_tensor_no_storage": "a tensor without contents, of the device meta",
    "torch._utils._rebuild_nested_tensor": "a nested tensor",
    "torch._utils._rebuild_qtensor": "a quantised tensor",
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils._rebuild_wrapper_subclass": "a tensor of a subclass that wraps others",
    "torch._utils._rebuild_device_tensor_from_numpy": "a tensor of a device that torch does not store",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": "a tensor of a device that torch does not store",
}
"""What torch would read safely as well, and a bundle cannot hold."""


def permitted_globals() -> list[tuple[Any, str]]:
    """The objects of `BESIDE` with their names, as `torch.serialization.safe_globals` takes them.

    torch asks for the classes of dtypes too, though no file names them: it looks at the type of what it fills.
    """
    found = [(_resolve(place), name) for name, place in BESIDE.items()]
    return found + [(_resolve(f"numpy.dtypes.{name}"), f"numpy.dtypes.{name}") for name in _NUMPY_DTYPES]


def _resolve(place: str) -> Any:
    module, _, name = place.rpartition(".")
    return getattr(importlib.import_module(module), name)
