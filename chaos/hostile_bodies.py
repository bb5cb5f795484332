"""Bodies and names that are hostile: F-27 to F-34 and F-40."""

import struct
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO

from PIL import Image

from chaos import pictures
from chaos.hostile_case import Case, Target, one_of, request
from chaos.pictures import chunk

_IMAGE_TOO_LARGE = one_of((413, "image_too_large"))
_NO_IMAGE = one_of((415, "unsupported_image_format"))
_BROKEN = one_of((422, "image_undecodable"))
_INVALID = one_of((400, "invalid_json"))
_DEEP = one_of((400, "json_too_deep"))
_FORM = 'multipart/form-data; boundary="b"'


def _image(kind: str, mode: str = "RGB", size: tuple[int, int] = (64, 48)) -> bytes:
    file = BytesIO()
    Image.radial_gradient("L").resize(size).convert(mode).save(file, kind)
    return file.getvalue()


def _png(width: int, height: int, *extra: bytes) -> bytes:
    """A PNG that says it has this size, over a megabyte of zeros."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(1 << 20)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + body + chunk(b"IEND", b"")


def _jpeg(width: int, height: int) -> bytes:
    data = _image("JPEG")
    sizes = data.index(b"\xff\xc0") + 5
    return data[:sizes] + struct.pack(">HH", height, width) + data[sizes + 4 :]


def _gif(width: int, height: int) -> bytes:
    descriptor = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0)
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6) + descriptor + b"\x02\x01\x44\x00;"


def _sent(data: bytes, kind: str | None = "application/octet-stream", path: str = "/predict") -> bytes:
    return request(data, kind=kind, path=path)


def _form(*parts: tuple[str, bytes], end: bytes = b"--b--\r\n", kind: str = _FORM) -> bytes:
    """A form of parts: what follows `form-data` in the disposition, and the contents."""
    body = b"".join(
        b"--b\r\nContent-Disposition: form-data; %b\r\n\r\n%b\r\n" % (disposition.encode(), data)
        for disposition, data in parts
    )
    return request(body + end, kind=kind)


def _images(
    fault: str, name: str, data: bytes | Callable[[], Iterator[bytes]], expect: frozenset[tuple[int, str]]
) -> Case:
    return Case(fault, name, data, expect, target="images")


def _later(make: Callable[[], bytes]) -> Callable[[], Iterator[bytes]]:
    """A picture that is made when it is sent: it takes part of a second, and whoever imports this need not send it."""
    return lambda: iter((_sent(make()),))


def _json(fault: str, name: str, body: bytes, expect: frozenset[tuple[int, str]], target: Target = "numbers") -> Case:
    return Case(fault, name, request(body), expect, target=target)


_PNG, _JPEG = _image("PNG"), _image("JPEG")
_BOMB = b"a\0\0" + zlib.compress(bytes(50 << 20), 9)
_TEXT_BOMB, _PROFILE_BOMB = chunk(b"zTXt", _BOMB), chunk(b"iCCP", _BOMB)

_OUTPUTS = (
    _json("F-27", "an output of NaN and infinities", b'{"input": "nan"}', one_of(200, (500, "model_output_invalid"))),
)

_BOMBS = (
    *(
        _images("F-28", f"{kind} that says {width} x {height}", _sent(make(width, height)), _IMAGE_TOO_LARGE)
        for kind, make, width, height in (
            ("a PNG", _png, 65_500, 65_500), ("a PNG", _png, 10_000_000, 10), ("a PNG", _png, 2**31 - 1, 2**31 - 1),
            ("a PNG", _png, 50_000, 50_000), ("a JPEG", _jpeg, 65_500, 65_500), ("a GIF", _gif, 65_500, 65_500),
        )
    ),
    _images("F-28", "a PNG with 50 MiB of compressed text", _sent(_png(8, 8, _TEXT_BOMB)), one_of(200)),
    _images("F-28", "a PNG with 50 MiB of colour profile", _sent(_png(8, 8, _PROFILE_BOMB)), one_of(200)),
    _images("F-28", "a PNG without a pixel", _sent(_png(0, 8)), one_of(*_BROKEN, *_NO_IMAGE, *_IMAGE_TOO_LARGE)),
    *(_images("A2", name, _later(make), _IMAGE_TOO_LARGE) for name, make in (
        ("a JPEG of 6300 x 6300 in 7,000 scans", lambda: pictures.repeated_scans(6300, 7000)),
        ("a JPEG of 6300 x 6300 in 700 scans without data", lambda: pictures.starved_scans(6300, 700)),
        ("a JPEG with 220,000 comments", lambda: pictures.many_segments(b"\xff\xfe\0\2", 900_000)),
        ("a BMP of 7000 x 7000 in runs", lambda: pictures.rle_bmp(7000, 7000, b"\1\5\0\0" * 7000)),
        ("a GIF with 440,000 pieces of a comment",
         lambda: pictures.gif_blocks(b"!\xfe" + b"\1x" * 440_000 + b"\0", 890_000)),
    )),
    _images("A2", "a JPEG of 600 x 600 in 300 scans", _sent(pictures.repeated_scans(600, 300)), one_of(200)),
)  # fmt: skip

_DAMAGED = (
    *(_images("F-29", f"a {kind} cut at {share} %", _sent(data[: len(data) * share // 100]), _BROKEN)
      for kind, data in (("PNG", _PNG), ("JPEG", _JPEG), ("WebP", _image("WEBP"))) for share in (50, 90)),
    *(_images("F-29", f"a {kind} cut after 12 bytes", _sent(data[:12]), one_of(*_BROKEN, *_NO_IMAGE))
      for kind, data in (("PNG", _PNG), ("JPEG", _JPEG))),
    _images("F-29", "a PNG with a bit turned", _sent(_PNG[:45] + bytes([_PNG[45] ^ 4]) + _PNG[46:]), _BROKEN),
)  # fmt: skip

_TYPES = (
    _images("F-30", "a PNG that calls itself JPEG", _sent(_PNG, "image/jpeg"), one_of(200)),
    _images("F-30", "a JPEG without a Content-Type", _sent(_JPEG, None), one_of(200, (415, "unsupported_media_type"))),
    _images("F-30", "text that calls itself PNG", _sent(b"hello", "image/png"), _NO_IMAGE),
    _images("F-30", "SVG", _sent(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"), one_of(*_NO_IMAGE, (415, "unsupported_media_type"))),
    *(_images("F-30", f"{name} that calls itself JPEG", _sent(data, "image/jpeg"), _NO_IMAGE) for name, data in (
        ("EPS", b"%!PS-Adobe-3.0 EPSF-3.0\n"), ("PSD", b"8BPS\0\1" + bytes(30)), ("TIFF", _image("TIFF")),
        ("ICO", _image("ICO")), ("PDF", b"%PDF-1.7\n"), ("a pickle", b"\x80\x04\x95" + bytes(20)), ("ZIP", b"PK\3\4" + bytes(40)))),
    _images("F-30", "JSON that calls itself text", _sent(b'{"input": 1}', "text/plain"), one_of((415, "unsupported_media_type"))),
)  # fmt: skip

_ODD = tuple(
    _images("F-31", f"{kind}, {mode}, {size[0]} x {size[1]}", _sent(_image(kind, mode, size)), one_of(200))
    for kind, mode, size in (
        ("JPEG", "CMYK", (64, 48)), ("PNG", "I;16", (64, 48)), ("PNG", "P", (64, 48)), ("PNG", "LA", (64, 48)),
        ("PNG", "1", (64, 48)), ("PNG", "RGB", (1, 1)), ("PNG", "RGB", (1, 2000)), ("GIF", "P", (64, 48)),
        ("BMP", "RGB", (64, 48)), ("WEBP", "RGBA", (64, 48)),
    )
)  # fmt: skip

_FORMS = (
    _images("F-32", "an empty body", _sent(b""), one_of((400, "empty_body"))),
    _images("F-32", "a form without parts", _form(), one_of((400, "missing_file"))),
    _images("F-32", "a form without a file", _form(('name="x"', b"1")), one_of((400, "missing_file"))),
    _images("F-32", "an empty file", _form(('name="file"; filename="a.png"', b"")), one_of((400, "empty_body"))),
    _images("F-32", "an empty file name", _form(('name="file"; filename=""', _PNG)), one_of(200)),
    _images("F-32", "two files", _form(*[('name="file"; filename="a.png"', _PNG)] * 2), one_of(200)),
    _images("F-32", "65 parts", _form(*[('name="x"', b"")] * 65), one_of((413, "too_many_parts"))),
    _images("F-32", "a form without a boundary", _form(('name="file"', _PNG), kind="multipart/form-data"), one_of((400, "invalid_multipart"))),
    _images("F-32", "a boundary of 71 characters", _form(kind=f"multipart/form-data; boundary={'b' * 71}"), one_of((400, "invalid_multipart"))),
    _images("F-32", "a form cut before its end", _form(('name="file"', _PNG), end=b""), one_of((400, "multipart_truncated"))),
    _images("F-32", "a form whose lines end in LF", request(b'--b\nContent-Disposition: form-data; name="file"\n\nx\n--b--\n', kind=_FORM), one_of((400, "multipart_truncated"), (400, "invalid_multipart"))),
    _images("F-32", "a part without a disposition", request(b"--b\r\n\r\nx\r\n--b--\r\n", kind=_FORM), one_of((400, "invalid_multipart"))),
    _images("F-32", "a part with a header of 9 KiB", request(b"--b\r\nX: " + b"a" * 9216 + b"\r\n\r\nx\r\n--b--\r\n", kind=_FORM), one_of((400, "invalid_multipart"))),
    _images("F-32", "900 kB of carriage returns", request(b"--b\r\n\r\n" + b"\r" * 900_000 + b"--b--", kind=_FORM), one_of((400, "multipart_truncated"), (400, "invalid_multipart"))),
)  # fmt: skip

_DEPTHS = tuple(
    _json("F-33", f"{levels:,} levels of {kind}", b'{"input": ' + left * levels + middle + right * levels + b"}", expect)
    for kind, left, middle, right in (("arrays", b"[", b"", b"]"), ("objects", b'{"a":', b"1", b"}"), ("both", b'[{"a":', b"1", b"}]"))
    for levels, expect in ((10, one_of(200)), (33, _DEEP), (1000, _DEEP), (100_000, _DEEP))
)  # fmt: skip

_VALUES = (
    *(_json("F-34", shown, b'{"input": %b}' % value, expect) for shown, value, expect in (
        ("NaN", b"NaN", one_of((400, "json_not_finite"))), ("Infinity", b"Infinity", one_of((400, "json_not_finite"))),
        ("-Infinity", b"-Infinity", one_of((400, "json_not_finite"))),
        ("1e999", b"1e999", one_of((400, "json_not_finite"), *_INVALID)),
        ("-0", b"-0", one_of(200)), ("an integer of 5,000 digits", b"9" * 5000, one_of(200, (400, "json_not_finite"), *_INVALID)),
        ("an integer over 2^64", b"18446744073709551617", one_of(200, *_INVALID)),
        ("a lone surrogate", b'"\\ud800"', one_of(200, *_INVALID)),
        ("bytes that are not UTF-8", b'"\xff\xfe"', _INVALID), ("a control character", b'"\x01"', _INVALID),
        ("01", b"01", _INVALID), ("1.", b"1.", _INVALID), ("'single'", b"'single'", _INVALID),
        ("null", b"null", one_of(200)), ("a number and more", b"1 2", _INVALID), ("nothing", b"", _INVALID),
    )),
    _json("F-34", "a byte order mark", b'\xef\xbb\xbf{"input": 1}', _INVALID),
    _json("F-34", "UTF-16", '{"input": 1}'.encode("utf-16"), _INVALID),
    _json("F-34", "the text null", b"null", _INVALID), _json("F-34", "a number alone", b"1", _INVALID),
    _json("F-34", "a list", b"[1]", _INVALID), _json("F-34", "an object cut short", b'{"input": [1', _INVALID),
    _json("F-34", "an object without input", b'{"x": 1}', _INVALID),
    _json("F-34", "a comment", b'{"input": 1} // x', _INVALID),
)  # fmt: skip

_NAMES = tuple(
    Case("F-40", f"the model {shown}", request(b'{"input": 1}', path=f"/predict/{path}"), expect)
    for shown, path, expect in (
        (".. escaped", "%2e%2e", one_of((404, "model_not_found"), (404, "not_found"))),
        ("../../etc/passwd escaped", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", one_of((404, "model_not_found"), (404, "not_found"))),
        ("..", "..", one_of((404, "model_not_found"))), ("CON", "CON", one_of((404, "model_not_found"))),
        ("with a NUL", "a%00b", one_of((404, "model_not_found"))), ("a;b", "a;b", one_of((404, "model_not_found"))),
        ("of 300 bytes", "a" * 300, one_of((404, "model_not_found"))),
        ("in NFC", "%C3%A9", one_of((404, "model_not_found"))), ("in NFD", "e%CC%81", one_of((404, "model_not_found"))),
        ("with an override of direction", "a%E2%80%AEb", one_of((404, "model_not_found"))),
        ("that is an emoji", "%F0%9F%90%88", one_of((404, "model_not_found"))),
        ("that is not UTF-8", "%FF%FE", one_of((404, "model_not_found"))),
        ("of half an escape", "%", one_of((404, "model_not_found"), (400, "bad_http"))),
        ("with a backslash", "..%5c..", one_of((404, "model_not_found"))),
        ("with a line feed", "a%0d%0aSet-Cookie:x", one_of((404, "model_not_found"))),
    )
)  # fmt: skip

_FILE_NAMES = tuple(
    _images("F-40", f"the file name {shown}", _form((f'name="file"; filename="{name}"', _PNG)), one_of(200))
    for shown, name in (
        ("../../etc/passwd", "../../etc/passwd"), ("with a NUL", "a\0.png"), ("with an escape", "\x1b[31mred.png"),
        ("CON", "CON"), ("of 300 bytes", "a" * 300), ("with an override of direction", "a\u202egnp.exe"),
    )
)  # fmt: skip

BODIES: tuple[Case, ...] = (
    *_OUTPUTS, *_BOMBS, *_DAMAGED, *_TYPES, *_ODD, *_FORMS, *_DEPTHS, *_VALUES, *_NAMES, *_FILE_NAMES,
)  # fmt: skip
"""All of them."""
