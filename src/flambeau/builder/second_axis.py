"""Notices a network whose rows are the second axis, as those of PyTorch's recurrent and attention layers are where
nobody said `batch_first=True`.

Example: `nn.LSTM(2, 8)` takes (steps, rows, 2). Given (rows, steps, 2), it takes each row for a step of one sequence,
and each step for a sequence of its own: it computes without a fault, and answers something else.
"""

from collections.abc import Callable, Sequence

import numpy as np

from flambeau.answers import agreement
from flambeau.errors import SourceError
from flambeau.types import Tensors

_SAME = 1e-4  # as for a row alone and in a batch: another order of summing explains no more

Compute = Callable[[Tensors], Sequence[np.ndarray]]
"""The network's outputs for inputs; empty where it cannot compute them."""


def refuse(compute: Compute, inputs: Tensors, *, name: str, graph: bool) -> None:
    """Raise `SourceError` if each place along the second axis of the inputs is computed by itself.

    For networks whose answers depend on the other rows along the first. `inputs` have several rows; `graph`: the
    network is an ONNX graph.
    """
    length, *others = {each.shape[1] if each.ndim > 1 else 0 for each in inputs.values()}
    if others or length < 2:
        return
    whole = compute(inputs)
    axes = [set(range(min(each.ndim, 2))) for each in whole]
    for place in (0, length - 1):
        alone = compute({key: each[:, place : place + 1] for key, each in inputs.items()})
        if not whole or len(alone) != len(whole):
            return
        axes = [
            {axis for axis in fitting if _same(all_of_them, one, axis, place=place, length=length)}
            for fitting, all_of_them, one in zip(axes, whole, alone, strict=True)
        ]
    if not all(axes):
        return
    told = (
        f"{name} takes the second axis of its input for the rows and the first for the sequence, as nn.LSTM, nn.GRU "
        "and nn.Transformer do without batch_first=True, but items are rows of the first"
    )
    if graph:
        raise SourceError(
            f"{told}: export it with the word batch for the axis that has the rows, or from a network that takes and "
            "gives rows first"
        )
    taken = ", ".join(f"{key}.transpose(0, 1)" for key in inputs)
    line = f"super().forward({taken})" + ("" if 0 in axes[0] else ".transpose(0, 1)")
    of = name if name.isidentifier() else "Net"
    raise SourceError(
        f"{told}: give a class that turns them, class Turned({of}): def forward(self, {', '.join(inputs)}): return "
        f"{line}; or wrap it in a flambeau.PythonModel"
    )


def _same(whole: np.ndarray, alone: np.ndarray, axis: int, *, place: int, length: int) -> bool:
    """Whether `alone` is what `whole` has at that place of that axis."""
    if whole.shape[axis] != length or alone.ndim <= axis or alone.dtype.kind not in "fiub":
        return False
    part = np.take(whole, [place], axis=axis)
    return part.shape == alone.shape and agreement.measure(part, alone, classes=False).difference <= _SAME
