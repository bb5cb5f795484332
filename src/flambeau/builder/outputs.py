"""Choose which of several outputs is the answer: the one the user names, or probabilities over their logits."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from flambeau.errors import SourceError

Arrays = Mapping[str, npt.NDArray[Any]]
"""The outputs by name, each of shape (rows, ...)."""

_NEAR = 1e-4
_MOST_SHOWN = 8


def choose(found: Arrays, wanted: str | None, *, name: str, rows: int | None = None) -> tuple[tuple[str, ...], str]:
    """The names of the outputs of the network `name` that are its answer, and a note for the user, or "".

    `wanted` is the value of `--output-name`. `rows` is the number of rows that were computed; with it, all outputs are
    the answer if each has that many rows. Raises `SourceError` that lists the outputs where the choice is not certain.

    Example: of `logits` and `probs`, where `probs` is the softmax of `logits`, the answer is `("probs",)`.
    """
    if wanted is not None and len(found) == 1:
        raise SourceError(f"--output-name {wanted} has no effect on {name}, which has one output: leave it out")
    if wanted is not None and wanted not in found:
        raise SourceError(f"--output-name {wanted} is not an output of {name}, which has {shown(found)}")
    if wanted is not None:
        return (wanted,), ""
    if len(found) == 1:
        return tuple(found), ""
    if not found:
        raise SourceError(f"{name} returns no tensor: wrap it in a flambeau.PythonModel, which can answer anything")
    if pair := _activated(found):
        taken, how, of = pair
        return (
            (taken,),
            f"its output {taken} is the answer, because it is the {how} of {of}: --output-name {of} takes that instead",
        )
    if rows is not None and all(each.shape[:1] == (rows,) and each.dtype.kind in "fiub" for each in found.values()):
        return tuple(
            found
        ), f"{name} answers with {len(found)} outputs, {shown(found)}: --output-name takes one of them"
    numbers = [each for each, array in found.items() if array.dtype.kind in "fiub"]
    first = numbers[0] if numbers else next(iter(found))
    texts = [each for each in found if each not in numbers]
    told = f"{' and '.join(texts)} {'is' if len(texts) == 1 else 'are'} text, and numbers are served; " if texts else ""
    raise SourceError(
        f"{name} has {len(found)} outputs ({shown(found)}): {told}say which is the answer with --output-name, such as "
        f"--output-name {first}, or wrap it in a flambeau.PythonModel to answer with all of them"
    )


def shown(found: Arrays) -> str:
    """The outputs with their dtypes and shapes: `logits float32[N, 5]`."""
    listed = [
        f"{name} {array.dtype}[{', '.join(['N', *map(str, array.shape[1:])]) if array.ndim else ''}]"
        for name, array in list(found.items())[:_MOST_SHOWN]
    ]
    return ", ".join([*listed, "…"] if len(found) > _MOST_SHOWN else listed)


def _activated(found: Arrays) -> tuple[str, str, str] | None:
    """If one of two outputs is an activation of the other: its name, the activation's name, and the other's name."""
    if len(found) != 2:
        return None
    (one, first), (two, second) = found.items()
    if first.shape != second.shape or first.ndim < 2 or first.dtype.kind != "f":
        return None
    for of, logits, taken, numbers in ((one, first, two, second), (two, second, one, first)):
        for how, values in _activations(logits.astype(np.float64)).items():
            if np.allclose(values, numbers, atol=_NEAR, rtol=_NEAR):
                return taken, how, of
    return None


def _activations(logits: npt.NDArray[np.float64]) -> dict[str, npt.NDArray[np.float64]]:
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        softmax = powers / powers.sum(axis=1, keepdims=True)
        return {"softmax": softmax, "log-softmax": np.log(softmax), "sigmoid": 1 / (1 + np.exp(-logits))}
