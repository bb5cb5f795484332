"""Named arrays, row by row: made, cut and joined, and told in words. It knows no network."""

import numpy as np

from flambeau.types import Tensors


def random_rows(numbers: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Rows to try a graph with. Whole numbers are 0 and 1: those every table of vectors has."""
    if np.dtype(dtype).kind in "iub":
        return numbers.integers(0, 2, shape).astype(dtype)
    return numbers.standard_normal(shape, np.float32).astype(dtype, copy=False)


def shown(inputs: Tensors) -> str:
    """The shapes of inputs in words: that of one alone, several by their names."""
    if len(inputs) == 1:
        return str(list(next(iter(inputs.values())).shape))
    return ", ".join(f"{name} {list(each.shape)}" for name, each in inputs.items())


def rows_in(inputs: Tensors) -> int:
    return len(next(iter(inputs.values())))


def part(tensors: Tensors, start: int, end: int) -> Tensors:
    return {name: each[start:end] for name, each in tensors.items()}


def few(tensors: Tensors, rows: int) -> Tensors:
    return part(tensors, 0, rows)


def joined(parts: list[Tensors]) -> Tensors:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
