"""Advice is executable: every remedy that inspect, build and doctor print over the corpus is followed to its end."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flambeau
from advice import Served, follow
from corpus import Kind, kinds

FAST = ("a norm first", "outputs in a tuple", "an ONNX graph with a state")
"""Small ones of a circle (U6) and of the dead ends (U7)."""


def cases() -> list[Any]:
    return [
        pytest.param(kind, id=kind.name, marks=() if kind.name in FAST else (pytest.mark.slow,)) for kind in kinds()
    ]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", cases())
def test_every_remedy_leads_to_the_answer_of_pytorch(kind: Kind, tmp_path: Path) -> None:
    """U5 to U9, U11, U14: no circle, no dead end, and no answer but torch's own, whichever way was gone."""
    made = kind.write(tmp_path)
    served = follow(kind, made, tmp_path)
    bare = [each for each in served if not each.state.options and each.state.file == str(made.file)]
    assert bool(bare) == (kind.expect == "path"), [each.state for each in served]
    for each in served:
        assert_right(each)
    if kind.expect != "path" and not kind.end:
        assert any(each.made.answer is not None for each in served), [each.state for each in served]


def assert_right(served: Served) -> None:
    """The bundle answers what PyTorch does."""
    if served.made.answer is None:
        return
    with flambeau.load(served.bundle, allow_code=True) as model:
        found = model.predict(served.made.probe)
    assert_alike(getattr(found, "probabilities", found), served.made.answer)


def assert_alike(found: Any, expected: Any) -> None:
    """The same numbers under the same names.

    Boxes of an untrained detector have scores that differ by less than the order of a sum does, and of two such either
    may suppress the other: they are compared in any order, and a few may differ.
    """
    if isinstance(expected, dict) and "boxes" in expected:
        rows = [np.column_stack([each["boxes"], each["labels"], each["scores"]]) for each in (found, expected)]
        assert rows[0].shape == rows[1].shape
        alike = [bool(np.isclose(rows[0], row, rtol=1e-3, atol=1e-3).all(1).any()) for row in rows[1]]
        assert sum(alike) > 0.9 * len(alike)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert_alike(found[name], value)
    elif isinstance(expected, list) and expected and isinstance(expected[0], list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_alike(one, other)
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
