"""Boxes as answers: how many, which, whose names, in which pixels; and when two lists of boxes are the same."""

import io
from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
from PIL import Image

from flambeau.answers import Asked
from flambeau.answers.activation import Activation
from flambeau.answers.boxes import BOXES, LABELS, SCORES, compare, overlaps
from flambeau.bundle.storage import PictureConfig
from flambeau.errors import BundleError, InvalidInput
from flambeau.items import FREE
from flambeau.pipelines.base import open_pipeline
from flambeau.pipelines.picture import PicturePipeline
from flambeau.tasks import ANSWERS, TASKS, NetworkFacts, expectation
from flambeau.tasks.object_detection import SIZE, ObjectDetection
from flambeau.types import Item, Label, Options, Payload, Tensors, TensorSpec
from tests.support.photographs import encoded

OUTPUTS = (
    TensorSpec(BOXES, "float32", (FREE, 4), least=0),
    TensorSpec(SCORES, "float32", (FREE,), least=0),
    TensorSpec(LABELS, "int64", (FREE,), least=0),
)
INPUTS = (TensorSpec("image", "float32", (3, FREE, FREE)),)
NAMES = tuple(Label(str(index), name) for index, name in enumerate(("background", "cat", "dog")))
NONE = Activation("none", known="architecture")
PICTURE = Payload("file", b"")


def network(labels: tuple[Label, ...] | None = NAMES, *, most: int = 300) -> NetworkFacts:
    return NetworkFacts(
        inputs=INPUTS, outputs=OUTPUTS, activation=NONE, labels=labels, threshold=0.5, classes=3, least=0.05, most=most
    )


def outputs(*found: tuple[int, float, Sequence[float]]) -> Tensors:
    """A detector's outputs for one picture: (label, score, box) of each."""
    return {
        BOXES: np.array([[box for _, _, box in found]], np.float32).reshape(1, -1, 4),
        SCORES: np.array([[score for _, score, _ in found]], np.float32),
        LABELS: np.array([[label for label, _, _ in found]], np.int64),
    }


def answer(found: Tensors, labels: tuple[Label, ...] | None = NAMES, **options: object) -> ObjectDetection:
    postprocess = TASKS["object-detection"].postprocess(network(labels))
    made = postprocess(found | {SIZE: np.array([[100, 200]])}, Item(PICTURE, Options(**options)))  # type: ignore[arg-type]
    assert isinstance(made, ObjectDetection)
    return made


CAT = (1, 0.9, (10.0, 20.0, 50.0, 60.0))
DOG = (2, 0.95, (0.0, 0.0, 30.0, 90.0))
BOX_OF_CAT = {"xmin": 10, "ymin": 20, "xmax": 50, "ymax": 60}
BOX_OF_DOG = {"xmin": 0, "ymin": 0, "xmax": 30, "ymax": 90}
WEAK = (1, 0.3, (100.0, 20.0, 150.0, 60.0))


def test_objects_at_the_threshold_are_answered_best_first() -> None:
    found = answer(outputs(CAT, WEAK, DOG))
    assert found.body(Asked())["predictions"] == [
        {
            "label": "dog", "score": pytest.approx(0.95), "class_index": 2,
            "box": {"xmin": 0, "ymin": 0, "xmax": 30, "ymax": 90},
        },
        {
            "label": "cat", "score": pytest.approx(0.9), "class_index": 1,
            "box": {"xmin": 10, "ymin": 20, "xmax": 50, "ymax": 60},
        },
    ]  # fmt: skip
    assert found.body(Asked())["image"] == {"width": 200, "height": 100}
    assert [each.label for each in answer(outputs(CAT, WEAK, DOG), threshold=0.31).found] == ["dog", "cat"]
    assert [each.label for each in answer(outputs(CAT, WEAK, DOG), threshold=0.2).found] == ["dog", "cat", "cat"]
    assert [each.label for each in answer(outputs(CAT, WEAK, DOG), most=1).found] == ["dog"]


@pytest.mark.parametrize("count", [0, 1, 300])
def test_any_number_of_boxes_crosses_to_another_process(count: int) -> None:
    many = answer(outputs(*((1 + index % 2, 0.9, (index, 0, index + 5, 9)) for index in range(count))))
    there = msgspec.msgpack.decode(msgspec.msgpack.encode(many), type=ANSWERS)
    assert there == many
    arrays = there.tensors()
    assert [arrays[name].shape for name in (BOXES, SCORES, LABELS)] == [(1, count, 4), (1, count), (1, count)]
    row = there.row(top_k=None, probabilities=False)
    assert (row["objects"], len(row["boxes"])) == (count, count)
    told = TASKS["object-detection"].line(row)
    assert told == ("nothing found", False) if not count else told[1]


