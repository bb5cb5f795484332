"""JSON numbers to tensors and back: the nesting rules, and the sentences about wrong input."""

import json
import math
import subprocess
import sys

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flambeau.bundle.storage import TensorConfig
from flambeau.errors import InvalidInput
from flambeau.pipelines import json_numbers as numbers_module
from flambeau.pipelines import tensor
from flambeau.pipelines.base import Pipeline, open_pipeline
from flambeau.tasks.tensor import MAX_ROWS
from flambeau.types import Item, Options, Payload, TensorSpec, Value

FOUR = "input must be a list of 4 numbers, or a list of such lists, but "

NULL = (
    "it has null where a number belongs, and nothing in the network says what it makes of missing ones (if it takes "
    "NaN, send that as binary data over KServe v2)"
)


def pipeline(shape: tuple[int, ...] = (4,), dtype: str = "float32") -> Pipeline:
    return open_pipeline(
        TensorConfig(),
        labels=None,
        inputs=[TensorSpec("rows", dtype, shape)],
        outputs=[TensorSpec("out", "float32", (2,))],
    )


def prepared(text: str, shape: tuple[int, ...] = (4,), dtype: str = "float32") -> npt.NDArray[np.generic]:
    [(name, array)] = pipeline(shape, dtype).preprocess(Payload("json", text.encode())).items()
    assert name == "rows"
    assert array.dtype == dtype
    return array


def refusal(text: str, shape: tuple[int, ...] = (4,), dtype: str = "float32") -> str:
    with pytest.raises(InvalidInput) as caught:
        prepared(text, shape, dtype)
    assert caught.value.code == "invalid_tensor"
    return caught.value.message


def answered(text: str, rows: npt.NDArray[np.generic], shape: tuple[int, ...] = (4,)) -> object:
    item = Item(Payload("json", text.encode()), Options())
    answer = pipeline(shape).postprocess({"out": rows}, item)
    assert isinstance(answer, Value)
    return json.loads(answer.json)


@pytest.mark.parametrize(
    ("shape", "text", "expected"),
    [
        ((4,), "[1, 2, 3, 4.5]", [[1, 2, 3, 4.5]]),
        ((4,), "[[1, 2, 3, 4]]", [[1, 2, 3, 4]]),
        ((4,), " [ [1, 2, 3, 4],\n\t[5, 6, 7, -0] ] ", [[1, 2, 3, 4], [5, 6, 7, 0]]),
        ((1,), "7", [[7]]),
        ((1,), "[7]", [[7]]),
        ((1,), "[[7], [8]]", [[7], [8]]),
        ((1, 1), "7", [[[7]]]),
        ((), "7", [7]),
        ((), "[7, 8, 9]", [7, 8, 9]),
        ((2, 2), "[[1, 2], [3, 4]]", [[[1, 2], [3, 4]]]),
        ((2, 2), "[[[1, 2], [3, 4]], [[5, 6], [7, 8]]]", [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]),
        ((4,), "[1e-50, 1e38, 0.1, 123456789]", [[0, np.float32(1e38), np.float32(0.1), 123456792]]),
    ],
)
def test_one_row_several_rows_or_a_lone_number_are_told_apart_by_nesting(
    shape: tuple[int, ...], text: str, expected: list[object]
) -> None:
    assert prepared(text, shape).tolist() == expected


@pytest.mark.parametrize(
    ("shape", "text", "rows", "expected"),
    [
        ((4,), "[1, 2, 3, 4]", [[5, 6]], [5, 6]),
        ((4,), "[[1, 2, 3, 4]]", [[5, 6]], [[5, 6]]),
        ((4,), "[[1, 2, 3, 4], [1, 2, 3, 4]]", [[5, 6], [7, 8]], [[5, 6], [7, 8]]),
        ((1,), "7", [[5]], 5),
        ((1,), " 7 ", [[5]], 5),
        ((1,), "[7]", [[5]], [5]),
        ((1,), "[[7]]", [[5]], [[5]]),
        ((1,), "7", [[5, 6]], [5, 6]),
        ((), "7", [5], 5),
        ((), "[7, 8]", [5, 6], [5, 6]),
    ],
)
def test_the_answer_is_nested_as_the_input_was(
    shape: tuple[int, ...], text: str, rows: list[object], expected: object
) -> None:
    assert answered(text, np.array(rows, np.float32), shape) == expected


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('"1"', "it has text where a number belongs"),
        ('[1, 2, 3, "4"]', "it has text where a number belongs"),
        ("null", NULL),
        ("[[1, 2, 3, null]]", NULL),
        ("true", "it has a truth value where a number belongs"),
        ('{"a": 1}', "it has an object where a number belongs"),
        ("[1, [2], 3, 4]", "it has a list where a number belongs"),
        ("[[1, 2, 3, 4], 5]", "it has a number where a list belongs"),
        ("[[1, 2, 3, 4], [5, 6, 7]]", "its lists are of unequal length"),
        ("[]", "its shape is [0]"),
        ("[[]]", "its shape is [1, 0]"),
        ("5", "its shape is []"),
        ("[1, 2, 3]", "its shape is [3]"),
        ("[[1, 2, 3, 4, 5]]", "its shape is [1, 5]"),
        ("[[[1, 2, 3, 4]]]", "its shape is [1, 1, 4]"),
        ("[1, 2, 3, 1e999]", "one of its numbers is out of range"),
        ("[1, 2, 3, -1e39]", "one of its numbers is out of range for float32"),
        (f"[1, 2, 3, {'9' * 5000}]", "one of its numbers is out of range"),
        (f"[{','.join(['[1, 2, 3, 4]'] * (MAX_ROWS + 1))}]", "it has 1025 rows, and the most is 1024"),
        ("[" * 70 + "1" + "]" * 70, "its lists are of unequal length"),
    ],
)
def test_a_wrong_input_is_described_in_a_sentence(text: str, found: str) -> None:
    assert refusal(text) == FOUR + found


