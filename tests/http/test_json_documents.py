"""JSON documents: images in base64 (U4), members sent twice (A18, T-22), and long ones, in replicas (P4, A13)."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flambeau.bundle.storage import Bundle
from flambeau.errors import RequestError
from flambeau.pipelines import json_document
from flambeau.pipelines.base64_image import read_image
from tests.support.fronts import Front, open_front, post, refused
from tests.support.server import Serve

CAT = {"class_id": "n02124075", "class_name": "Egyptian_cat"}
JSON = {"Content-Type": "application/json"}
LONG = 2 * json_document.SHORT


@pytest.fixture(scope="module", params=["serve", "flask"])
def cats(
    request: pytest.FixtureRequest, serve: Serve, tmp_path_factory: pytest.TempPathFactory, default_bundle: Bundle
) -> Iterator[Front]:
    with open_front(request.param, serve, tmp_path_factory.mktemp("front"), None) as front:
        yield front


@pytest.fixture(scope="module", params=["serve", "flask"])
def doubles(
    request: pytest.FixtureRequest, serve: Serve, tmp_path_factory: pytest.TempPathFactory, double_py: Path
) -> Iterator[Front]:
    folder = tmp_path_factory.mktemp("front")
    with open_front(request.param, serve, folder, f"{double_py}:Double", allow_code=True) as front:
        yield front


# -- base64 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap",
    [
        lambda text: {"image": text},
        lambda text: {"input": text},
        lambda text: {"inputs": text},
        lambda text: {"input": {"b64": text}},
        lambda text: {"instances": [{"b64": text}]},
        lambda text: {"instances": [{"image_bytes": {"b64": text}}]},
        lambda text: {"image": f"data:image/png;base64,{text}", "top": 1},
        lambda text: {"image": text.replace("+", "-").replace("/", "_").rstrip("=")},
        lambda text: {"image": "\r\n".join(text[start : start + 76] for start in range(0, len(text), 76))},
    ],
)
def test_an_image_in_base64_is_answered_as_the_file_is_u4(cats: Front, cat: bytes, wrap: Any) -> None:
    assert post(cats, json=wrap(base64.b64encode(cat).decode())).json() == CAT


def test_base64_takes_the_options_that_files_take_u4(cats: Front, cat: bytes) -> None:
    sent = {"image": base64.b64encode(cat).decode()}
    assert len(post(cats, "/predict?top_k=3", json=sent).json()["predictions"]) == 3
    assert "below the threshold" in post(cats, "/predict?threshold=0.99", json=sent).json()["reason"]


@pytest.mark.parametrize(
    ("sent", "status", "code", "told"),
    [
        ({"input": 3}, 415, "unsupported_media_type", '"input" is neither base64'),
        ({"input": [[1, 2], [3, 4]]}, 415, "unsupported_media_type", '"input" is neither base64'),
        ({"input": {"url": "https://example.org/cat.jpg"}}, 415, "unsupported_media_type", '"input" is neither'),
        ({"image": "https://example.org/cat.jpg"}, 400, "input_rejected", "not valid base64"),
        ({"image": "cat.jpg"}, 400, "input_rejected", "not valid base64"),
        ({"image": "data:image/svg+xml,<svg/>"}, 400, "input_rejected", "data URL"),
        ({"image": ""}, 400, "empty_body", '"image" is empty'),
        ({"picture": "AAAA"}, 400, "invalid_json", 'neither "image" nor "input"'),
        ({"image": "AAAA", "input": "AAAA"}, 415, "unsupported_media_type", "one image"),
        ({"instances": [{"b64": "AAAA"}] * 2}, 415, "unsupported_media_type", "2 members"),
        ({"instances": []}, 415, "unsupported_media_type", "0 members"),
        ({"inputs": [{"name": "x", "shape": [1], "datatype": "BYTES", "data": ["AAAA"]}]}, 415,
         "unsupported_media_type", '"inputs" is neither base64'),
        ({"image": base64.b64encode(b"no picture").decode()}, 415, "unsupported_image_format", "not an image"),
        ([1], 400, "invalid_json", "not an object"),
    ],
)  # fmt: skip
def test_what_is_no_image_is_told_what_to_send_u4(cats: Front, sent: object, status: int, code: str, told: str) -> None:
    sentence = refused(post(cats, json=sent), status, code)
    assert told in sentence
    if code not in ("empty_body", "unsupported_image_format"):
        assert '{"image": "<the file in base64>"}' in sentence


@pytest.mark.parametrize(
    ("head", "data", "code", "told"),
    [
        ('name="file"; filename="a"\r\nContent-Transfer-Encoding: base64', b"QUJD", "unsupported_content_encoding",
         "Content-Transfer-Encoding"),
        ('name="file"', b"cat.jpg", "missing_file", "-F file=@NAME"),
        ('name="image"', b"/home/me/pictures/my cat.jpeg", "missing_file", "-F file=@NAME"),
        ('name="file"', base64.b64encode(bytes(300)), "unsupported_content_encoding", "base64 text"),
    ],
)  # fmt: skip
def test_a_part_that_is_no_file_is_told_what_it_is_u4(
    cats: Front, head: str, data: bytes, code: str, told: str
) -> None:
    body = b"--b\r\nContent-Disposition: form-data; " + head.encode() + b"\r\n\r\n" + data + b"\r\n--b--\r\n"
    answered = post(cats, data=body, headers={"Content-Type": "multipart/form-data; boundary=b"})
    assert told in refused(answered, 400 if code == "missing_file" else 415, code)


def test_an_octet_stream_by_its_other_name_is_a_file_u19(cats: Front, cat: bytes) -> None:
    assert post(cats, data=cat, headers={"Content-Type": "binary/octet-stream"}).json() == CAT


# -- members sent twice ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b'{"input":1,"input":2}',
        b'{"input":1,"x":[1,"input"],"input":1}',
        b'{"\\u0069nput":1,"input":2}',
        b'{"input":1,"inp\\u0075t":2}',
        b'{"input":{"input":1},"input":2}',
        b'{"input":"a\\"input\\":","input":2}',
        b'{"input":1,"input":2' + b" " * LONG + b"}",
    ],
)
def test_an_input_that_is_sent_twice_is_refused_a18(doubles: Front, body: bytes) -> None:
    """T-22: readers differ in which one counts."""
    assert "more than once" in refused(post(doubles, data=body, headers=JSON), 400, "invalid_json")


@pytest.mark.parametrize(
    "body",
    [
        b'{"input":4}', b'{"x":"input","input":4}', b'{"x":{"input":1},"input":4}', b'{"x":[{"input":1}],"input":4}',
        b'{"x":"\\"input\\":","input" : 4 }', b'{"y":"\\\\","x":"a\\"input","input":4,"z":"\\u0041"}',
    ],
)  # fmt: skip
def test_the_word_elsewhere_is_not_a_second_one_a18(doubles: Front, body: bytes) -> None:
    assert post(doubles, data=body, headers=JSON).json() == {"output": 8.0}


@pytest.mark.parametrize(
    "body",
    [
        b'{"image":"AAAA","image":"AAAA"}',
        b'{"input":{"b64":"AAAA","b64":"AAAA"}}',
        b'{"instances":[{"image_bytes":{"b64":"AAAA","b64":"AAAA"}}]}',
        b'{"instances":[{"b64":"AAAA"}],"instances":[{"b64":"AAAA"}]}',
    ],
)
def test_an_image_that_is_sent_twice_is_refused_a18(body: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        read_image(body, max_depth=32)
    assert "more than once" in caught.value.message


# -- long documents ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"input": 4' + b" " * LONG + b"}", ""),
        (b'{"input": "' + b"x" * LONG + b'"}', "input_rejected"),
        (b'{"input": [' + b"[0,]," * LONG, "invalid_json"),
        (b'{"input": ' + b" " * LONG + b"NaN}", "json_not_finite"),
        (b'{"input": ' + b"[" * 33 + b" " * LONG + b"]" * 33 + b"}", "json_too_deep"),
        (b'{"input": "' + b"x" * LONG + b'\xff"}', "invalid_json"),
        (b'{"input": "' + b"x" * LONG, "invalid_json"),
        (b'{"x": "' + b"x" * LONG + b'"}', "invalid_json"),
    ],
)
def test_a_long_document_gets_the_answer_of_a_short_one_p4(doubles: Front, body: bytes, code: str) -> None:
    """The replica looks at it, and says what the front says of a short one."""
    answered = post(doubles, data=body, headers=JSON)
    if not code:
        assert answered.json() == {"output": 8.0}
        return
    sentence = refused(answered, 400, code)
    short = post(doubles, data=body.replace(b" " * LONG, b" ").replace(b"x" * LONG, b"x"), headers=JSON)
    assert short.json()["code"] == code
    if b"[0,]" not in body:
        assert short.json()["error"].partition("(byte")[0] == sentence.partition("(byte")[0]


def test_a_lone_surrogate_is_told_so_a19(doubles: Front) -> None:
    for body in (b'{"input": "\\ud800"}', b'{"input": ["\\udfff"]}', b'{"input": {"\\ud800": 1}}'):
        sentence = refused(post(doubles, data=body, headers=JSON), 400, "invalid_json")
        assert "unexpectedly" not in sentence
        assert "half of a surrogate pair" in sentence
    assert "surrogate" not in refused(
        post(doubles, data=b'{"input": "\\\\ud800 \\ud83d\\ude00', headers=JSON), 400, "invalid_json"
    )


def test_depth_is_told_in_one_pass_whatever_stands_in_strings_p4() -> None:
    """By hand: what is a bracket and what is text."""
    for text, levels in (
        (b'["[[["]', 1), (b'["\\"[", [1]]', 2), (b'["\\\\", [[1]]]', 3), (b'["\\\\\\"[["]', 1), (b'[""[[', 3),
    ):  # fmt: skip
        assert not json_document.deeper_than(text, levels), text
        assert json_document.deeper_than(text, levels - 1), text
    assert json.loads('["\\\\\\"[["]') == ['\\"[[']
