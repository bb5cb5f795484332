"""The graph, rewritten for the machine that builds: workers there map it, and share one copy of its weights."""

from collections.abc import Callable, Sequence
from pathlib import Path

from flambeau.builder import checking
from flambeau.bundle.storage import ONNX, OPTIMISED_ONNX, Optimised, graph_bytes
from flambeau.engines import optimised
from flambeau.engines.onnxruntime import write_optimised
from flambeau.system.process import give_memory_back
from flambeau.types import Tensors

_TOO_SMALL = 1_000_000
"""Bytes of graph and weights. Below that there is next to nothing to share, and loading takes a millisecond."""


def optimise(
    folder: Path,
    checked: Sequence[tuple[Tensors, Tensors]],
    *,
    classes: bool,
    one_row: bool = False,
    tell: Callable[[str], None],
) -> Optimised | None:
    """Write the optimised graph into the bundle at `folder`, and return where it may run.

    `None` where it is not worth it, or does not give the answers `checked`: then the plain graph serves as ever.
    """
    where = optimised.here()
    if where is None or graph_bytes(folder) < _TOO_SMALL:
        return None
    target = folder / OPTIMISED_ONNX
    try:
        write_optimised(folder / ONNX, target)
        found = checking.check(target, checked, classes=classes, optimised=True, one_row=one_row)
        reason = "" if found.holds else f"its answers are others: {found}"
    except Exception as error:  # whatever it is, the plain graph is there
        reason = f"{type(error).__name__}: {str(error).strip()}"
    give_memory_back()
    if not reason:
        return where
    tell(f"the graph cannot be optimised beforehand ({reason}): every worker does it when it starts")
    for file in folder.glob(f"{OPTIMISED_ONNX}*"):
        file.unlink()
    return None
