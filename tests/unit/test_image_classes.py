"""What an image pipeline makes of logits: probabilities, ranks and the threshold."""

import math

import numpy as np
import pytest

from flambeau.answers.activation import softmax
from flambeau.types import Classification, Item, Options, Payload
from tests.support.image_pipelines import pipeline


def classified(logits: list[float], **options: object) -> Classification:
    item = Item(Payload("file", b""), Options(**options))  # type: ignore[arg-type]
    one = pipeline(classes=len(logits), threshold=0.25)
    answer = one.postprocess({"output": np.array([logits], np.float32)}, item)
    assert isinstance(answer, Classification)
    return answer


@pytest.mark.parametrize("logits", [[0.0], [1, 2, 3], [1e4, -1e4, 9999], [-1e38, 1e38], [-math.inf, 0, 1]])
def test_probabilities_sum_to_one_however_large_the_logits(logits: list[float]) -> None:
    found = softmax(np.array(logits, np.float32))
    assert found.sum() == pytest.approx(1, abs=1e-6)
    assert (found >= 0).all()


def test_classes_are_ranked_and_ties_keep_the_order_of_the_outputs() -> None:
    best = classified([1, 3, 2, 3, 0, 2], top_k=5).top
    assert [each.index for each in best] == [1, 3, 2, 5, 0]
    assert [each.label.name for each in best[:2]] == ["class1", "class3"]
    assert best[0].probability == pytest.approx(math.exp(3) / sum(map(math.exp, [1, 3, 2, 3, 0, 2])), rel=1e-5)


@pytest.mark.parametrize(("asked", "given"), [(0, 1), (1, 1), (3, 3), (99, 3)])
def test_as_many_classes_are_ranked_as_were_asked_for_and_at_least_one(asked: int, given: int) -> None:
    assert len(classified([1, 2, 3], top_k=asked).top) == given


def test_the_threshold_is_the_models_unless_the_client_names_one() -> None:
    assert classified([0, 0, 0]).threshold == 0.25
    assert classified([0, 0, 0]).recognised
    assert not classified([0] * 5).recognised
    assert classified([0] * 5, threshold=0.0).recognised
    assert not classified([0, 9], threshold=1.0).recognised


def test_the_whole_vector_is_given_only_when_it_is_wanted() -> None:
    assert classified([1, 2]).probabilities is None
    whole = classified([1, 2], probabilities=True).probabilities
    assert whole == pytest.approx([0.2689414, 0.7310586])


@pytest.mark.parametrize("logits", [[math.nan, 1, 2], [math.nan] * 3, [math.inf, 1, 2], [-math.inf] * 3])
def test_logits_without_probabilities_are_answered_as_not_recognised_f27(logits: list[float]) -> None:
    found = classified(logits, top_k=3, probabilities=True)
    assert len(found.top) == 3
    assert not found.recognised
