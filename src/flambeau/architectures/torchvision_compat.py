"""A fix for a torchvision whose compiled operators do not match the installed torch.

torchvision's wheels on PyPI are built against CUDA. With a CPU build of torch the compiled part does not load, and
`import torchvision` fails with "operator torchvision::nms does not exist": torchvision registers shape functions for
operators that nothing declared. Declaring them first lets models and transforms import and run. Two of them,
non-maximum suppression and RoIAlign, have a replacement in plain PyTorch (`box_ops`), so that detectors run too.

`declare_missing` applies the fix before an import of our own. `stand_by` applies it when other code imports
torchvision, and costs nothing if none does.
"""

import importlib.util
import sys
import threading
from collections.abc import Sequence
from functools import cache
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_ROI_ALIGN = (
    "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
    "int sampling_ratio, bool aligned) -> Tensor"
)
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    _ROI_ALIGN,
)
_PACKAGE = "torchvision"
_STANDING_IN = ("torchvision.ops.boxes", "torchvision.ops.roi_align")
"""The modules that check for the compiled part before they call an operator that has a replacement."""

_LOCK = threading.Lock()  # replicas in threads may get here at once, and a namespace can be declared only once


def declare_missing() -> None:
    """Declare torchvision's operators if its compiled part cannot do so itself. A second call does nothing."""
    stand_by()
    with _LOCK:
        _declare_once()


def stand_by() -> None:
    """Declare the operators when any code imports torchvision. A second call does nothing."""
    if _PACKAGE not in sys.modules and not any(isinstance(finder, _Remedy) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Remedy())


@cache
def _declare_once() -> "torch.library.Library | None":
    """The library object, which the cache keeps alive, and with it the declarations."""
    import torch

    from flambeau.architectures import box_ops

    if _compiled_part_loads():
        return None
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for schema in _SCHEMAS:
        library.define(schema)  # type: ignore[no-untyped-call]
    for name, function in (("nms", box_ops.nms), ("roi_align", box_ops.roi_align)):
        library.impl(name, function, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    return library


def _compiled_part_loads() -> bool:
    import torch

    spec = importlib.util.find_spec(_PACKAGE)  # finds the package without importing it
    if spec is None or not spec.submodule_search_locations:
        return True  # no torchvision: the import that follows reports it better
    folder = Path(spec.submodule_search_locations[0])
    for library in (*folder.glob("_C.*"), *folder.glob("_C_stable.*")):
        try:
            torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
        except OSError:
            continue
        if hasattr(torch.ops.torchvision, "nms"):
            return True
    return False


class _Remedy(MetaPathFinder):
    """Finds torchvision, and those of its modules that are patched, and wraps their loaders."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _PACKAGE and name not in _STANDING_IN:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Treated(spec.loader)
        return spec


class _Treated(Loader):
    """A module's loader that applies the fix: before torchvision itself runs, and after a module of operators has."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__name__ == _PACKAGE:
            with _LOCK:
                _declare_once()
        self._loader.exec_module(module)
        if module.__name__ in _STANDING_IN and _declare_once() is not None:
            vars(module).update(_has_ops=_has_ops, _assert_has_ops=_assert_has_ops)

    def __getattr__(self, name: str) -> object:
        return getattr(self._loader, name)  # importlib.resources and others use more of a loader


# TorchScript compiles these two where it compiles a detector's own functions, so they cannot be lambdas.


def _has_ops() -> bool:
    return True


def _assert_has_ops() -> None:
    pass
