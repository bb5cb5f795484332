"""Recognise what was sent in place of an image, by its first bytes, and say what to do about it."""

import re

_BRANDS = {  # of ISO 14496-12, the box `ftyp`
    b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIC", b"heix": "HEIC", b"heim": "HEIC", b"heis": "HEIC",
    b"hevc": "HEIC", b"hevx": "HEIC", b"mif1": "HEIC", b"msf1": "HEIC", b"crx ": "a camera's raw file",
    b"jp2 ": "JPEG 2000", b"jpx ": "JPEG 2000", b"M4A ": "a sound",
}  # fmt: skip
_BEGINNINGS = (
    (b"%PDF-", "PDF"), (b"%!PS", "PostScript"), (b"PK\x03\x04", "a zip archive"), (b"PK\x05\x06", "a zip archive"),
    (b"\x1f\x8b", "a gzip archive"), (b"7z\xbc\xaf\x27\x1c", "a 7z archive"), (b"Rar!\x1a\x07", "a RAR archive"),
    (b"BZh", "a bzip2 archive"), (b"\xfd7zXZ\0", "an xz archive"), (b"II*\0", "TIFF"), (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"), (b"MM\0+", "TIFF"), (b"8BPS", "a Photoshop document"), (b"\0\0\1\0", "ICO"),
    (b"\xff\x0a", "JPEG XL"), (b"\0\0\0\x0cJXL ", "JPEG XL"), (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"), (b"\x1a\x45\xdf\xa3", "a video"), (b"\0\0\1\xba", "a video"),
    (b"FLV\1", "a video"), (b"OggS", "a sound or a video"), (b"ID3", "a sound"), (b"fLaC", "a sound"),
    (b"\x93NUMPY", "an array of NumPy"), (b"\x80\2", "a pickle"), (b"\x80\4", "a pickle"), (b"\x80\5", "a pickle"),
    (b"\x7fELF", "a program"), (b"MZ", "a program"), (b"SIMPLE  =", "FITS"), (b"qoif", "QOI"),
)  # fmt: skip
_BASE64 = ((b"/9j/", "JPEG"), (b"iVBORw0KGgo", "PNG"), (b"UklGR", "WEBP"), (b"R0lGOD", "GIF"), (b"Qk", "BMP"))
_BASE64_TEXT = re.compile(rb"[A-Za-z0-9+/=_\-\s]{16,}\Z")
_PICTURES = frozenset(
    (
        "HEIC", "AVIF", "TIFF", "ICO", "JPEG XL", "JPEG 2000", "QOI", "FITS", "SVG", "DICOM",
        "a camera's raw file", "a Photoshop document",
    )
)  # fmt: skip
_HEAD = 1024


def what_is(data: bytes) -> tuple[str | None, str]:
    """What a file is, if it is not an image we read, and what to do about it: both as parts of a sentence.

    `None` for the first if its bytes do not show it.
    """
    name = _name(data)
    if name is None:
        return name, "send an image"
    if name.startswith("base64"):
        return name, "send the bytes themselves, not their text"
    if name in _PICTURES:
        return name, "convert it to JPEG or PNG"
    if name in ("PDF", "PostScript", "a video"):
        return name, "send a page or a frame of it as an image"
    if name.endswith("archive"):
        return name, "unpack it, and send the images that are in it"
    return name, "send an image"


def _name(data: bytes) -> str | None:
    if not data:
        return "an empty file"
    if data[4:8] == b"ftyp":
        return _of_brands(data)
    for beginning, name in _BEGINNINGS:
        if data.startswith(beginning):
            return name
    if data.startswith(b"RIFF"):
        return {b"AVI ": "a video", b"WAVE": "a sound"}.get(data[8:12])
    if data[128:132] == b"DICM":
        return "DICOM"
    if data[257:262] == b"ustar":
        return "a tar archive"
    return _of_text(data[:_HEAD])


def _of_brands(data: bytes) -> str:
    """The name of a file in boxes, by its main brand or a compatible one."""
    end = min(int.from_bytes(data[:4]), 128)
    for at in (8, *range(16, end, 4)):
        if name := _BRANDS.get(data[at : at + 4]):
            return name
    return "a video"


def _of_text(head: bytes) -> str | None:
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    lowered = text[:256].lower()
    if lowered.startswith(b"data:") and b"base64," in lowered:
        return "base64 text (a data URL)"
    for beginning, name in _BASE64:
        if text.startswith(beginning) and _BASE64_TEXT.match(text):
            return f"base64 text of a {name}"
    if lowered.startswith((b"<svg", b"<?xml", b"<!doctype svg")) and b"<svg" in text.lower():
        return "SVG"
    if lowered.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "an HTML page"
    if lowered.startswith((b"http://", b"https://")) and b"\n" not in text.strip():
        return "a URL"
    if text and all(byte >= 32 or byte in b"\t\r\n\f\x1b" for byte in text):
        return "JSON" if text[:1] in b"{[" else "text"
    return None
