"""The network's own inputs, as a client sends them: checked against the model's specs by name, dtype and shape.

Nothing is converted: a wrong name or dtype is an error.
"""

from collections.abc import Sequence

from flambeau.errors import InvalidInput
from flambeau.items import name_of, unpack
from flambeau.types import Payload, Tensors, TensorSpec


def read(inputs: Sequence[TensorSpec], payload: Payload) -> Tensors:
    """The inputs in a payload. Raises `InvalidInput`."""
    try:
        tensors = unpack(payload.arrays, payload.data)
    except ValueError as error:
        raise InvalidInput(f"the tensors cannot be read: {error}", code="invalid_tensor") from error
    rows_of(inputs, tensors)
    for spec in inputs:
        if odd := spec.outside(tensors[spec.name]):
            raise _wrong(f"the input '{spec.name}' has {odd}")
    return tensors


def rows_of(inputs: Sequence[TensorSpec], tensors: Tensors) -> int:
    """The number of rows, the same for every input and at least one.

    Raises `InvalidInput` that names the input, what was sent and what is expected.
    """
    names = [spec.name for spec in inputs]
    if odd := [name for name in tensors if name not in names]:
        raise _wrong(f"there is no input '{odd[0]}': this model takes {_listed(inputs)}")
    rows = 0
    for spec in inputs:
        if spec.name not in tensors:
            raise _wrong(f"the input '{spec.name}' is missing: this model takes {_listed(inputs)}")
        array = tensors[spec.name]
        fits = array.ndim == 1 + len(spec.shape) and spec.takes(array.shape[1:])
        if name_of(array.dtype) != spec.dtype or not fits:
            raise _wrong(
                f"the input '{spec.name}' must be {spec}, but it is {array.dtype.name} of shape {list(array.shape)}"
            )
        if not len(array):
            raise _wrong(f"the input '{spec.name}' has no row")
        rows = rows or len(array)
        if len(array) != rows:
            raise _wrong(f"the input '{spec.name}' has {len(array)} rows, but '{names[0]}' has {rows}")
    refuse_unlike(inputs, tensors)
    return rows


def refuse_unlike(inputs: Sequence[TensorSpec], tensors: Tensors) -> None:
    """Raise `InvalidInput` where axes that share a word have unlike lengths."""
    lengths: dict[str, tuple[str, int]] = {}
    for spec in inputs:
        for word, size in zip(spec.words, tensors[spec.name].shape[1:], strict=False):
            name, length = lengths.setdefault(word, (spec.name, size))
            if word and size != length:
                raise _wrong(
                    f"the length '{word}' is {length} in the input '{name}', and {size} in '{spec.name}': "
                    "it has to be the same"
                )


def _listed(inputs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{spec.name} ({spec})" for spec in inputs)


def _wrong(message: str) -> InvalidInput:
    return InvalidInput(message, code="invalid_tensor")
