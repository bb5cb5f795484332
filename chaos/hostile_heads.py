"""Heads and framing that are hostile: F-35 to F-39, T-11, T-17, T-20, T-21."""

from collections.abc import Iterator

from chaos.hostile_case import Case, chunked, one_of, request

_OK = b'{"input": 1}'
_LIMIT = 1_000_000  # --max-body-bytes of the servers
_GET = "GET /livez HTTP/1.1\r\n"
_HOST = "Host: 127.0.0.1\r\n"
_BAD = one_of((400, "bad_http"))
_LARGE = one_of((413, "body_too_large"))
_SLOW = one_of((408, "client_too_slow"))


def _bad(name: str, text: str, fault: str = "F-39") -> Case:
    return Case(fault, name, text.encode("latin-1"), _BAD, closes=True)


def _post(headers: str, body: str = "") -> str:
    return f"POST /predict HTTP/1.1\r\n{_HOST}Content-Type: application/json\r\n{headers}\r\n{body}"


def _padded(size: int) -> bytes:
    return b'{"input": 1' + b" " * (size - len(_OK)) + b"}"


def _endless(first: bytes, piece: bytes, times: int) -> "object":
    def pieces() -> Iterator[bytes]:
        yield first
        for _ in range(times):
            yield piece

    return pieces


_BODIES = (
    Case("F-35", "a body of exactly the limit", request(_padded(_LIMIT)), one_of(200)),
    Case("F-35", "one byte more", request(_padded(_LIMIT + 1)), _LARGE, closes=True),
    Case("F-35", "a length of 10 TB, and nothing else", request(length=10**13), _LARGE),
    Case("F-35", "one byte more, in chunks", chunked(_padded(_LIMIT + 1)), _LARGE, closes=True),
    Case("F-35", "a gigabyte in chunks", _endless(request(length="", headers="Transfer-Encoding: chunked\r\n"), b"10000\r\n" + b" " * 65536 + b"\r\n", 16384), _LARGE, closes=True),  # type: ignore[arg-type]
    Case("F-35", "Content-Encoding: gzip", request(_OK, headers="Content-Encoding: gzip\r\n"), one_of((415, "unsupported_content_encoding"))),
    Case("F-35", "Content-Encoding: br", request(_OK, headers="Content-Encoding: br\r\n"), one_of((415, "unsupported_content_encoding"))),
)  # fmt: skip