FILLER = " " * 300_000  # so that the text is taken for a large one


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('[1, 2, 3, "4"]', "it has text where a number belongs"),
        ("[[1, 2, 3, null]]", NULL),
        ("[1, 2, 3, {}]", "it has an object where a number belongs"),
        ("[1, [2], 3, 4]", "its lists are not of that shape"),
        ("[[1, 2, 3, 4], 5]", "its lists are not of that shape"),
        ("[[1, 2, 3, 4], [5, 6, 7]]", "its lists are not of that shape"),
        ("[]", "it has fewer numbers than a row"),
        ("[[1, 2, 3, 4, 5]]", "its lists are not of that shape"),
        ("[[[1, 2, 3, 4]]]", "its lists are nested 3 deep"),
        ("[1, 2, 3, 1e999]", "one of its numbers is out of range"),
        ("[1, 2, 3, -1e39]", "one of its numbers is out of range for float32"),
        ("1[, 2, 3, 4]", "it cannot be read"),
        ("[1, 2, 3 4]", "it cannot be read"),
        (f"[{','.join(['[1, 2, 3, 4]'] * (MAX_ROWS + 1))}]", "it has 1025 rows, and the most is 1024"),
    ],
)
def test_a_large_wrong_input_is_described_in_a_sentence_a13(text: str, found: str) -> None:
    assert refusal(text[:-1] + FILLER + text[-1]) == FOUR + found


def test_a_large_input_is_read_as_a_small_one_a13() -> None:
    values = np.random.default_rng(1).normal(size=(60, 3, 50, 50)).astype(np.float32)
    text = json.dumps(values.tolist())
    assert len(text) > 4_000_000
    assert (prepared(text, (3, 50, 50)) == values).all()
    assert prepared(f"{FILLER}7", (1,)).tolist() == [[7]]
    assert prepared(f"[7, {FILLER} 8]", ()).tolist() == [7, 8]
    assert prepared(json.dumps(list(range(100_000))), (100_000,), "int64").tolist() == [list(range(100_000))]


@settings(deadline=None)
@given(st.data())
def test_large_and_small_inputs_are_taken_and_refused_alike_a13(data: st.DataObject) -> None:
    """Over any shape and dtype, and over texts with an error in them: the two ways of reading know of one another."""
    shape = tuple(data.draw(st.lists(st.integers(1, 3), max_size=3)))
    dtype = data.draw(st.sampled_from(["float32", "int8", "bool"]))
    rows = data.draw(st.one_of(st.none(), st.integers(1, 3)))
    number = {"float32": st.sampled_from(["0", "-1.5", "1e3", "1e39"]), "int8": st.sampled_from(["0", "-7", "200"])}
    numbers = number.get(dtype, st.sampled_from(["true", "false"]))

    def nested(sizes: tuple[int, ...]) -> str:
        if not sizes:
            return data.draw(numbers)
        return "[" + data.draw(st.sampled_from([",", " , "])).join(nested(sizes[1:]) for _ in range(sizes[0])) + "]"

    text = nested(shape if rows is None else (rows, *shape))
    if data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(text)))
        cut = data.draw(st.integers(0, 2))
        text = (
            text[:at]
            + data.draw(st.sampled_from(["", "[", "]", ",", "[]", "1", " ", '"a"', "null"]))
            + text[at + cut :]
        )
    found = []
    for small in (1 << 20, -1):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tensor, "_SMALL", small)
            patch.setattr(numbers_module, "_PIECE", 2)
            try:
                found.append(prepared(text, shape, dtype).tolist())
            except InvalidInput:
                found.append(None)
    assert found[0] == found[1]


