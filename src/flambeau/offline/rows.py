"""Outcomes to rows, and the columns that rows have. It knows no file format."""

from dataclasses import dataclass
from typing import Any

import msgspec

from flambeau.errors import RequestError
from flambeau.offline.entries import Kind
from flambeau.types import Classification, Outcome, Scored, Value

Row = dict[str, Any]
"""The cells of a row by their columns; `None` where there is nothing, and nested lists where there are several."""

_CLASS = ("class_id", "class_name", "class_index", "probability")
_ERROR = ("error", "code")


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a row holds.

    Of an image the best class, and with `top_k` the ranked ones under `predictions`, with `probabilities` the whole
    vector; of anything else the model's answer under `output`.
    """

    kind: Kind
    top_k: int | None = None
    probabilities: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns, in their order. Every row has all of them."""
        if self.kind != "image":
            return ("input", "output", *_ERROR)
        ranked = ("predictions",) if self.top_k else ()
        vector = ("probabilities",) if self.probabilities else ()
        return ("input", *_CLASS, "recognised", *ranked, *vector, *_ERROR)

    @property
    def flat_columns(self) -> tuple[str, ...]:
        """The columns of a format without lists: the second class and those after it have their own."""
        ranked = tuple(f"{name}_{rank}" for rank in range(2, (self.top_k or 1) + 1) for name in _CLASS)
        named = (name for name in self.columns if name not in ("predictions", "probabilities", *_ERROR))
        return (*named, *ranked, *_ERROR)

    def row(self, name: str, outcome: Outcome) -> Row:
        """The row of one input."""
        result = outcome.result
        row: Row = dict.fromkeys(self.columns) | {"input": name}
        if isinstance(result, RequestError):
            return row | {"error": result.message, "code": result.code}
        if isinstance(result, Value):
            return row | {"output": msgspec.Raw(result.json)}
        assert isinstance(result, Classification)  # a Plain answers payloads of kind `value`, and there are none here
        row |= _cells(result.top[0]) | {"recognised": result.recognised}
        if self.top_k:
            row["predictions"] = [_cells(each) for each in result.top]
        if self.probabilities:
            row["probabilities"] = result.probabilities
        return row

    def flat(self, row: Row) -> Row:
        """The row without lists, for `flat_columns`."""
        flat = {name: row.get(name) for name in self.flat_columns}
        for rank, each in enumerate(row.get("predictions") or (), 1):
            if rank > 1:
                flat |= {f"{name}_{rank}": cell for name, cell in each.items()}
        return flat


def _cells(scored: Scored) -> Row:
    cells = (scored.label.id, scored.label.name, scored.index, scored.probability)
    return dict(zip(_CLASS, cells, strict=True))
