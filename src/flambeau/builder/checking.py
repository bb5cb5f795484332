"""A graph run over inputs whose answers are known: how well it reproduces them. Without torch."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from flambeau.answers import agreement
from flambeau.answers.agreement import Agreement
from flambeau.engines.onnxruntime import open_session
from flambeau.types import Tensors


def check(
    file: Path,
    samples: Iterable[tuple[Tensors, Tensors]],
    *,
    classes: bool,
    optimised: bool = False,
    one_row: bool = False,
) -> Agreement:
    """Run the graph over inputs with known outputs, one by one and, unless it takes `one_row`, together.

    Returns the worst agreement.
    """
    session = open_session(file, optimised=optimised)
    free = not one_row and session.get_inputs()[0].shape[0] != 1
    found: list[Agreement] = []
    for inputs, outputs in samples:
        [(name, expected)] = outputs.items()
        rows = [{key: array[i : i + 1] for key, array in inputs.items()} for i in range(len(expected))]
        alone = np.concatenate([session.run([name], row)[0] for row in rows])
        found.append(agreement.measure(expected, alone, classes=classes, each=True))
        if free:
            found.append(agreement.measure(expected, session.run([name], inputs)[0], classes=classes, each=True))
    return max(found, key=lambda each: (not each.holds, each.difference))
