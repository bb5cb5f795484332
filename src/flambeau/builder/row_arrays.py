"""Named arrays of rows: drawing, slicing, joining and describing them. Knows no network."""

import numpy as np

from flambeau.types import Tensors, TensorSpec


def random_rows(numbers: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Random rows to try a graph with. Integers are 0 and 1, valid indices in every embedding table."""
    if np.dtype(dtype).kind in "iub":
        return numbers.integers(0, 2, shape).astype(dtype)
    return numbers.standard_normal(shape, np.float32).astype(dtype, copy=False)


def of_spec(spec: TensorSpec, shape: tuple[int, ...], numbers: np.random.Generator) -> np.ndarray:
    """Random rows of an input, in this shape. If the graph knows numbers of it, all are the first of them."""
    if spec.known:
        return np.full(shape, spec.known[0], spec.dtype)
    return random_rows(numbers, shape, spec.dtype)


def shown(inputs: Tensors) -> str:
    """The shapes of the inputs in words: a single one without its name, several with theirs."""
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
