"""Class names: the built-in lists of ImageNet, COCO and PASCAL VOC, and the common file formats.

* `imagenet`: the 1,000 classes of ILSVRC 2012 with their WordNet ids
* `coco`: the 91 classes of COCO, as torchvision's detectors number them
* `voc`: the 21 classes of PASCAL VOC, as torchvision's segmenters number them
* `imagenet_class_index.json`: `{"0": ["n01440764", "tench"], ...}`
* `index_to_name.json`: `{"0": "cat", ...}`
* `class_to_idx.json`, as torchvision's `ImageFolder` has it: `{"cat": 0, ...}`
* a JSON list of names, or an object with one of these tables under a key such as `classes` or `id2label`
* a text file: one name per line, in the order of the model's outputs; or a number and a name, as `0,cat` or `0 cat`

An ambiguous file is refused.
"""

import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

from flambeau.errors import LabelsError
from flambeau.types import Label

IMAGENET = "imagenet"
COCO = "coco"
"""The 91 classes of COCO, of which torchvision's detectors know 80. The first is the background."""

VOC = "voc"
"""The 21 classes of PASCAL VOC, of which the first is the background."""

_VOC = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

BACKGROUND = Label("0", "background")
"""The first class of a detector or segmenter, which stands for nothing."""


def load(source: str, *, outputs: int, background: bool = False) -> tuple[Label, ...]:
    """The labels, in the order of the model's outputs. `outputs` is how many there are.

    `background`: the first output is the background's, and the list may leave it out. Raises `LabelsError`, which for
    a wrong count names both numbers.
    """
    if source == IMAGENET:
        labels = _of(
            json.loads(resources.files("flambeau.builder").joinpath("imagenet_class_index.json").read_text("utf-8"))
        )
        what = "the ImageNet list"
    elif source == COCO:
        labels = _of(json.loads(resources.files("flambeau.answers").joinpath("coco_classes.json").read_text("utf-8")))
        what = "the COCO list"
    elif source == VOC:
        labels = tuple(Label(str(index), name) for index, name in enumerate(_VOC))
        what = "the PASCAL VOC list"
    else:
        what = f"--labels {source}"
        labels = _from_file(Path(source), what)
    if background and len(labels) == outputs - 1:
        return with_background(labels)
    if len(labels) != outputs:
        raise LabelsError(
            f"{what} has {len(labels)} classes, but the model has {outputs} outputs: "
            "give --labels a file that names "
            + (f"them all, the background first, or the {outputs - 1} others" if background else "as many")
        )
    return labels


def with_background(labels: tuple[Label, ...]) -> tuple[Label, ...]:
    """The labels of all classes of a detector, from a list without the background. An id that is a number counts up."""
    moved = (
        Label(str(index), each.name) if each.id == str(index - 1) else each for index, each in enumerate(labels, 1)
    )
    return (BACKGROUND, *moved)


def _from_file(path: Path, what: str) -> tuple[Label, ...]:
    try:
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise LabelsError(f"{what} cannot be read ({error.strerror}): name a file, or imagenet, coco or voc") from error
    except UnicodeDecodeError:
        raise LabelsError(f"{what} is not text in UTF-8") from None
    if re.match(r"\s*(\{|\[\s*[\[\"])", text):  # a name in brackets is a name
        return _parsed(text, what)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    names = _numbered(lines, what) or lines
    return tuple(Label(str(index), name) for index, name in enumerate(names))


def _parsed(text: str, what: str) -> tuple[Label, ...]:
    try:
        return _of(json.loads(text))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise LabelsError(
            f'{what} is not a table of classes like {{"0": ["n01440764", "tench"]}}, {{"0": "cat"}}, {{"cat": 0}} or '
            f'["cat"]: {error}'
        ) from error


def _numbered(lines: list[str], what: str) -> list[str] | None:
    """The names from lines that all begin with a class number, in that order; `None` for plain names.

    Numbers followed by a comma, tab, semicolon or colon always count as class numbers. Followed by a blank they count
    only if they run from 0 to the last class, because "5 euros" may be a name.
    """
    found = [_NUMBERED.fullmatch(line) for line in lines]
    if len(found) > 1 and found[0] is None and all(found[1:]) and _HEADER.fullmatch(lines[0]):
        found, lines = found[1:], lines[1:]
    parts = [match for match in found if match]
    if not parts or len(parts) < len(lines):
        return None
    names = {int(match[1]): match[3] for match in parts}
    if sorted(names) == list(range(len(lines))):
        return [names[index] for index in range(len(lines))]
    if all(match[2].strip() for match in parts) or any("\t" in match[2] for match in parts):
        raise LabelsError(
            f"{what} gives its lines numbers that are not those of the classes, 0 to {len(lines) - 1}: write one name "
            "a line, in the order of the model's outputs"
        )
    return None


_NUMBERED = re.compile(r"(\d{1,6})(\s*[,;:\t]\s*| +)(\S.*)")
_HEADER = re.compile(r"\w+(\s*[,;:\t]\s*)\w+")
_KEYS = (
    "object_type_names", "classes", "class_names", "labels", "names", "categories", "class_to_idx", "idx_to_class",
    "id2label", "label2id",
)  # fmt: skip
"""Keys under which programs keep their classes."""


def _of(table: Any) -> tuple[Label, ...]:
    """The classes in a JSON value. Raises `ValueError` or `TypeError` that says what is wrong with it."""
    if isinstance(table, list):
        return tuple(_label(index, entry) for index, entry in enumerate(table))
    if not isinstance(table, dict):
        raise TypeError("it is neither an object nor a list")
    within = [key for key in _KEYS if isinstance(table.get(key), dict | list)]
    if within:
        found = [_of(table[key]) for key in within]
        if any(each != found[0] for each in found):
            raise ValueError(f"{' and '.join(within)} in it differ")
        return found[0]
    if table and all(type(index) is int for index in table.values()):
        table = _turned(table)
    missing = [index for index in range(len(table)) if str(index) not in table]
    if missing:
        raise ValueError(f'class "{missing[0]}" is missing')
    return tuple(_label(index, table[str(index)]) for index in range(len(table)))


def _turned(numbers: dict[str, int]) -> dict[str, str]:
    """`{"cat": 0}` as `{"0": "cat"}`."""
    turned = {str(index): name for name, index in numbers.items()}
    if turned.keys() == numbers.keys() and turned != {name: str(index) for name, index in numbers.items()}:
        raise ValueError("its names are numbers as well, so that it could be read either way")
    if len(turned) < len(numbers):
        raise ValueError("two of its classes have the same number")
    return turned


def _label(index: int, entry: Any) -> Label:
    if isinstance(entry, str):
        return Label(str(index), entry)
    if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry)):
        raise TypeError(f'class "{index}" is neither a name nor [id, name]')
    return Label(*entry)
