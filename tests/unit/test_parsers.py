"""Multipart forms and JSON bodies are read strictly: what is whole comes back equal, the rest is a named refusal."""

import asyncio
import json
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from urllib3.fields import RequestField
from urllib3.filepost import encode_multipart_formdata

from flambeau.errors import RequestError
from flambeau.pipelines import json_document
from flambeau.protocols import multipart
from flambeau.protocols.multipart import Part

FORM = "multipart/form-data; boundary=b"
HEAD = b'Content-Disposition: form-data; name="file"; filename="cat.jpg"'
DEPTH = 32


def parse(body: bytes | memoryview, content_type: str, *, max_parts: int) -> list[Part]:
    return asyncio.run(multipart.parse(body, content_type, max_parts=max_parts))


def parts(body: bytes, content_type: str = FORM, *, max_parts: int = 8) -> list[tuple[str, bytes]]:
    return [(part.name, bytes(part.data)) for part in parse(body, content_type, max_parts=max_parts)]


def refused_form(body: bytes, content_type: str = FORM, *, max_parts: int = 8) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse(body, content_type, max_parts=max_parts)
    return caught.value


def form(*contents: bytes, head: bytes = HEAD) -> bytes:
    return b"".join(b"--b\r\n" + head + b"\r\n\r\n" + content + b"\r\n" for content in contents) + b"--b--\r\n"


def headed(disposition: str) -> bytes:
    return form(b"x", head=b"Content-Disposition: " + disposition.encode())


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (form(b"abc"), [("file", b"abc")]),
        (form(b""), [("file", b"")]),
        (form(b"one", b"two"), [("file", b"one"), ("file", b"two")]),
        (form(), []),
        (b"a preamble\r\n" + form(b"abc"), [("file", b"abc")]),
        (b"\r\n" + form(b"abc"), [("file", b"abc")]),
        (b"about --b\r\n" + form(b"abc"), [("file", b"abc")]),
        (form(b"abc") + b"an epilogue", [("file", b"abc")]),
        (form(b"abc").removesuffix(b"\r\n"), [("file", b"abc")]),
        (form(b"abc").replace(b"--b\r\n", b"--b \t\r\n"), [("file", b"abc")]),
        (b"--b\r\n" + HEAD + b"\r\n\r\n--b--", [("file", b"")]),
        (form(b"x--b"), [("file", b"x--b")]),
        (form(b"a\n--b--\n--b\r\r\n-b--b--"), [("file", b"a\n--b--\n--b\r\r\n-b--b--")]),
        (form(b"\r\n\r\n"), [("file", b"\r\n\r\n")]),
        (form(b"a", head=HEAD.lower() + b"\r\nContent-Type: image/png"), [("file", b"a")]),
        (form(b"a", head=b"Content-Type: text/plain\r\n" + HEAD + b"\r\nX-Other:"), [("file", b"a")]),
    ],
)
def test_a_whole_form_is_read_to_the_byte_f32(body: bytes, expected: list[tuple[str, bytes]]) -> None:
    assert parts(body) == expected


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        ("form-data; name=file", "file"),
        ('form-data; name="file"', "file"),
        ('form-data; filename="a;b\\"c; name=no.jpg"; name="file"', "file"),
        ('form-data; NAME="file"', "file"),
        ('form-data; name="two words; and more"', "two words; and more"),
        ('form-data; name="a \\"quoted\\" name"', 'a "quoted" name'),
        ('form-data; name=""', ""),
        ('form-data; name="Ünïcode 猫"', "Ünïcode 猫"),
    ],
)
def test_names_of_fields_are_read_with_and_without_quotes_f32(disposition: str, name: str) -> None:
    assert parts(headed(disposition)) == [(name, b"x")]


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        'multipart/form-data; boundary=""',
        f"multipart/form-data; boundary={'b' * 71}",
        "multipart/form-data; boundary=bä",
        "multipart/form-data; boundary*=utf-8''b",
        "multipart/form-data; boundary*=b; boundary*0=b",
        f"multipart/form-data; boundary*{'9' * 5000}=b",
        "",
    ],
)
def test_a_form_without_a_usable_boundary_is_invalid_f32(content_type: str) -> None:
    error = refused_form(form(b"abc"), content_type)
    assert error.code == "invalid_multipart"
    assert "boundary" in error.message


