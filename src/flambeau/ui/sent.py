"""What the page says about what was sent: the name of each file or the question itself, and the picture.

A picture is put into the page of its own answer as it came, for browsers without JavaScript, which have no other way to
show it beside the answer. Nothing here decodes it: the first bytes say which type it is, and nothing but the types of
pictures is given, so that a browser takes it for nothing else.
"""

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from flambeau.pipelines import image_limits
from flambeau.protocols.multipart import Part
from flambeau.ui.form import ModelForm, filled, written

LARGEST_PAGE = 8 * 1024 * 1024
"""The most bytes of pictures that are put into one page."""

_LONGEST_NAME = 200  # characters
_LONGEST_QUESTION = 300
_TYPES = ((b"\xff\xd8\xff", "jpeg"), (b"\x89PNG\r\n\x1a\n", "png"), (b"GIF8", "gif"), (b"BM", "bmp"))


@dataclass(frozen=True, slots=True)
class Sent:
    """One item as it was sent: `name`, the name of its file or the question; `picture`, a `data:` address, or empty."""

    name: str = ""
    picture: str = ""


def sent(form: ModelForm, parts: Sequence[Part], *, pictures: bool) -> list[Sent]:
    """What was sent, in the order of the outcomes. `pictures`: whether they are given, up to `LARGEST_PAGE` in all."""
    if form.files and (files := [part for part in parts if part.name == "file" and part.data]):
        return list(_files(files, pictures=pictures and form.asks == "pictures"))
    question = written(parts).strip() or ", ".join(filled(parts))
    return [Sent(_cut(" ".join(question.split()), _LONGEST_QUESTION))]


def _files(parts: Iterable[Part], *, pictures: bool) -> Iterable[Sent]:
    left = LARGEST_PAGE if pictures else 0
    for part in parts:
        address = _address(part.data) if len(part.data) <= left else ""
        left -= len(part.data) if address else 0
        yield Sent(_cut(part.filename, _LONGEST_NAME), address)


def _address(data: memoryview) -> str:
    """The picture as a `data:` address; empty unless it begins like one."""
    start = bytes(data[:12])
    kind = next((kind for begin, kind in _TYPES if start.startswith(begin)), "")
    if start[:4] == b"RIFF" and start[8:] == b"WEBP" and image_limits.trim(bytes(data)).orientation in (None, 1):
        kind = "webp"  # others are not turned by every browser, and what is laid over them is
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}" if kind else ""


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