@pytest.mark.long
@pytest.mark.parametrize(
    "text",
    [
        b"[" + b"[]," * 11_000_000 + b"[]]",
        b"[" + b"[[[[]]]]," * 3_700_000 + b"[[[[]]]]]",
        b"[" + b"[1,2,3,4]," * 3_300_000 + b"[1,2,3,4]]",
        b"[" + b"0," * 16_700_000 + b"0]",
    ],
    ids=["empty lists", "deep lists", "rows", "numbers"],
)
def test_32_mib_of_lists_cost_no_more_than_a_few_copies_a13(text: bytes) -> None:
    """Measured in a process of its own: before, it was 674 to 1,710 MiB."""
    code = """
import resource, sys
from flambeau.bundle.storage import TensorConfig
from flambeau.errors import InvalidInput
from flambeau.pipelines.base import open_pipeline
from flambeau.types import Payload, TensorSpec
text = sys.stdin.buffer.read()
given, answered = TensorSpec("x", "float32", (4,)), TensorSpec("y", "float32", (2,))
pipeline = open_pipeline(TensorConfig(), labels=None, inputs=[given], outputs=[answered])
most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    pipeline.preprocess(Payload("json", text))
except InvalidInput:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most)
"""
    done = subprocess.run([sys.executable, "-c", code], input=text, capture_output=True, check=True)
    assert int(done.stdout) * 1024 < 4 * len(text)


def test_as_many_rows_as_allowed_are_taken() -> None:
    assert prepared(f"[{','.join(['[1, 2, 3, 4]'] * MAX_ROWS)}]").shape == (MAX_ROWS, 4)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((), "a number, or a list of numbers"),
        ((1,), "a number, or nested lists of shape [1], or a list of those"),
        ((3,), "a list of 3 numbers, or a list of such lists"),
        ((2, 3), "nested lists of shape [2, 3], or a list of those"),
    ],
)
def test_the_sentence_says_what_the_model_takes(shape: tuple[int, ...], expected: str) -> None:
    assert refusal('"x"', shape) == f"input must be {expected}, but it has text where a number belongs"


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3), (1, 1)])
@pytest.mark.parametrize("dtype", ["float32", "int64", "bool"])
def test_the_pipeline_can_prepare_its_own_example(shape: tuple[int, ...], dtype: str) -> None:
    one = pipeline(shape, dtype)
    assert one.preprocess(one.example())["rows"].shape == (1, *shape)


@pytest.mark.parametrize(
    ("dtype", "text", "expected"),
    [
        ("int64", "[1, -2]", [[1, -2]]),
        ("int64", f"[{2**63 - 1}, {-(2**63)}]", [[2**63 - 1, -(2**63)]]),
        ("uint8", "[0, 255]", [[0, 255]]),
        ("bool", "[true, false]", [[True, False]]),
        ("float64", "[1e39, 0.1]", [[1e39, 0.1]]),
    ],
)
def test_numbers_keep_their_value_in_the_models_dtype(dtype: str, text: str, expected: list[object]) -> None:
    assert prepared(text, (2,), dtype).tolist() == expected


@pytest.mark.parametrize(
    ("dtype", "text", "found"),
    [
        ("int64", "[1, 2.5]", "a decimal number where a whole number belongs"),
        ("int64", f"[1, {2**63}]", "one of its numbers is out of range for int64"),
        ("int8", "[1, 128]", "one of its numbers is out of range for int8"),
        ("uint8", "[1, -1]", "one of its numbers is out of range for uint8"),
        ("int64", '[1, "2"]', "text where a whole number belongs"),
        ("bool", "[true, 1]", "a number where a truth value belongs"),
        ("float16", "[1, 70000]", "one of its numbers is out of range for float16"),
    ],
)
def test_numbers_that_the_models_dtype_cannot_hold_are_refused(dtype: str, text: str, found: str) -> None:
    assert refusal(text, (2,), dtype).endswith(found)


def test_a_file_is_refused_with_an_example_of_what_to_send() -> None:
    for shape, example in (((2,), "[0.0,0.0]"), ((), "0.0"), ((30, 30), "[…]")):
        with pytest.raises(InvalidInput) as caught:
            pipeline(shape).preprocess(Payload("file", b"\x89PNG"))
        assert caught.value.code == "unsupported_media_type"
        assert f'send JSON like {{"input": {example}}}' in caught.value.message


@settings(deadline=None)
@given(st.lists(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3)))
def test_any_rows_arrive_as_they_were_sent(rows: list[list[float]]) -> None:
    if rows:
        assert prepared(json.dumps(rows), (3,)).tolist() == rows
    else:
        assert "its shape is [0]" in refusal(json.dumps(rows), (3,))


