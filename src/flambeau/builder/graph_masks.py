"""Finds masks of decimal numbers among the inputs of an ONNX graph, by their names and what the graph makes of them.

Such a mask becomes a large number that is added to the scores of attention, so that random numbers have no answer that
comes twice. It is tried with 1, or with 0 where all ones have no answer.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import structs

from flambeau.builder import row_arrays
from flambeau.builder.graph_inputs import GraphInputs
from flambeau.engines.onnxruntime import open_session

_KNOWN = ((1, 0), (0, 1))


def told(given: GraphInputs, file: Path, length: int) -> GraphInputs:
    """The inputs, of which masks are tried with 1 or 0. `length`: that of free axes, which the graph can compute."""
    masks = [spec for spec in given.specs if "mask" in spec.name.lower() and spec.dtype.startswith("float")]
    if len(given.specs) == 1 or not masks or any(spec.known for spec in masks):
        return given
    session = open_session(file)
    for known in _KNOWN:
        tried = tuple(structs.replace(spec, known=known) if spec in masks else spec for spec in given.specs)
        if _is_finite(session, replace(given, specs=tried), length):
            return replace(given, specs=tried)
    return given


def _is_finite(session: Any, given: GraphInputs, length: int) -> bool:
    numbers = np.random.default_rng(0)
    rows = {spec.name: row_arrays.of_spec(spec, given.shape(spec, 1, length), numbers) for spec in given.specs}
    try:
        found = session.run(None, rows)
    except Exception:  # onnxruntime has its own exception types; what it cannot compute is reported later
        return False
    return all(np.isfinite(each).all() for each in found if isinstance(each, np.ndarray) and each.dtype.kind == "f")