def test_a_number_that_is_not_finite_is_counted_and_becomes_null() -> None:
    found = answer(outputs((1, float("nan"), (0, 0, float("inf"), 5))))
    assert found.nonfinite == 2
    assert b'"score":null' in msgspec.json.encode(found.body(Asked()))


def test_without_labels_classes_are_numbers_and_too_few_labels_are_refused() -> None:
    assert [each.label for each in answer(outputs(CAT, DOG), labels=None).found] == ["2", "1"]
    with pytest.raises(BundleError, match="2 labels for 3 classes"):
        TASKS["object-detection"].postprocess(network(NAMES[:2]))


def test_a_network_without_boxes_cannot_have_the_task() -> None:
    facts = NetworkFacts(inputs=INPUTS, outputs=(TensorSpec("output", "float32", (5,)),), activation=NONE)
    with pytest.raises(BundleError, match="needs the outputs boxes, scores and labels"):
        TASKS["object-detection"].postprocess(facts)


@pytest.mark.parametrize(
    ("expected", "why"),
    [
        ({"labels": ["cat", "dog"]}, None),
        ({"labels": ["dog", "dog"]}, "labels are"),
        (
            {
                "predictions": [
                    {"label": "cat", "box": BOX_OF_CAT},
                    {"label": "dog", "score": 0.9501, "box": BOX_OF_DOG},
                ]
            },
            None,
        ),
        ({"predictions": [{"label": "cat", "box": BOX_OF_CAT}]}, "dog is found at"),
        ({"predictions": [{"label": "cat", "box": BOX_OF_CAT | {"xmin": 12, "xmax": 52}}]}, "no cat is found at"),
        ({"class_name": "cat"}, "the answer is a list of objects, and has no class_name"),
    ],
)
def test_a_golden_sample_says_what_is_found_otherwise(expected: dict[str, object], why: str | None) -> None:
    found = answer(outputs(CAT, DOG)).differs(expectation(msgspec.Raw(msgspec.json.encode(expected))))
    assert found is None if why is None else found is not None and found.startswith(why)


def test_an_object_at_the_threshold_may_be_found_or_not() -> None:
    at = outputs(CAT, (2, 0.4999, DOG[2]))
    for wanted in ('{"labels": ["cat"]}', '{"labels": ["cat", "dog"]}'):
        assert answer(at).differs(expectation(msgspec.Raw(wanted.encode()))) is None


def test_overlaps() -> None:
    found = overlaps(
        np.array([[0, 0, 10, 10], [0, 0, 0, 0]]), np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30]])
    )
    assert found == pytest.approx(np.array([[1, 1 / 3, 0], [0, 0, 0]]))


def alike(one: Tensors, other: Tensors, *, most: int = 300) -> bool:
    return compare(one, other, least=0.05, most=most).holds


MANY = [(1, 0.9 - index / 100, (index * 20.0, 0.0, index * 20 + 15.0, 15.0)) for index in range(40)]


def test_the_same_boxes_in_another_order_agree() -> None:
    assert alike(outputs(CAT, DOG, WEAK), outputs(WEAK, DOG, CAT))
    assert compare(outputs(CAT, DOG), outputs(DOG, CAT), least=0.05, most=300).boxes == 2
    assert alike(outputs(), outputs())
    empty = (1, 0.9, (10.0, 20.0, 10.0, 60.0))
    assert alike(outputs(empty), outputs(empty))


def test_a_box_that_is_lost_moved_or_renamed_does_not_agree() -> None:
    label, score, (left, top, right, bottom) = CAT
    for other in (
        outputs(DOG),
        outputs(DOG, CAT, (2, 0.6, (100.0, 0.0, 120.0, 20.0))),
        outputs(DOG, (label, score, (left + 2, top, right + 2, bottom))),
        outputs(DOG, (2, score, CAT[2])),
        outputs(DOG, (label, score - 0.01, CAT[2])),
        outputs(DOG, (label, float("nan"), CAT[2])),
    ):
        assert not alike(outputs(CAT, DOG), other)
        assert not alike(other, outputs(CAT, DOG))


