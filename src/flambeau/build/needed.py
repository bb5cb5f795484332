"""The packages that a build needs beside those of serving, by what it is of: asked before it begins."""

from flambeau.build.torch_version import require_torch
from flambeau.errors import SetupError
from flambeau.extras import pip_install
from flambeau.orders import BuildOrder


def require(order: BuildOrder) -> None:
    """Import what the build of the order needs. Raises `SetupError` where that is missing.

    A Python model needs nothing, for its code is packed and not run. An ONNX graph needs onnx, and all else PyTorch.
    """
    if order.kind == "onnx":
        _require_onnx()
    elif order.kind != "python":
        require_torch()


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401  # the steps of the build import it themselves
    except ImportError as error:
        raise SetupError(
            f"building a bundle of an ONNX file needs the package onnx ({error}): {pip_install('onnx')}, or build it "
            "where that is, with flambeau build, and serve that, which needs none"
        ) from None
