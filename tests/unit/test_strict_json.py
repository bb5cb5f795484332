"""Plain answers become strict JSON: what has no JSON form is an error; what is not finite is null, and counted."""

import json
import math

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flambeau.answers.value import encode
from flambeau.types import Value


class Stranger:
    """A value without a JSON form."""


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (None, b"null"),
        ("null", b'"null"'),
        (0.5, b"0.5"),
        ([1, "a", None, True], b'[1,"a",null,true]'),
        ({"a": {"b": (1, 2)}}, b'{"a":{"b":[1,2]}}'),
        ({1: "one"}, b'{"1":"one"}'),
        ({3}, b"[3]"),
        (np.array([[1, 2], [3, 4]]), b"[[1,2],[3,4]]"),
        (np.array(7), b"7"),
        (np.array([True, False]), b"[true,false]"),
        (np.array(["a", "b"]), b'["a","b"]'),
        (np.array([0.5], np.float16), b"[0.5]"),
        (np.array([0.5], np.longdouble), b"[0.5]"),
        (np.zeros((2, 0)), b"[[],[]]"),
        (np.float32(0.5), b"0.5"),
        (np.float64(0.5), b"0.5"),
        (np.longdouble(0.5), b"0.5"),
        (np.int64(-3), b"-3"),
        (np.uint64(2**64 - 1), b"18446744073709551615"),
        (np.bool_(True), b"true"),
        (np.str_("a"), b'"a"'),
        ({"scores": np.array([1, 2], np.float32), "best": np.int32(1)}, b'{"scores":[1.0,2.0],"best":1}'),
        (torch.tensor([[1.0, 2.0]]), b"[[1.0,2.0]]"),
        (torch.tensor(3), b"3"),
        (torch.tensor([1.5], requires_grad=True), b"[1.5]"),
        (torch.tensor([1.5], dtype=torch.bfloat16), b"[1.5]"),
        ([{"x": torch.tensor([1])}, np.array([2])], b'[{"x":[1]},[2]]'),
    ],
    ids=str,
)
def test_answers_become_strict_json(answer: object, text: bytes) -> None:
    assert encode(answer) == Value(text, nonfinite=0)


@pytest.mark.parametrize(
    ("answer", "text", "nonfinite"),
    [
        (math.nan, b"null", 1),
        ([1.0, math.inf, None], b"[1.0,null,null]", 1),
        ({"a": [-math.inf], "b": {"c": math.nan}}, b'{"a":[null],"b":{"c":null}}', 2),
        ((math.nan,), b"[null]", 1),
        ({math.inf}, b"[null]", 1),
        (np.array([math.nan, 1, math.inf]), b"[null,1.0,null]", 2),
        (np.float32("nan"), b"null", 1),
        (np.longdouble("nan"), b"null", 1),
        (torch.tensor([math.nan, 2.0], requires_grad=True), b"[null,2.0]", 1),
        ([None, "null", "nan", np.array([1])], b'[null,"null","nan",[1]]', 0),
    ],
    ids=str,
)
def test_numbers_that_are_not_finite_become_null_and_real_nulls_are_not_counted_f27(
    answer: object, text: bytes, nonfinite: int
) -> None:
    assert encode(answer) == Value(text, nonfinite)


@pytest.mark.parametrize(
    "answer",
    [
        Stranger(),
        [1, Stranger()],
        {"a": {"b": Stranger()}},
        {Stranger()},
        {Stranger(): 1},
        object,
        1j,
        np.array([1j]),
        np.array([Stranger()]),
        np.array(["2020-01-01"], "datetime64[D]"),
        np.zeros(1, [("a", int)]),
        (number for number in [1, 2]),
        range(3),
    ],
    ids=lambda answer: type(answer).__name__,
)
def test_a_value_without_a_json_form_is_a_type_error(answer: object) -> None:
    with pytest.raises(TypeError):
        encode(answer)


def test_a_list_that_holds_itself_is_an_error_and_no_crash() -> None:
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(RecursionError):
        encode(endless)


@pytest.mark.long
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_any_plain_answer_is_strict_json_with_its_nulls_accounted_for_f27(answer: object) -> None:
    value = encode(answer)
    decoded = json.loads(value.json, parse_constant=pytest.fail)
    assert msgspec.json.decode(value.json) == decoded
    assert _nones(decoded) - _nones(answer) == value.nonfinite


def _nones(value: object) -> int:
    if isinstance(value, dict):
        return sum(map(_nones, value.values()))
    return sum(map(_nones, value)) if isinstance(value, list) else int(value is None)
