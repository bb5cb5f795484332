"""The remedy for a torchvision whose compiled operators do not match the installed torch.

torchvision's wheels on PyPI are built against CUDA. Beside a CPU build of torch the compiled part does not load, and
then `import torchvision` stops with "operator torchvision::nms does not exist": torchvision registers shape functions
for operators that nothing declared. Declaring them first lets models and transforms import and run. Two of them,
non-maximum suppression and RoIAlign, have a stand-in in plain PyTorch (`box_ops`), so that detectors run as well.

`declare_missing` applies it before an import of our own; `stand_by` waits for somebody else's code to import
torchvision, and costs nothing where it never does.
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
import torch

# Non-maximum suppression and RoIAlign in plain PyTorch, for a torchvision whose compiled operators do not load.
#
# They are the operators of `torchvision.ops` in value: the same boxes in the same order, the same numbers but for the
# order in which they are added. They serve inference only, and have no gradients.

_MOST_NUMBERS = 16_000_000  # of one intermediate result of `roi_align`: 64 MB in float32


def nms(boxes: torch.Tensor, scores: torch.Tensor, threshold: float) -> torch.Tensor:
    """The indices, int64, of the boxes that are kept, the best score first.

    `boxes` is (N, 4) as x1, y1, x2, y2, and `scores` (N,). A box goes when one that is kept before it overlaps it by
    more than `threshold` (intersection over union). Equal scores keep the order of their boxes.
    """
    left, top, right, bottom = boxes.unbind(1)
    areas = (right - left) * (bottom - top)
    waiting = scores.sort(stable=True, descending=True).indices
    kept = []
    while len(waiting):
        best, waiting = waiting[0], waiting[1:]
        kept.append(best)
        wide = (torch.minimum(right[best], right[waiting]) - torch.maximum(left[best], left[waiting])).clamp(min=0)
        high = (torch.minimum(bottom[best], bottom[waiting]) - torch.maximum(top[best], top[waiting])).clamp(min=0)
        shared = wide * high
        overlap = (shared / (areas[best] + areas[waiting] - shared)).double()  # torchvision compares with a double
        waiting = waiting[~(overlap > threshold)]  # two boxes of no size overlap by NaN, and both stay
    return torch.stack(kept) if kept else torch.empty(0, dtype=torch.int64, device=boxes.device)


def roi_align(
    features: torch.Tensor,
    rois: torch.Tensor,
    scale: float,
    height: int,
    width: int,
    sampling_ratio: int,
    aligned: bool,
) -> torch.Tensor:
    """The averages of the bins of each region, (K, C, height, width), from feature maps (N, C, H, W).

    `rois` is (K, 5): the number of the map, and x1, y1, x2, y2 in pixels of an image, which `scale` makes those of the
    map. A bin is the average of `sampling_ratio` × `sampling_ratio` points, or of as many as it has pixels, rounded up,
    where that is not positive; a point is interpolated between the four pixels around it (He et al., Mask R-CNN, 2017,
    section 3). `aligned` takes pixels at their centres.

    Points form a grid, so the weights of rows and of columns are apart: a bin is `rows @ map @ columns`.
    """
    taken = features.float() if features.dtype in (torch.float16, torch.bfloat16) else features
    places = rois.to(taken.dtype)
    start_x, start_y, end_x, end_y = (places[:, 1:] * scale - (0.5 if aligned else 0.0)).unbind(1)
    rows = _weights(start_y, end_y - start_y, height, taken.shape[2], sampling_ratio, aligned)
    columns = _weights(start_x, end_x - start_x, width, taken.shape[3], sampling_ratio, aligned)
    result = taken.new_zeros((len(rois), taken.shape[1], height, width))
    at_once = max(1, _MOST_NUMBERS // max(1, taken.shape[1] * height * taken.shape[3]))
    for number in sorted(set(rois[:, 0].tolist())):
        of_map = (rois[:, 0] == number).nonzero()[:, 0]
        for part in of_map.split(at_once):
            lines = torch.einsum("kph,chw->kcpw", rows[part], taken[int(number)])
            result[part] = torch.einsum("kcpw,kqw->kcpq", lines, columns[part])
    return result.to(features.dtype)


def _weights(
    start: torch.Tensor, length: torch.Tensor, bins: int, size: int, sampling_ratio: int, aligned: bool
) -> torch.Tensor:
    """What each pixel of an axis of `size` gives to each bin of each region: (K, bins, size)."""
    if not aligned:
        length = length.clamp(min=1.0)
    step = length / bins
    count = torch.full_like(step, sampling_ratio) if sampling_ratio > 0 else step.ceil()
    most = max(1, int(count.max())) if len(count) else 1
    number = torch.arange(most, dtype=start.dtype, device=start.device)
    within = number[None, :] < count[:, None]  # (K, most): adaptive regions have points of their own number
    offset = (number[None, :] + 0.5) * (step / count.clamp(min=1))[:, None]
    first = start[:, None] + torch.arange(bins, dtype=start.dtype, device=start.device)[None, :] * step[:, None]
    points = first[:, :, None] + offset[:, None, :]  # (K, bins, most)
    used = within[:, None, :] & (points >= -1.0) & (points <= size)
    points = points.clamp(min=0)
    low = points.floor().clamp(max=size - 1)
    high = (low + 1).clamp(max=size - 1)
    part = torch.where(low >= size - 1, torch.zeros_like(points), points - low)
    share = used.to(start.dtype) / count.clamp(min=1)[:, None, None]
    weights = start.new_zeros((len(start), bins, size))
    weights.scatter_add_(2, low.long(), (1 - part) * share)
    return weights.scatter_add_(2, high.long(), part * share)


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
"""The modules that ask whether the compiled part is there before they call an operator that has a stand-in."""

_LOCK = threading.Lock()  # replicas in threads come here side by side, and a namespace can be declared once


def declare_missing() -> None:
    """Declare torchvision's operators if its compiled part cannot do so itself. A second call does nothing."""
    stand_by()
    with _LOCK:
        _declare_once()


def stand_by() -> None:
    """Have the operators declared when torchvision is imported, whoever does it. A second call does nothing."""
    if _PACKAGE not in sys.modules and not any(isinstance(finder, _Remedy) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Remedy())


@cache
def _declare_once() -> "torch.library.Library | None":
    """The library object: the cache keeps it, and with it the declarations."""
    import torch

    if _compiled_part_loads():
        return None
    library = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for schema in _SCHEMAS:
        library.define(schema)  # type: ignore[no-untyped-call]
    for name, function in (("nms", nms), ("roi_align", roi_align)):
        library.impl(name, function, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    return library


def _compiled_part_loads() -> bool:
    import torch

    spec = importlib.util.find_spec(_PACKAGE)  # finds the package without importing it
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


class _Remedy(MetaPathFinder):
    """Finds torchvision where it lies, and the modules of it that are treated once they have run."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _PACKAGE and name not in _STANDING_IN:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Treated(spec.loader)
        return spec


class _Treated(Loader):
    """The loader of a module, with the remedy before torchvision runs and after a module of operators has."""

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
            vars(module).update(_has_ops=lambda: True, _assert_has_ops=lambda: None)

    def __getattr__(self, name: str) -> object:
        return getattr(self._loader, name)  # what importlib.resources and others ask of a loader
