"""No file costs a decoder much more than an honest picture of the same pixels (A2), and no metadata decides (U13)."""

import io
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from chaos import pictures
from flambeau.errors import InvalidInput
from flambeau.pipelines.image import decode
from tests.support.photographs import encoded, photograph

MIB = 2**20
PIXELS = 50_000_000
PNG = b"\x89PNG\r\n\x1a\n"


def refusal(data: bytes) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        decode(data, max_pixels=PIXELS)
    return caught.value


def same(data: bytes, image: Image.Image) -> bool:
    return np.array_equal(np.asarray(decode(data, max_pixels=PIXELS)), np.asarray(image))


COMMENT, EXIF = b"\xff\xfe\0\2", b"\xff\xe1\0\x40Exif\0\0" + bytes(56)

BOMBS = {
    "7,000 scans": lambda: pictures.repeated_scans(6300, 7000),
    "60 scans of 40 megapixels": lambda: pictures.repeated_scans(6300, 60),
    "700 scans without data": lambda: pictures.starved_scans(6300, 700),
    "5,000 scans of a small picture": lambda: pictures.repeated_scans(16, 5000),
    "scans behind filled markers": lambda: pictures.repeated_scans(6300, 100).replace(b"\xff\xda", b"\xff\xff\xda"),
    "comments": lambda: pictures.many_segments(COMMENT, MIB),
    "pieces of EXIF": lambda: pictures.many_segments(EXIF, 4 * MIB),
    "empty chunks of pixels": lambda: pictures.many_chunks(pictures.chunk(b"IDAT", b""), 2 * MIB),
    "chunks that nobody knows": lambda: pictures.many_chunks(pictures.chunk(b"abCd", b""), 2 * MIB),
    "text behind the picture": lambda: pictures.many_chunks(pictures.chunk(b"tEXt", b"a\0b"), 2 * MIB, after=True),
    "pieces of a comment": lambda: pictures.gif_blocks(b"!\xfe" + b"\1x" * 200_000 + b"\0", 401_000),
    "empty extensions": lambda: pictures.gif_blocks(b"!\1\0", MIB),
    "rows to be filled up": lambda: pictures.rle_bmp(7000, 7000, b"\1\5\0\0" * 7000),
    "runs of one pixel": lambda: pictures.rle_bmp(2000, 2000, b"\1\5" * (4 * MIB)),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_what_would_take_long_is_refused_before_it_is_decoded_a2(name: str) -> None:
    data = BOMBS[name]()
    started = time.process_time()
    error = refusal(data)
    assert time.process_time() - started < 2  # of the process itself; decoded they took from 0.6 to 180
    assert error.code == "image_too_large"
    assert "takes too long to decode: save the image again" in error.message


@pytest.mark.parametrize(
    "data",
    [
        pictures.many_segments(b"\xff", 4 * MIB),
        pictures.gif_blocks(b"\1", 4 * MIB),
        pictures.many_chunks(pictures.chunk(b"eXIf", pictures.exif_bomb(2000, MIB)), MIB * 3 // 2),
    ],
    ids=["filling before a marker", "bytes between blocks", "EXIF whose entries are all of a megabyte"],
)
def test_what_is_passed_over_costs_nothing_a2(data: bytes) -> None:
    started = time.process_time()
    assert decode(data, max_pixels=PIXELS).size == (64, 48)
    assert time.process_time() - started < 0.5


@pytest.mark.long
@pytest.mark.parametrize(
    ("side", "scans"), [(6300, 30), (3500, 100), (1200, 900), (64, 1000)], ids=lambda value: str(value)
)
def test_honest_numbers_of_scans_are_taken_a2(side: int, scans: int) -> None:
    data = pictures.repeated_scans(side, scans - 9)  # a progressive picture of Pillow's has ten
    assert data.count(b"\xff\xda") == scans
    assert decode(data, max_pixels=PIXELS).size == (side, side)


def photographs() -> dict[str, bytes]:
    names = ("chelsea", "coffee", "rocket", "astronaut")
    kinds: tuple[tuple[str, dict[str, object]], ...] = (
        ("JPEG", {}), ("JPEG", {"progressive": True}), ("JPEG", {"comment": b"a cat", "icc_profile": bytes(70_000)}),
        ("PNG", {}), ("PNG", {"icc_profile": bytes(70_000)}), ("WEBP", {}), ("BMP", {}), ("GIF", {"comment": b"x"}),
    )  # fmt: skip
    return {
        f"{name}.{kind} {' '.join(options)}": encoded(photograph(name), kind, **options)
        for name in names
        for kind, options in kinds
    }


@pytest.mark.long
def test_photographs_come_out_as_pillow_alone_decodes_them() -> None:
    for name, data in photographs().items():
        assert same(data, Image.open(io.BytesIO(data)).convert("RGB")), name


def test_a_progressive_photograph_of_many_segments_and_restarts_is_taken() -> None:
    data = encoded(photograph("coffee"), "JPEG", progressive=True, restart_marker_blocks=1, quality=95)
    assert same(data, Image.open(io.BytesIO(data)).convert("RGB"))


# -- metadata ----------------------------------------------------------------------------------------------------


def with_chunks(*chunks: bytes, image: Image.Image | None = None) -> bytes:
    data = encoded(image or photograph("chelsea"))
    return data[:33] + b"".join(chunks) + data[33:]


@pytest.mark.long
@pytest.mark.parametrize(
    "kind", [b"iCCP", b"zTXt", b"iTXt", b"tEXt", b"eXIf", b"gAMA", b"cHRM", b"acTL", b"fcTL", b"fdAT"]
)
@pytest.mark.parametrize("damage", ["unpacks to 8 MiB", "is noise", "is empty"])
def test_metadata_does_not_decide_whether_pixels_are_read_u13(kind: bytes, damage: str) -> None:
    packed = zlib.compress(bytes(8 * MIB), 9)
    contents = {
        "unpacks to 8 MiB": b"XML:com.adobe.xmp\0\1\0\0\0" + packed if kind == b"iTXt" else b"name\0\0" + packed,
        "is noise": bytes(range(256)),
        "is empty": b"",
    }[damage]
    assert same(with_chunks(pictures.chunk(kind, contents)), photograph("chelsea"))


def exif(orientation: int, order: str = "<") -> bytes:
    head = b"II*\0" if order == "<" else b"MM\0*"
    return head + struct.pack(order + "LHHHLHHL", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
PROFILE = b"\nexif\n      32\n" + (b"Exif\0\0" + exif(6)).hex().encode() + b"\n"
TURNED = {
    "eXIf": pictures.chunk(b"eXIf", exif(6)),
    "eXIf, big-endian": pictures.chunk(b"eXIf", exif(6, ">")),
    "XMP": pictures.chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
    "packed XMP": pictures.chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP)),
    "ImageMagick's, packed": pictures.chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(PROFILE)),
    "ImageMagick's": pictures.chunk(b"tEXt", b"Raw profile type exif\0" + PROFILE),
}


