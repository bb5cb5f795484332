"""The remedy for a torchvision whose compiled operators do not match the installed torch.

torchvision's wheels on PyPI are built against CUDA. Beside a CPU build of torch the compiled part does not load, and
then `import torchvision` stops with "operator torchvision::nms does not exist": torchvision registers shape functions
for operators that nothing declared. Declaring their schemas first lets models and transforms import and run. The
operators themselves (non-maximum suppression for detection models) stay unusable, and classification needs none.
"""

import importlib.util
import threading
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


_LOCK = threading.Lock()  # replicas in threads come here side by side, and a namespace can be declared once


def declare_missing() -> None:
    """Declare torchvision's operators if its compiled part cannot do so itself. A second call does nothing."""
    with _LOCK:
        _declare_once()


@cache
def _declare_once() -> "torch.library.Library | None":
    """The library object: the cache keeps it, and with it the declarations."""
    import torch

    if _compiled_part_loads():
        return None
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for schema in _SCHEMAS:
        library.define(schema)  # type: ignore[no-untyped-call]
    return library


def _compiled_part_loads() -> bool:
    import torch

    spec = importlib.util.find_spec("torchvision")  # finds the package without importing it
    if spec is None or not spec.submodule_search_locations:
        return True  # no torchvision: the import that follows says so better
    folder = Path(spec.submodule_search_locations[0])
    for library in (*folder.glob("_C.*"), *folder.glob("_C_stable.*")):
        try:
            torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
        except OSError:
            continue
        if hasattr(torch.ops.torchvision, "nms"):
            return True
    return False
