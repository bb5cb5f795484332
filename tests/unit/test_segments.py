"""A segmenter's numbers to classes with scores: each activation, ties, and a class that only enlarging shows."""

import numpy as np
import pytest

from flambeau.answers.activation import Activation
from flambeau.answers.label_maps import largest
from flambeau.items import FREE
from flambeau.tasks import TASKS, NetworkFacts
from flambeau.tasks.semantic_segmentation import EXTENT, SIZE, SemanticSegmentation
from flambeau.types import Item, Options, Payload, TensorSpec

ROWS, COLUMNS = 9, 12


def answer(
    numbers: np.ndarray, activation: Activation, size: tuple[int, int] = (ROWS, COLUMNS)
) -> SemanticSegmentation:
    network = NetworkFacts(
        inputs=(TensorSpec("image", "float32", (3, FREE, FREE)),), activation=activation, classes=max(2, len(numbers)),
        outputs=(TensorSpec("logits", "float32", (len(numbers), FREE, FREE)),), threshold=0.5 * (len(numbers) == 1),
    )  # fmt: skip
    extent = [float(side) for side in numbers.shape[1:]]
    outputs = {"logits": numbers[None], SIZE: np.array([size]), EXTENT: np.array([extent])}
    found = TASKS["semantic-segmentation"].postprocess(network)(outputs, Item(Payload("file", b""), Options()))
    assert isinstance(found, SemanticSegmentation)
    return found


def softmax(numbers: np.ndarray) -> np.ndarray:
    shifted = np.exp(numbers - numbers.max(axis=0))
    made: np.ndarray = shifted / shifted.sum(axis=0)
    return made


@pytest.mark.parametrize(
    ("activation", "of", "probabilities"),
    [
        (Activation("softmax", known="assumed"), lambda x: x, softmax),
        (Activation("sigmoid", known="said"), lambda x: x, lambda x: 1 / (1 + np.exp(-x))),
        (Activation("softmax", by="network", known="graph"), softmax, lambda x: x),
        (Activation("sigmoid", by="network", known="said"), lambda x: 1 / (1 + np.exp(-x)), lambda x: x),
        (Activation("softmax", by="network", logarithm=True, known="graph"), lambda x: np.log(softmax(x)), np.exp),
    ],
    ids=["softmax", "sigmoid", "probabilities", "several sigmoids", "logarithms"],
)
def test_a_score_is_the_mean_probability_of_the_classes_places(
    activation: Activation, of: object, probabilities: object
) -> None:
    numbers = of(np.random.default_rng(0).standard_normal((4, ROWS, COLUMNS)).astype(np.float32))  # type: ignore[operator]
    expected, best = probabilities(numbers), numbers.argmax(axis=0)  # type: ignore[operator]
    found = answer(numbers, activation)
    assert np.array_equal(found.labels, best)
    assert [each.index for each in found.found] == np.unique(best).tolist()
    for each in found.found:
        assert each.score == pytest.approx(expected[each.index][best == each.index].mean(), rel=1e-5)
        assert each.pixels == (best == each.index).sum()


def test_one_channel_is_two_classes() -> None:
    numbers = np.random.default_rng(0).standard_normal((1, ROWS, COLUMNS)).astype(np.float32)
    first, second = answer(numbers, Activation("sigmoid", known="assumed")).found
    probability = 1 / (1 + np.exp(-numbers[0]))
    assert second.score == pytest.approx(probability[probability > 0.5].mean(), rel=1e-5)
    assert first.score == pytest.approx((1 - probability)[probability <= 0.5].mean(), rel=1e-5)


def test_a_class_that_only_lies_between_two_others_has_its_highest_probability() -> None:
    numbers = np.zeros((3, 1, 2), np.float32)
    numbers[0, 0], numbers[1, 0], numbers[2, 0] = (4, 0), (3, 3), (0, 4)
    found = {each.index: each for each in answer(numbers, Activation("softmax", known="assumed"), (1, 64)).found}
    assert found[1].pixels > 0
    assert found[1].score == pytest.approx(softmax(numbers)[1].max(), rel=1e-5)


def test_of_equal_scores_the_first_class_wins() -> None:
    numbers = np.random.default_rng(1).integers(0, 3, (300, 20, 30)).astype(np.float32)
    assert np.array_equal(largest(numbers), numbers.argmax(axis=0))
    assert (largest(numbers).dtype, largest(numbers[:256]).dtype) == (np.uint16, np.uint8)