def test_the_boundary_is_read_from_the_header_f32() -> None:
    body = form(b"abc").replace(b"--b", b"--a b:c")
    assert parts(body, 'Multipart/Form-Data; charset=utf-8; boundary="a b:c"') == [("file", b"abc")]
    assert parts(form(b"abc").replace(b"--b", b"--" + b"b" * 70), FORM + "b" * 69) == [("file", b"abc")]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no form at all",
        b"x--b\r\n\r\nabc",
        b"--c\r\n" + HEAD + b"\r\n\r\nabc\r\n--c--",
        form(b"abc").replace(b"--b\r\n", b"--bc\r\n"),
        form(b"abc", head=b""),
        form(b"abc", head=b"Content-Type: image/png"),
        form(b"abc", head=b"Content-Disposition: form-data"),
        form(b"abc", head=b"Content-Disposition"),
        form(b"abc", head=HEAD + b"\r\nX-Long: " + b"x" * 8192),
        b"--b\r\n\r\nabc\r\n--b--",
        b"--b\r\n" + HEAD + b"\r\n" + form(b"abc"),
        form(b"abc\r\n--bad line"),
        headed("form-data; name*=a; name*0=b"),
        headed(f"form-data; name*{'9' * 5000}=file"),
        headed("form-data; name*=utf-8''file"),
        form(b"a\r\nb").replace(b"--b\r\n" + HEAD + b"\r\n\r\n", b"--b\n" + HEAD + b"\n\n"),
    ],
)
def test_a_malformed_form_is_invalid_f32(body: bytes) -> None:
    assert refused_form(body).code == "invalid_multipart"


def test_a_form_with_bare_line_feeds_is_refused_f32() -> None:
    """U13: the reason is its line ends, and not that it is cut short."""
    error = refused_form(form(b"abc").replace(b"\r\n", b"\n"))
    assert error.code == "invalid_multipart"
    assert "LF" in error.message


def test_a_form_cut_anywhere_before_its_closing_boundary_is_an_error_f32() -> None:
    whole = form(b"some \r\n contents", b"more")
    end = len(whole) - len(b"\r\n")
    codes = {length: refused_form(whole[:length]).code for length in range(end)}
    assert {codes[length] for length in range(len(b"--b"), end)} == {"multipart_truncated"}
    assert {codes[length] for length in range(len(b"--b"))} == {"invalid_multipart"}
    assert parts(whole[:end]) == [("file", b"some \r\n contents"), ("file", b"more")]


def test_the_number_of_parts_is_bounded_t18() -> None:
    assert len(parts(form(*[b"x"] * 8))) == 8
    assert refused_form(form(*[b"x"] * 9)).code == "too_many_parts"
    assert refused_form(form(*[b"x"] * 50_000)).code == "too_many_parts"


def test_contents_are_not_copied_t18() -> None:
    body = form(bytes(1000))
    [part] = parse(body, FORM, max_parts=1)
    assert part.data.obj is body


NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters='"\\'), max_size=20)


@given(st.lists(st.tuples(NAMES, st.binary() | st.sampled_from([b"\r\n", b"--", b"\r\n--", b"\r\n\r\n"]))))
def test_any_form_that_urllib3_writes_comes_back_equal_f32(fields: list[tuple[str, bytes]]) -> None:
    encoded = []
    for name, data in fields:
        field = RequestField(name, data, filename="cat.jpg")
        field.make_multipart(content_type="application/octet-stream")
        encoded.append(field)
    body, content_type = encode_multipart_formdata(encoded)
    assert parts(body, content_type, max_parts=len(fields)) == fields


@pytest.mark.long
@given(st.binary(), st.text() | st.just(FORM))
@example(b"--b\r\n\r\n\r\n\r\n--b--", FORM)
def test_no_bytes_make_the_form_parser_raise_anything_else(body: bytes, content_type: str) -> None:
    for text in (body, b"--b\r\n" + body, form(body), form(b"x", head=body), headed("form-data; ") + body):
        try:
            parse(text, content_type, max_parts=4)
        except RequestError as error:
            assert error.code in ("invalid_multipart", "multipart_truncated", "too_many_parts")  # noqa: PT017


def read(body: bytes) -> object:
    return json.loads(bytes(json_document.read_input(body, max_depth=DEPTH)))


def refused_json(body: bytes) -> RequestError:
    with pytest.raises(RequestError) as caught:
        json_document.read_input(body, max_depth=DEPTH)
    return caught.value


OPENERS = {
    "arrays": (b"[",),
    "objects": (b'{"a":',),
    "arrays in objects": (b'{"a":', b"["),
    "objects in arrays": (b"[", b'{"a":'),
    "a mixture": (b"[", b"[", b'{"a":', b'{"a":', b'{"b":', b"["),
}


def nested(kind: str, depth: int) -> bytes:
    """A body whose deepest value lies within `depth` arrays and objects, the body's own included."""
    openers = [OPENERS[kind][level % len(OPENERS[kind])] for level in range(depth - 1)]
    closers = [b"]" if opener == b"[" else b"}" for opener in reversed(openers)]
    return b'{"input":' + b"".join(openers) + b"1" + b"".join(closers) + b"}"


@pytest.mark.parametrize("kind", OPENERS)
def test_nesting_is_allowed_up_to_exactly_the_limit_f33(kind: str) -> None:
    for depth in (DEPTH - 1, DEPTH):
        assert read(nested(kind, depth)) == json.loads(nested(kind, depth))["input"]
    assert refused_json(nested(kind, DEPTH + 1)).code == "json_too_deep"
    assert refused_json(nested(kind, DEPTH + 2)).code == "json_too_deep"


