"""Splits a request of named arrays into items, and joins their outcomes into one answer.

An item is the same as over JSON, so that limits, batches and fairness are the same for both. For an image model an item
is one row. For a network over numbers it holds up to `MAX_ROWS` rows: handling each row as an item would cost more than
computing it.
"""

from collections.abc import Sequence

import numpy as np

from flambeau.errors import RequestError
from flambeau.items import pack
from flambeau.pipelines import named_tensors
from flambeau.serving.model import Model
from flambeau.tasks.tensor import MAX_ROWS
from flambeau.types import Outcome, Payload, Tensors


def split(model: Model, tensors: Tensors, *, most: int) -> list[Payload]:
    """The items of a request, `most` of them at most. Raises `RequestError`."""
    if model.kind == "python":
        raise RequestError(
            f"model '{model.name}' is a Python model, which has no tensors of its own: send it a value",
            code="unsupported_media_type",
        )
    rows = named_tensors.rows_of(model.bundle.manifest.inputs, tensors)
    each = 1 if model.kind == "image" else MAX_ROWS
    if -(-rows // each) > most:
        raise RequestError(
            f"the request has {rows} rows: the most is {most * each} (--max-items)", code="too_many_items"
        )
    payloads, lent = [], model.apart
    for start in range(0, rows, each):
        part = tensors if rows <= each else {name: array[start : start + each] for name, array in tensors.items()}
        arrays, data = pack(part, lent=lent)
        payloads.append(Payload("tensors", data, arrays))
    return payloads


def join(outcomes: Sequence[Outcome], names: Sequence[str] | None = None) -> Tensors:
    """The outputs of all items, or those named. Raises the `RequestError` of the first item that failed.

    A detector finds its own number of objects for each row. Such outputs of several rows are refused, too.
    """
    parts: list[Tensors] = []
    for outcome in outcomes:
        if isinstance(outcome.result, RequestError):
            raise outcome.result
        parts.append(outcome.result.tensors())
    if len(parts) == 1:
        return parts[0]
    names = tuple(parts[0]) if names is None else names
    for name in names:
        shapes = sorted({part[name].shape[1:] for part in parts})
        if len(shapes) > 1:
            raise RequestError(
                f"the rows of this request have the output '{name}' of unlike shapes ({list(shapes[0])} and "
                f"{list(shapes[-1])}), which no tensor can hold: send them one by one",
                code="bad_request",
            )
    return {name: np.concatenate([part[name] for part in parts]) for name in names}
