"""An engine for a network whose rows are not independent: whatever it is given, it computes one row at a time.

Such a network, for example one with `BatchNorm2d(track_running_stats=False)`, answers an image in another way when
others lie beside it. A stranger's image must not change an answer.
"""

import numpy as np

from flambeau.engines.base import Engine
from flambeau.types import Tensors


class RowByRow:
    """Another engine, which sees one row in each call."""

    def __init__(self, engine: Engine) -> None:
        self.inputs = engine.inputs
        self.outputs = engine.outputs
        self._engine = engine

    def run(self, batch: Tensors) -> Tensors:
        rows = len(next(iter(batch.values())))
        if rows <= 1:
            return self._engine.run(batch)
        found = [self._engine.run({name: array[row : row + 1] for name, array in batch.items()}) for row in range(rows)]
        return {name: np.concatenate([each[name] for each in found]) for name in found[0]}

    def close(self) -> None:
        self._engine.close()
