"""Outcomes to rows, and the columns that rows have. It knows no file format."""

from dataclasses import dataclass
from typing import Any

from flambeau.answers.classification import CELLS
from flambeau.errors import RequestError
from flambeau.types import Outcome, Task

Row = dict[str, Any]
"""The cells of a row by their columns; `None` where there is nothing, and nested lists where there are several."""

_ERROR = ("error", "code")
_COLUMNS: dict[Task, tuple[str, ...]] = {
    "classification": (*CELLS, "recognised"),
    "multi-label": ("labels", "scores"),
    "embedding": ("embedding",),
}
"""The columns of an answer, by its task; of all others it is `output`."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a row holds.

    Of a classification the best class, and with `top_k` the ranked ones under `predictions`, with `probabilities` the
    whole vector; of several labels those at the threshold or above, and all scores; of an embedding its numbers; of
    anything else the model's answer under `output`.
    """

    task: Task
    top_k: int | None = None
    probabilities: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns, in their order. Every row has all of them."""
        ranked = ("predictions",) if self.top_k else ()
        vector = ("probabilities",) if self.probabilities else ()
        return ("input", *_COLUMNS.get(self.task, ("output",)), *ranked, *vector, *_ERROR)

    @property
    def flat_columns(self) -> tuple[str, ...]:
        """The columns of CSV: the second class and those after it have their own."""
        ranked = tuple(f"{name}_{rank}" for rank in range(2, (self.top_k or 1) + 1) for name in CELLS)
        named = (name for name in self.columns if name not in ("predictions", "probabilities", *_ERROR))
        return (*named, *ranked, *_ERROR)

    def row(self, name: str, outcome: Outcome) -> Row:
        """The row of one input."""
        result = outcome.result
        row: Row = dict.fromkeys(self.columns) | {"input": name}
        if isinstance(result, RequestError):
            return row | {"error": result.message, "code": result.code}
        return row | result.row(top_k=self.top_k, probabilities=self.probabilities)

    def flat(self, row: Row) -> Row:
        """The row for `flat_columns`."""
        flat = {name: row.get(name) for name in self.flat_columns}
        for rank, each in enumerate(row.get("predictions") or (), 1):
            if rank > 1:
                flat |= {f"{name}_{rank}": cell for name, cell in each.items()}
        return flat