@pytest.mark.parametrize("depth", [1_000, 100_000, 250_000])
@pytest.mark.parametrize("kind", OPENERS)
def test_deep_nesting_is_refused_without_recursion_f33(kind: str, depth: int) -> None:
    body = nested(kind, depth)
    limit = sys.getrecursionlimit()
    for text in (body, body[: len(body) // 2], body.replace(b'{"input":', b"", 1)):
        assert refused_json(text).message == f"the JSON is nested more than {DEPTH} levels deep"
    assert sys.getrecursionlimit() == limit


@pytest.mark.parametrize(
    "value",
    [
        ["[" * 100, "]" * 100],
        "{" * 10_000,
        '"' + "[" * 100,
        "\\" + "[{" * 100,
        ['\\"', '\\\\"[' * 100, "\\\\"],
        {"[" * 50: "{" * 50, '\\"[[': 1},
        [[]] * 1000,
        [{"a": [{}]}] * 1000,
    ],
)
def test_brackets_within_strings_and_side_by_side_do_not_count_f33(value: object) -> None:
    assert read(json.dumps({"input": value}).encode()) == value


def test_strings_that_are_never_closed_cost_no_more_than_others_f33() -> None:
    """Escaped quotes without end used to cost quadratic time: here minutes, which the suite's limit would show."""
    for tail in (b"", b"[" * 40, b"\\", b"NaN"):
        assert refused_json(b"[" * 20 + b'{"input": "' + b'\\"' * 1_000_000 + tail).code in (
            "invalid_json", "json_too_deep",
        )  # fmt: skip


def test_a_cut_body_is_cut_and_not_too_deep_f34() -> None:
    error = refused_json(b'{"input": [' + b"[1,2]," * 100)
    assert error.message == "the body is not JSON: it is cut short"


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity", "[1, NaN]", '{"a": -Infinity}', '["x\\"NaN", NaN]'])
def test_numbers_that_are_not_finite_are_refused_by_name_f34(word: str) -> None:
    assert refused_json(f'{{"input": {word}}}'.encode()).code == "json_not_finite"


@pytest.mark.parametrize(
    "text", ['"NaN"', '["Infinity", "-Infinity"]', '{"NaN": 1}', '"\\"NaN"', "-0", "1e999", "null"]
)
def test_the_same_words_within_strings_are_text_f34(text: str) -> None:
    assert bytes(json_document.read_input(f'{{"input": {text}}}'.encode(), max_depth=DEPTH)) == text.encode()


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b"", "cut short"),
        (b'{"input": 1', "cut short"),
        (b"\xef\xbb\xbf" + b'{"input": 1}', "is not JSON"),
        ('{"input": 1}'.encode("utf-16"), "UTF-8"),
        ('{"input": 1}'.encode("utf-16-le"), "is not JSON"),
        (b'{"input": "\xff"}', "UTF-8"),
        (b'{"input": ["\xc3", 1]}', "UTF-8"),
        (b'{"\xff": 1, "input": 2}', "UTF-8"),
        (b'{"input": 1} {"input": 2}', "is not JSON"),
        (b'{"input": 1}x', "is not JSON"),
        (b'{"input": 1,}', "is not JSON"),
        (b"{'input': 1}", "is not JSON"),
        (b'{"input": 01}', "is not JSON"),
        (b'{"input": "a\nb"}', "is not JSON"),
        (b'{"input": "\\x"}', "is not JSON"),
        (b'{"input": "\\"}', "cut short"),
        (b"5", "not an object"),
        (b'"input"', "not an object"),
        (b"null", "not an object"),
        (b'[{"input": 1}]', "not an object"),
        (b"{}", 'has no "input"'),
        (b'{"Input": 1}', 'has no "input"'),
        (b'{"a": {"input": 1}}', 'has no "input"'),
    ],
)
def test_a_body_that_is_not_what_it_should_be_is_refused_f34(body: bytes, found: str) -> None:
    error = refused_json(body)
    assert error.code == "invalid_json"
    assert found in error.message


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
        max_leaves=20,
    ),
    st.booleans(),
)
def test_any_value_under_input_comes_back_equal_f34(value: object, ascii_only: bool) -> None:
    body = json.dumps({"other": [1], "input": value}, ensure_ascii=ascii_only).encode()
    assert read(body) == value


@given(st.binary() | st.text().map(str.encode))
def test_no_bytes_make_the_json_reader_raise_anything_else_f34(body: bytes) -> None:
    for text in (body, b'{"input":' + body, b'{"input":' + body + b"}", b'{"input":"' + body + b'"}', b"[" * 40 + body):
        try:
            json_document.read_input(text, max_depth=DEPTH)
        except RequestError as error:
            assert error.code in ("invalid_json", "json_too_deep", "json_not_finite")  # noqa: PT017
