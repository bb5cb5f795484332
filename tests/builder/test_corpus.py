"""The corpus, kind by kind: right by the file alone, right with documented options, or refused with a way out that is
executable. Every remedy that inspect, build and doctor print over it is followed to its end.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import corpus_nets
import flambeau
from flambeau.types import Classification, Embedding, MultiLabel, ObjectDetection, Regression, SemanticSegmentation
from tests.support.advice import Served, State, documented, follow
from tests.support.corpus import Kind, Made, kinds

FAST = (
    "one output", "ends in softmax", "ends in log_softmax", "ends in sigmoid", "multi-label", "a norm first",
    "outputs in a tuple", "an ONNX graph with a state", "an ONNX graph of two outputs",
)  # fmt: skip
"""Small ones: of the wrong answers (W1 to W4, W7), a circle (U6) and the dead ends (U7)."""

ASSUMED = "a softmax is assumed"
"""What a build says of a file that alone does not tell what its numbers are."""
NOT_EXPORTED = "cannot be exported"


@pytest.fixture(autouse=True)
def code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody's code is imported under the name of its file, which is one and the same for all that is served here."""
    monkeypatch.setitem(sys.modules, "corpus_nets", corpus_nets)


def cases() -> list[Any]:
    return [
        pytest.param(kind, id=kind.name, marks=() if kind.name in FAST else (pytest.mark.slow,)) for kind in kinds()
    ]


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", cases())
def test_the_answer_is_that_of_pytorch_or_a_way_to_it_is_told(kind: Kind, tmp_path: Path) -> None:
    """W1 to W7, U5 to U9, U11, U14: no answer but torch's own, whichever way was gone, no circle and no dead end."""
    made = kind.write(tmp_path)
    served = {each.state: each for each in follow(kind, made, tmp_path)}
    for each in served.values():
        assert_right(each, kind)
    bare = served.get(State(str(made.file)))
    if kind.expect == "path":
        assert made.answer is not None
        assert bare is not None
        assert not kind.exported or NOT_EXPORTED not in bare.said, bare.said
    elif kind.expect == "options":
        assert made.answer is not None
        right = served[documented(made)]
        assert not kind.exported or NOT_EXPORTED not in right.said, right.said
        assert bare is None or ASSUMED in bare.said  # then it is right by luck at most, and says so
    else:
        assert bare is None
        assert kind.end or any(each.made.answer is not None for each in served.values()), list(served)


def test_the_corpus_has_forty_kinds_and_more() -> None:
    names = [kind.name for kind in kinds()]
    assert len(names) == len(set(names)) > 40
    assert set(FAST) <= set(names)


def assert_right(served: Served, kind: Kind) -> None:
    """The bundle answers what PyTorch does.

    An answer of another task than the file's own was asked for, or is said to be assumed: then it has to be what that
    task makes of the network's numbers.
    """
    if served.made.answer is None:
        assert kind.end, f"{served.state} is served, and nobody knows what is right"
        return
    with flambeau.load(served.bundle, allow_code=True) as model:
        found = model.predict(served.made.probe)
        if isinstance(found, ObjectDetection):  # all that the network reports, as PyTorch's answer has it
            found = model.predict(served.made.probe, threshold=0)
    task, numbers = told(found)
    if task in (served.made.task, ""):
        assert_alike(numbers, served.made.answer)
    else:
        asked = any(name in ("--task", "--activation") for name, _ in served.state.options)
        assert asked or ASSUMED in served.said, served.said
        assert_alike(numbers, by_task(task, served.made))


def told(found: Any) -> tuple[str, Any]:
    """The task that an answer is of, and its numbers."""
    if isinstance(found, Classification):
        assert found.probabilities is not None
        assert found.top[0].index == int(np.argmax(found.probabilities))
        return "classification", found.probabilities
    if isinstance(found, MultiLabel):
        return "multi-label", found.scores
    if isinstance(found, Embedding):
        return "embedding", found.embedding
    if isinstance(found, Regression):
        return "regression", np.ravel(found.output)
    if isinstance(found, ObjectDetection):
        return "object-detection", {name: rows[0] for name, rows in found.tensors().items()}
    if isinstance(found, SemanticSegmentation):
        return "semantic-segmentation", {"classes": found.labels}
    return "", found


def by_task(task: str, made: Made) -> Any:
    """What a task makes of the network's own numbers."""
    raw = np.array(made.raw, np.float64)
    if task == "multi-label":
        return 1 / (1 + np.exp(-raw))
    if task == "classification":
        powers = np.exp(raw - raw.max())
        return powers / powers.sum()
    return raw


def assert_alike(found: Any, expected: Any) -> None:
    """The same numbers under the same names."""
    if isinstance(expected, dict) and "boxes" in expected:
        assert_same_boxes(found, expected)
    elif isinstance(expected, dict) and "classes" in expected and isinstance(found["classes"], np.ndarray):
        assert (found["classes"] == np.array(expected["classes"])).mean() > 0.99
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


def assert_same_boxes(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """The boxes that stand out are the same in their order.

    Of the others, two next to each other may have one score, up to the order of a sum: either suppresses the other.
    """
    rows = [np.column_stack([each["scores"], each["labels"], each["boxes"]]) for each in (found, expected)]
    clear = int((rows[1][:, 0] > 0.6).sum())
    assert clear >= 5
    np.testing.assert_allclose(rows[0][:clear], rows[1][:clear], rtol=1e-3, atol=1e-3)
    alike = [bool(np.isclose(rows[0], row, rtol=1e-3, atol=1e-2).all(1).any()) for row in rows[1]]
    assert sum(alike) > 0.9 * len(alike)