_METHODS = (
    Case("F-36", "Expect: 100-continue, and a body of the limit + 1 to come", request(length=_LIMIT + 1, headers="Expect: 100-continue\r\n"), _LARGE, closes=True),
    Case("F-36", "Expect: 100-continue, and the body", request(_OK, headers="Expect: 100-continue\r\n"), one_of(200)),
    Case("F-36", "Expect: 200-ok", request(_OK, headers="Expect: 200-ok\r\n"), one_of((417, "expectation_failed")), closes=True),
    Case("F-36", "HEAD /livez", request(method="HEAD", path="/livez"), one_of(200), headless=True),
    Case("F-36", "HEAD /predict", request(method="HEAD"), one_of(405), headless=True),
    Case("F-36", "GET /predict", request(method="GET"), one_of((405, "method_not_allowed"))),
    Case("F-36", "OPTIONS /predict", request(method="OPTIONS"), one_of(200), headless=True),
    Case("F-36", "TRACE /predict", request(method="TRACE"), one_of((405, "method_not_allowed"))),
    Case("F-36", "DELETE /predict", request(method="DELETE"), one_of((405, "method_not_allowed"))),
    _bad("CONNECT other:80", f"CONNECT other:80 HTTP/1.1\r\n{_HOST}\r\n", "F-36"),
    _bad("an unknown method", f"FETCH /livez HTTP/1.1\r\n{_HOST}\r\n", "F-36"),
    _bad("a method in small letters", f"get /livez HTTP/1.1\r\n{_HOST}\r\n", "F-36"),
    Case("F-36", "HTTP/1.0", request(_OK, version="HTTP/1.0"), one_of(200), closes=True),
    _bad("HTTP/0.9", "GET /livez\r\n\r\n", "F-36"),
    _bad("HTTP/1.2", f"GET /livez HTTP/1.2\r\n{_HOST}\r\n", "F-36"),
    _bad("HTTP/2.0", f"GET /livez HTTP/2.0\r\n{_HOST}\r\n", "F-36"),
    _bad("the preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "F-36"),
    _bad("a TLS hello", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + "\x00" * 64, "F-36"),
    _bad("4 KiB of noise", "\x00\xff\x80" * 1365, "F-36"),
    Case("F-36", "an upgrade to h2c", request(method="GET", path="/livez", headers="Connection: Upgrade\r\nUpgrade: h2c\r\n"), one_of(200)),
    Case("F-36", "an upgrade with a body", request(_OK, headers="Connection: Upgrade\r\nUpgrade: websocket\r\n"), one_of(200)),
    Case("F-36", "an upgrade with a body in chunks", chunked(_OK, headers="Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"), one_of(200)),
    _bad("CONNECT with a path", f"CONNECT /predict HTTP/1.1\r\n{_HOST}\r\n", "F-36"),
)  # fmt: skip

_LENGTHS = (
    Case("F-37", "a length of 100, ten bytes, and silence", request(b'{"input": ', length=100), _SLOW, closes=True),
    Case("F-37", "half a head, and silence", b"POST /predict HTTP/1.1\r\nHost: 127", _SLOW, closes=True),
    Case("F-37", "a chunk that never ends", chunked(b'{"inp', end=b"ff\r\n"), _SLOW, closes=True),
    Case("F-37", "bytes after the length that are no request", request(_OK) + b"\x00\x01\x02", one_of(200), closes=True),
    Case("F-37", "bytes after the length that are one", request(_OK) + request(method="GET", path="/livez"), one_of(200)),
)  # fmt: skip

_SIZES = (
    Case("F-38", "100 headers", request(method="GET", path="/livez", headers="".join(f"X-{n}: 1\r\n" for n in range(99))), one_of(200)),
    Case("F-38", "101 headers", request(method="GET", path="/livez", headers="".join(f"X-{n}: 1\r\n" for n in range(100))), one_of((431, "headers_too_large")), closes=True),
    Case("F-38", "a header of 8 KiB + 1", request(method="GET", path="/livez", headers=f"X: {'a' * 8190}\r\n"), one_of((431, "headers_too_large")), closes=True),
    Case("F-38", "headers of 64 KiB", request(method="GET", path="/livez", headers="".join(f"X-{n}: {'a' * 8000}\r\n" for n in range(8))), one_of((431, "headers_too_large")), closes=True),
    Case("F-38", "a header that does not end", _endless(f"{_GET}X: ".encode(), b"a" * 65536, 64), one_of((431, "headers_too_large")), closes=True),  # type: ignore[arg-type]
    Case("F-38", "headers that do not end", _endless(_GET.encode(), b"X: a\r\n" * 8192, 64), one_of((431, "headers_too_large")), closes=True),  # type: ignore[arg-type]
    Case("F-38", "an address of 8 KiB + 1", request(method="GET", path="/" + "a" * 8192), one_of((414, "uri_too_long")), closes=True),
    Case("F-38", "an address that does not end", _endless(b"GET /", b"a" * 65536, 64), one_of((414, "uri_too_long")), closes=True),  # type: ignore[arg-type]
    *(
        _bad(f"Content-Length: {value or '(empty)'}", _post(f"Content-Length:{value}\r\n", "abc"), "F-38")
        for value in ("99999999999999999999", "+5", "-5", "5_0", "0x5", "5 0", "5,5", "5;5", "1e2", "", "five", "00", "012")
    ),
    _bad("Content-Length: nineteen zeros and 12", _post(f"Content-Length: {'0' * 19}12\r\n", _OK.decode()), "F-38"),
    Case("F-38", "Content-Length with blanks around it", _post("Content-Length:   12  \r\n", _OK.decode()).encode(), one_of(200)),
)  # fmt: skip

_FRAMING = (
    _bad("Content-Length and Transfer-Encoding", _post("Content-Length: 3\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n")),
    _bad("Transfer-Encoding and Content-Length", _post("Transfer-Encoding: chunked\r\nContent-Length: 3\r\n", "0\r\n\r\n")),
    _bad("two lengths that differ", _post("Content-Length: 3\r\nContent-Length: 4\r\n", "abcd")),
    _bad("two lengths that agree", _post("Content-Length: 3\r\nContent-Length: 3\r\n", "abc")),
    *(
        _bad(f"Transfer-Encoding: {shown}", _post(f"Transfer-Encoding: {value}\r\n", "0\r\n\r\n"))
        for shown, value in (
            ("gzip, chunked", "gzip, chunked"), ("chunked, identity", "chunked, identity"),
            ("chunked, chunked", "chunked, chunked"), ("identity", "identity"), ("xchunked", "xchunked"),
            ("(vertical tab) chunked", "\x0bchunked"), ('"chunked"', '"chunked"'), ("chunked;q=1", "chunked;q=1"),
        )
    ),
    _bad("Transfer-Encoding twice", _post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n")),
    _bad("Transfer-Encoding with a blank before the colon", _post("Transfer-Encoding : chunked\r\n", "0\r\n\r\n")),
    Case("F-39", "chunked in HTTP/1.0", chunked(_OK, version="HTTP/1.0"), _BAD, closes=True),
    _bad("a folded header", f"{_GET}{_HOST}X: a\r\n b\r\n\r\n"),
    _bad("a blank before the first header", f"{_GET} {_HOST}\r\n"),
    _bad("lines that end in LF", "GET /livez HTTP/1.1\nHost: 127.0.0.1\n\n"),
    _bad("one line that ends in LF", f"{_GET}{_HOST}X: a\n\r\n"),
    _bad("the head's end in LF", f"{_GET}{_HOST}\n"),
    _bad("the request line in LF, without a version", "GET /livez\nHost: 127.0.0.1\r\nContent-Length: 5\r\n\r\nhello"),
    _bad("a CR within a value", f"{_GET}{_HOST}X: a\rY: b\r\n\r\n"),
    _bad("a NUL within a value", f"{_GET}{_HOST}X: a\x00b\r\n\r\n"),
    _bad("a control character within a value", f"{_GET}{_HOST}X: a\x01b\r\n\r\n"),
    _bad("a control character within a name", f"{_GET}{_HOST}X\x01: b\r\n\r\n"),
    _bad("a header without a colon", f"{_GET}{_HOST}Xyz\r\n\r\n"),
    _bad("a header without a name", f"{_GET}{_HOST}: a\r\n\r\n"),
    _bad("two Hosts", f"{_GET}{_HOST}{_HOST}\r\n"),
    _bad("no Host", f"{_GET}\r\n"),
    _bad("an absolute address", f"GET http://127.0.0.1/livez HTTP/1.1\r\n{_HOST}\r\n"),
    _bad("an address of another host", f"GET http://evil.test/livez HTTP/1.1\r\n{_HOST}\r\n"),
    _bad("the address *", f"OPTIONS * HTTP/1.1\r\n{_HOST}\r\n"),
    _bad("a blank within the address", f"GET /li vez HTTP/1.1\r\n{_HOST}\r\n"),
    _bad("a fragment", f"GET /livez#x HTTP/1.1\r\n{_HOST}\r\n"),
    _bad("a tab for a blank", f"GET\t/livez HTTP/1.1\r\n{_HOST}\r\n"),
    _bad("a byte over 127 in the address", f"GET /\xff HTTP/1.1\r\n{_HOST}\r\n"),
    *(
        Case("F-39", f"a chunk of the size {shown}", chunked(end=data), _BAD, closes=True)
        for shown, data in (
            ("zz", b"zz\r\n"), ("-1", b"-1\r\n"), ("0x3", b"0x3\r\nabc\r\n"), ("3 with a blank", b"3 \r\nabc\r\n"),
            ("17 digits", b"f" * 17 + b"\r\n"), ("3 that holds 4", b"3\r\nabcd\r\n"), ("3 in LF", b"3\nabc\n0\n\n"),
            ("3 with LF in its extension", b"3;a\nb\r\nabc\r\n"),
        )
    ),
    Case("F-39", "a chunk with an extension", chunked(end=b"c;a=b\r\n" + _OK + b"\r\n0\r\n\r\n"), one_of(200)),
    Case("F-39", "a trailer that would be a header", chunked(_OK, end=b"0\r\nX-Request-ID: forged\r\n\r\n"), one_of(200)),
    Case("F-39", "a trailer that does not end", _endless(chunked(_OK, end=b"0\r\nX: "), b"a" * 65536, 64), one_of((400, "too_many_chunks")), closes=True),  # type: ignore[arg-type]
    Case("F-39", "an extension that does not end", _endless(chunked(end=b"5;"), b"a" * 65536, 64), one_of((400, "too_many_chunks")), closes=True),  # type: ignore[arg-type]
    Case("F-39", "4,096 chunks of a byte", chunked(*(bytes([each]) for each in _padded(4096))), one_of(200)),
    Case("F-39", "65,537 chunks of a byte", chunked(*(bytes([each]) for each in _padded(65537))), one_of((400, "too_many_chunks")), closes=True),
    Case("F-39", "65,537 requests ahead of the first answer", request(method="GET", path="/livez") * 65537, one_of(200), closes=True),
    Case("F-39", "a request after Connection: close", request(_OK, headers="Connection: close\r\n") + request(_OK), one_of(200), closes=True),
)  # fmt: skip

_HOSTS = tuple(
    Case("T-11", f"Host: {host}", f"{_GET}Host: {host}\r\n\r\n".encode(), one_of((400, "bad_host")))
    for host in ("evil.test", "127.0.0.1.evil.test", "localhost.evil.test", "127.0.0.1@evil.test", "[::2]", "")
)

HEADS: tuple[Case, ...] = (*_BODIES, *_METHODS, *_LENGTHS, *_SIZES, *_FRAMING, *_HOSTS)
"""All of them."""
