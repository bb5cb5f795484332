"""The packages that a build needs beyond those for serving, by kind of source; checked before the build begins."""

from flambeau.errors import SetupError
from flambeau.sources.request import BuildRequest
from flambeau.system.machine import pip_install

OLDEST_TORCH = (2, 10)
"""The oldest torch that may read weights files. With older ones a weights file can corrupt memory, even with
`weights_only=True` (CVE-2026-24747)."""


def require_torch() -> None:
    """Import torch. Raises `SetupError` if it is missing, or reads weights files unsafely (T-01).

    Every process that reads a weights file calls this first.
    """
    try:
        import torch
    except ImportError as error:
        raise SetupError(
            f"building a bundle of anything but an ONNX file or a Python model needs PyTorch ({error}): "
            f"{pip_install('torch')}, or build it where PyTorch is, with flambeau build, and serve that, which needs "
            "none"
        ) from None
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < OLDEST_TORCH:
        raise SetupError(
            f"torch {torch.__version__} reads weights files unsafely (CVE-2026-24747): pip install 'torch>=2.10'"
        )


def require(order: BuildRequest) -> None:
    """Import what building `order` needs. Raises `SetupError` where that is missing.

    A Python model needs nothing, because its code is packed and not run. An ONNX graph needs onnx, all else PyTorch.
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