def together(
    texts: list[str], shape: tuple[int, ...] = (4,), dtype: str = "float32", *, below: int = 0
) -> npt.NDArray[np.generic] | None:
    made = tensor.TensorPipeline(
        postprocess=pipeline().postprocess, inputs=[TensorSpec("rows", dtype, shape, below=below)]
    )
    found = made.together([Payload("json", text.encode()) for text in texts])
    return None if found is None else found["rows"]


ROW = "[1, 2, 3, 4]"


@pytest.mark.parametrize(
    ("shape", "dtype", "texts"),
    [
        ((4,), "float32", [ROW, " [0.1,\n2e3, -0, 16777217] "]),
        ((2, 2), "float16", ["[[1, 2], [3, 4]]", "[[0.1, 6e4], [7, 8]]", "[[0, 0], [0, 0]]"]),
        ((2,), "int64", ["[1, 2]", "[9007199254740993, -1]"]),
        ((2,), "bool", ["[true, false]", "[false, false]"]),
        ((), "float32", ["1", "2.5"]),
        ((1,), "float32", ["[1]", "[2.5]"]),
    ],
)
def test_plain_rows_are_read_in_one_go_as_one_by_one(shape: tuple[int, ...], dtype: str, texts: list[str]) -> None:
    rows = together(texts, shape, dtype)
    assert rows is not None
    assert rows.dtype == dtype
    assert rows.tobytes() == b"".join(prepared(text, shape, dtype).tobytes() for text in texts)


@pytest.mark.parametrize(
    ("shape", "dtype", "texts"),
    [
        ((4,), "float32", [ROW, f"[{ROW}]"]),  # a list of rows
        ((4,), "float32", [f"[{ROW}]", f"[{ROW}]"]),
        ((1,), "float32", ["[1]", "2"]),  # a lone number for a row
        ((4,), "float32", [ROW, "[1, 2, 3]"]),
        ((4,), "float32", [ROW, '[1, 2, 3, "]"]']),
        ((4,), "float32", [ROW, "[1, 2, 3, null]"]),
        ((4,), "float32", [ROW, "[1, 2, 3, 1e39]"]),  # too large for the dtype
        ((4,), "float32", [ROW, "[1, 2, 3, 1e400]"]),
        ((2,), "int8", ["[1, 2]", "[1, 200]"]),
        ((2,), "int64", ["[1, 2]", "[1, 2.5]"]),
        ((-1,), "float32", ["[1, 2]", "[1, 2]"]),  # a free axis
    ],
)
def test_what_is_no_plain_row_is_read_by_itself(shape: tuple[int, ...], dtype: str, texts: list[str]) -> None:
    assert together(texts, shape, dtype) is None


def test_a_place_outside_of_the_table_is_found_among_rows_that_are_read_in_one_go() -> None:
    assert together(["[1, 2]", "[3, 4]"], (2,), "int64", below=5) is not None
    assert together(["[1, 2]", "[3, 5]"], (2,), "int64", below=5) is None


@pytest.mark.parametrize(
    "texts",
    [
        [f"{ROW}, {ROW}", ROW],
        [f"{ROW}, {ROW}", ""],
        [f"{ROW}, {ROW}", " "],
        ["[1, 2", "3, 4]", f"{ROW}, {ROW}"],
        ["1, 2, 3, 4], [5, 6, 7, 8", ROW],
        [ROW, f"], {ROW}, ["],
    ],
)
def test_texts_that_are_not_one_value_each_never_give_one_item_the_row_of_another(texts: list[str]) -> None:
    assert together(texts) is None


@settings(deadline=None)
@given(st.lists(st.text(alphabet="[]1, 2", max_size=8), min_size=2, max_size=4))
def test_whatever_is_read_in_one_go_is_what_each_text_says(texts: list[str]) -> None:
    rows = together(texts, (2,))
    if rows is not None:
        for row, text in zip(rows.tolist(), texts, strict=True):
            assert row == json.loads(text)


def test_outputs_that_are_not_finite_become_null_and_are_counted_f27() -> None:
    rows = np.array([[1, math.nan], [math.inf, -math.inf]], np.float32)
    value = pipeline().postprocess({"out": rows}, Item(Payload("json", b"[[1,2,3,4],[1,2,3,4]]"), Options()))
    assert value == Value(b"[[1.0,null],[null,null]]", nonfinite=3)


def test_a_lone_number_that_is_not_finite_becomes_null_f27() -> None:
    rows = np.array([[math.nan]], np.float32)
    assert pipeline((1,)).postprocess({"out": rows}, Item(Payload("json", b"5"), Options())) == Value(b"null", 1)