def test_what_is_near_a_limit_need_not_be_found_again() -> None:
    assert alike(outputs(CAT, (1, 0.0505, WEAK[2])), outputs(CAT))
    assert not alike(outputs(CAT, (1, 0.06, WEAK[2])), outputs(CAT))
    full = outputs(*MANY[:39]), outputs(*MANY[:38], (2, 0.9 - 0.3805, (900.0, 0.0, 950.0, 50.0)))
    assert not alike(*full)
    assert alike(*full, most=39)  # both lists are cut off there


def test_lists_that_are_full_of_one_score_are_not_taken_for_the_same() -> None:
    one = outputs(*((1, 0.9, (index * 20.0, 0.0, index * 20 + 15.0, 15.0)) for index in range(40)))
    other = outputs(*((1, 0.9, (index * 20.0, 50.0, index * 20 + 15.0, 65.0)) for index in range(40)))
    assert alike(one, one, most=40)
    assert not alike(one, other, most=40)


def test_of_two_boxes_with_a_score_of_nearly_one_either_may_suppress_the_other() -> None:
    certain, other = (1, 0.99991, CAT[2]), (1, 0.99991, (14.0, 20.0, 54.0, 60.0))
    assert alike(outputs(certain, DOG), outputs(other, DOG))
    assert not alike(outputs(certain), outputs(other))  # nothing was found again


def test_of_many_weak_boxes_a_few_may_be_lost() -> None:
    lost = [*MANY[:39], MANY[39]]
    assert MANY[39][1] < 0.52
    weak = [(label, score / 2, box) for label, score, box in lost]
    assert alike(outputs(*weak), outputs(*weak[:20], *weak[21:]))
    assert not alike(outputs(*weak), outputs(*weak[:20]))
    assert not alike(outputs(*lost), outputs(*lost[:20], *lost[21:]))


# The pipeline over whole pictures.


def pipeline(*, most_pixels: int = 12_500_000) -> PicturePipeline:
    config = PictureConfig(classes=3, least=0.05, most=300, most_pixels=most_pixels)
    made = open_pipeline(
        config, labels=NAMES, inputs=INPUTS, outputs=OUTPUTS, task="object-detection", activation=NONE,
        max_pixels=1_000_000,
    )  # fmt: skip
    assert isinstance(made, PicturePipeline)
    return made


def gradient(width: int, height: int) -> Image.Image:
    pixels = np.indices((height, width)).sum(0) % 256
    return Image.fromarray(np.stack([pixels, pixels // 2, 255 - pixels], axis=2).astype(np.uint8))


def test_a_picture_is_whole_upright_and_as_to_tensor_has_it() -> None:
    image = gradient(31, 20)
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    image.save(turned, "PNG", exif=exif)
    for data, upright in ((encoded(image), image), (turned.getvalue(), image.transpose(Image.Transpose.ROTATE_270))):
        payload = Payload("file", data)
        expected = (np.asarray(upright).astype(np.float32) / np.float32(255)).transpose(2, 0, 1)[None]
        prepared = pipeline().preprocess(payload)["image"]
        assert prepared.dtype == np.float32
        assert np.array_equal(prepared, expected)
        found = pipeline().postprocess(outputs(CAT), Item(payload, Options()))
        assert isinstance(found, ObjectDetection)
        assert (found.width, found.height) == upright.size


def test_a_large_picture_is_reduced_and_its_boxes_are_in_its_own_pixels() -> None:
    payload = Payload("file", encoded(gradient(101, 60)))
    small = pipeline(most_pixels=1600)  # 6060 pixels: a half leaves 1515 or so
    assert small.preprocess(payload)["image"].shape == (1, 3, 30, 51)
    found = small.postprocess(outputs((1, 0.9, (1.0, 2.0, 51.0, 30.0))), Item(payload, Options()))
    assert isinstance(found, ObjectDetection)
    assert found.found[0].box == (2, 4, 101, 60)
    assert (found.width, found.height) == (101, 60)


def test_a_picture_that_cannot_be_detected_in_is_refused() -> None:
    for width, height, code in ((3, 900, "input_rejected"), (1100, 1000, "image_too_large")):
        with pytest.raises(InvalidInput) as refused:
            pipeline().preprocess(Payload("file", encoded(Image.new("RGB", (width, height)))))
        assert refused.value.code == code
    with pytest.raises(InvalidInput, match="takes an image"):
        pipeline().preprocess(Payload("json", b"1"))