@pytest.mark.parametrize("kind", TURNED)
def test_a_png_is_turned_upright_by_whatever_says_how_it_lies(kind: str) -> None:
    data = with_chunks(TURNED[kind])
    assert same(data, photograph("chelsea").transpose(Image.Transpose.ROTATE_270))
    assert same(data, ImageOps.exif_transpose(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_xmp_alone_turns_a_picture_too(kind: str) -> None:
    data = encoded(photograph("chelsea"), kind, xmp=XMP)
    assert same(data, ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert decode(data, max_pixels=PIXELS).size == photograph("chelsea").size[::-1]


# -- samples of twelve bits --------------------------------------------------------------------------------------


def grey16(samples: np.ndarray, sbit: int | None) -> bytes:
    chunks = (pictures.chunk(b"sBIT", bytes((sbit,))),) if sbit else ()
    return with_chunks(*chunks, image=Image.fromarray(samples.astype(np.uint16)))


SAMPLES = np.random.default_rng(8).integers(0, 4096, (60, 80))


@pytest.mark.parametrize(
    "scaled",
    [SAMPLES << 4, SAMPLES << 4 | SAMPLES >> 8, (SAMPLES * 65535 + 2047) // 4095],
    ids=["zeros", "upper bits anew", "multiplied"],
)
def test_samples_that_fill_their_sixteen_bits_are_taken_so_whatever_sbit_says_w8(scaled: np.ndarray) -> None:
    """As the standard has it: sBIT tells what the samples were before they were scaled."""
    for sbit in (None, 12):
        found = np.asarray(decode(grey16(scaled, sbit), max_pixels=PIXELS))[..., 0]
        assert np.array_equal(found, scaled // 257)


def test_samples_that_sbit_shows_to_be_unscaled_are_scaled_w8() -> None:
    found = np.asarray(decode(grey16(SAMPLES, 12), max_pixels=PIXELS))[..., 0]
    assert np.array_equal(found, SAMPLES * 255 // 4095)
    assert found.max() >= 254


def test_without_a_word_of_the_file_nothing_is_guessed_from_its_samples_w8() -> None:
    found = np.asarray(decode(grey16(SAMPLES, None), max_pixels=PIXELS))[..., 0]
    assert np.array_equal(found, SAMPLES // 257)
    beyond = np.where(SAMPLES.max() == SAMPLES, 4096, SAMPLES)  # sBIT that is untrue either way
    assert np.array_equal(np.asarray(decode(grey16(beyond, 12), max_pixels=PIXELS))[..., 0], beyond // 257)


# -- what is no image --------------------------------------------------------------------------------------------


def boxes(*brands: bytes) -> bytes:
    return struct.pack(">L", 16 + 4 * (len(brands) - 1)) + b"ftyp" + brands[0] + bytes(4) + b"".join(brands[1:])


SENT = {
    "HEIC": (boxes(b"heic", b"mif1"), "convert it to JPEG"),
    "HEIC by a compatible brand": (boxes(b"xxxx", b"isom", b"heix"), "convert it to JPEG"),
    "AVIF": (boxes(b"avif", b"mif1"), "convert it to JPEG"),
    "a video": (boxes(b"isom", b"mp42"), "frame"),
    "a video of Matroska": (b"\x1aE\xdf\xa3" + bytes(20), "frame"),
    "PDF": (b"%PDF-1.7\n", "page"),
    "SVG": (b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>", "convert it to JPEG"),
    "an HTML page": (b"\n<!DOCTYPE html><html></html>", "send an image"),
    "a zip archive": (b"PK\3\4" + bytes(30), "unpack it"),
    "a gzip archive": (b"\x1f\x8b\x08" + bytes(30), "unpack it"),
    "TIFF": (encoded(Image.new("RGB", (8, 8)), "TIFF"), "convert it to JPEG"),
    "ICO": (encoded(Image.new("RGB", (16, 16)), "ICO"), "convert it to JPEG"),
    "JPEG 2000": (b"\0\0\0\x0cjP  \r\n\x87\n", "convert it to JPEG"),
    "base64 text of a JPEG": (b"/9j/4AAQSkZJRgABAQAAAQABAAD/2wBD", "the bytes themselves"),
    "base64 text (a data URL)": (b"data:image/png;base64,iVBORw0KGgo=", "the bytes themselves"),
    "JSON": (b'{"input": 1}', "send an image"),
    "text": (b"just some words", "send an image"),
    "an empty file": (b"", "send an image"),
}


@pytest.mark.parametrize("name", SENT)
def test_the_refusal_names_what_was_sent_and_what_to_send_u13(name: str) -> None:
    data, remedy = SENT[name]
    error = refusal(data)
    assert error.code == "unsupported_image_format"
    kind = name.split(" by ")[0].split(" of Matroska")[0]
    assert error.message.startswith(f"this is {kind}, and not an image that this model reads: ")
    assert remedy in error.message
    assert "JPEG, PNG, WEBP, GIF or BMP" in error.message


@pytest.mark.parametrize("data", [bytes(64), b"\x01\x02\xfe\xff" * 8], ids=["zeros", "noise"])
def test_what_nobody_knows_is_not_named(data: bytes) -> None:
    assert refusal(data).message == "the file is not an image that this model reads: send JPEG, PNG, WEBP, GIF or BMP"
