"""Run a graph over inputs with known outputs and measure how well it reproduces them. Imports no torch."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from flambeau.answers import boxes
from flambeau.answers.agreement import Agreement, Compare
from flambeau.engines.onnxruntime import open_session
from flambeau.types import Tensors


def check(
    file: Path,
    samples: Iterable[tuple[Tensors, Tensors]],
    *,
    compare: Compare,
    as_written: bool = False,
    one_row: bool = False,
) -> Agreement:
    """Run the graph over (inputs, known outputs), row by row and also in batches, unless it takes `one_row`.

    `compare` measures. `as_written`: load the graph without optimising it. Returns the worst agreement.
    """
    session = open_session(file, optimised=as_written)
    free = not one_row and all(each.shape[0] != 1 for each in session.get_inputs())
    found: list[Agreement] = []
    for inputs, outputs in samples:
        names = list(outputs)
        count = len(next(iter(outputs.values())))
        rows = [{key: array[i : i + 1] for key, array in inputs.items()} for i in range(count)]
        computed = [[np.concatenate(each) for each in zip(*(session.run(names, row) for row in rows), strict=True)]]
        if free:
            computed.append(session.run(names, inputs))
        found += [compare(outputs, dict(zip(names, answers, strict=True))) for answers in computed]
    return boxes.worst(found)
