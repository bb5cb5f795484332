"""What a handler is given and may answer, without a worker."""

import msgspec
import pytest

from flambeau.errors import ConfigError
from flambeau.handlers.torchserve import row_of
from flambeau.items import HandlerCall, HandlerPart
from flambeau.tasks import ANSWERS
from flambeau.tasks.handler import Handled

JSON = "application/json"


def _call(*parts: tuple[str, str, bytes]) -> HandlerCall:
    return HandlerCall("id", {}, tuple(HandlerPart(*each) for each in parts))


@pytest.mark.parametrize(
    ("parts", "row"),
    [
        ([("body", JSON, b"[1]")], {"body": [1]}),
        ([("body", JSON, b"{broken")], {"body": bytearray(b"{broken")}),
        ([("body", "", b"[1]")], {"body": bytearray(b"[1]")}),
        ([("body", "text/plain", b"hi")], {"body": "hi"}),
        ([("body", "application/x-www-form-urlencoded", b"a=1&a=2&b=")], {"a": bytearray(b"2"), "b": bytearray()}),
        ([("a", "", b"1"), ("a", "", b"2")], {"a": bytearray(b"2")}),
        ([("a", JSON, b'{"x": 1}')], {"a": {"x": 1}}),
    ],
)
def test_a_request_becomes_the_row_that_torchserve_makes_of_it(
    parts: list[tuple[str, str, bytes]], row: dict[str, object]
) -> None:
    assert row_of(_call(*parts)) == row


@pytest.mark.parametrize(
    ("media_type", "headers"),
    [
        ("text/html\r\nX: y", ()),
        (JSON, (("X-A", "b\r\nSet-Cookie: c"),)),
        (JSON, (("Content-Length", "1"),)),
        (JSON, (("Set-Cookie", "a=b"),)),
        (JSON, (("Access-Control-Allow-Origin", "*"),)),
        (JSON, (("bad name", "x"),)),
    ],
)
def test_no_worker_can_send_headers_that_are_not_a_handlers(
    media_type: str, headers: tuple[tuple[str, str], ...]
) -> None:
    honest = msgspec.msgpack.encode(Handled(b"x", JSON, 200, (("X-A", "b"),)))
    decoder = msgspec.msgpack.Decoder(ANSWERS)
    assert decoder.decode(honest).headers == (("X-A", "b"),)
    forged = msgspec.msgpack.encode(["handled", b"x", media_type, 200, headers])
    with pytest.raises(msgspec.ValidationError):
        decoder.decode(forged)


def test_an_address_is_a_host_and_a_port() -> None:
    from flambeau.settings.hosts import host_and_port
    from flambeau.settings.service import Settings

    assert host_and_port("management_address", "[::1]:81") == ("::1", 81)
    for text in ("8081", ":8081", "host:", "host:0", "host:70000"):
        with pytest.raises(ConfigError, match="is not an address"):
            Settings(management_address=text)
    assert Settings(host="0.0.0.0", management_address="127.0.0.1:81").managed_here
    assert not Settings(management_address="0.0.0.0:81").managed_here
