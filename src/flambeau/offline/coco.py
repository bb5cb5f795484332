"""COCO's results: what a detector found, as a list that pycocotools loads (`COCO.loadRes`).

    [{"image_id": 42, "category_id": 18, "bbox": [x, y, width, height], "score": 0.98}, ...]

The form is that of https://cocodataset.org/#format-results. Which numbers stand for which image and class is settled
before the run (`Numbers`); the file is made when all rows are there. It reads no picture.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from flambeau.errors import ConfigError, RequestError
from flambeau.offline.entries import InputEntry, bad_input, shown
from flambeau.offline.rows import Layout, Row, WrittenRow
from flambeau.tasks.object_detection import ObjectDetection
from flambeau.types import Label, Outcome

NO_CLASS = frozenset({"background", "__background__", "N/A", "no person"})
"""Names of outputs that stand for no class."""


class CocoLayout(Layout):
    """The columns of a detector's task, and the number of each object's class."""

    @property
    def columns(self) -> tuple[str, ...]:
        return (*super().columns, "classes")

    def row(self, name: str, outcome: Outcome) -> Row:
        row = super().row(name, outcome)
        if isinstance(outcome.result, ObjectDetection):
            row["classes"] = [each.index for each in outcome.result.found]
        return row


class _Image(msgspec.Struct):
    id: int
    file_name: str


class _Category(msgspec.Struct):
    id: int
    name: str


class _Annotations(msgspec.Struct):
    """What is read of a file of annotations."""

    images: list[_Image]
    categories: list[_Category]


@dataclass(frozen=True)
class Numbers:
    """The ids of images and categories, and in words where they come from.

    `images` has the ids by file name, or is `None` if inputs are counted from 1. `categories` has the ids by the
    numbers of the model's classes, or is `None` if they are those numbers.
    """

    images: dict[str, int] | None
    categories: dict[int, int] | None
    told: str

    def image(self, name: str) -> int | None:
        """The id of the image that an input's name means: the file may name it by any end of its path."""
        assert self.images is not None  # the caller checked
        parts = PurePosixPath(name).parts
        ends = (str(PurePosixPath(*parts[start:])) for start in range(len(parts)))
        return next((self.images[end] for end in ends if end in self.images), None)

    def only_known(self, entries: Iterable[InputEntry]) -> Iterator[InputEntry]:
        """The entries, with an error in place of one whose image has no id, or the id of one before it."""
        if self.images is None:
            yield from entries
            return
        given = set[int]()
        for entry in entries:
            image = self.image(entry.name)
            if image is None and not isinstance(entry.content, RequestError):
                yield InputEntry(entry.name, bad_input("the file of --coco-annotations has no image of this name"))
            elif image in given:
                told = f"image {image} of --coco-annotations was an input before this one: name each once"
                yield InputEntry(entry.name, bad_input(told))
            else:
                yield entry
            if image is not None:
                given.add(image)


def numbers(labels: Sequence[Label] | None, annotations: Path | None) -> Numbers:
    """The ids for a model with these labels. Raises `ConfigError` for annotations that cannot be used."""
    names = {index: label.name for index, label in enumerate(labels or ()) if label.name not in NO_CLASS}
    if annotations is None:
        told = "image_id counts the inputs from 1"
        official = _official()
        if names and set(names.values()) <= official.keys():
            ids = {index: official[name] for index, name in names.items()}
            return Numbers(None, ids, f"{told}; category_id is COCO's own, 1 to 90")
        return Numbers(None, None, f"{told}; category_id is the number of the model's class")
    found = _read(annotations)
    by_name = {each.name: each.id for each in found.categories}
    if missing := [name for name in names.values() if name not in by_name]:
        raise ConfigError(
            f"--coco-annotations {annotations} has no category {missing[0]!r}, which is a class of the model: "
            "name the classes with --labels as the file does"
        )
    told = f"image_id and category_id are those of {shown(annotations)}"
    if not names:
        told = f"image_id is that of {shown(annotations)}; category_id is the number of the model's class"
    categories = {index: by_name[name] for index, name in names.items()}
    return Numbers({each.file_name: each.id for each in found.images}, categories or None, told)


def _read(annotations: Path) -> _Annotations:
    try:
        found = msgspec.json.decode(annotations.read_bytes(), type=_Annotations)
    except OSError as error:
        raise ConfigError(f"--coco-annotations {annotations} cannot be read ({error.strerror})") from None
    except msgspec.DecodeError as error:
        raise ConfigError(
            f"--coco-annotations {annotations} is not COCO's: {error}: it needs images with id and file_name, and "
            "categories with id and name"
        ) from None
    each_once: tuple[tuple[str, list[int] | list[str]], ...] = (
        ("image id", [each.id for each in found.images]),
        ("file_name", [each.file_name for each in found.images]),
        ("category id", [each.id for each in found.categories]),
        ("category", [each.name for each in found.categories]),
    )
    for what, values in each_once:
        if twice := [value for value, often in Counter(values).items() if often > 1]:
            raise ConfigError(
                f"--coco-annotations {annotations} has the {what} {twice[0]!r} twice: each has to mean one thing"
            )
    return found


@cache
def _official() -> dict[str, int]:
    """COCO's ids of its 80 categories, by name: the places in the list that torchvision's weights count by."""
    listed = json.loads(resources.files("flambeau.answers").joinpath("coco_classes.json").read_text("utf-8"))
    return {name: index for index, name in enumerate(listed) if name not in NO_CLASS}


# The files. Beside FILE.json lies FILE.images.json, which is a file of annotations without any, for `COCO(...)`.


def beside(target: Path) -> Path:
    """The file that says which image has which id."""
    return target.with_suffix(".images.json")


def write(target: Path, rows: Path, ids: Numbers, labels: Sequence[Label] | None) -> None:
    """Write both files from the rows of a run. Each is complete or absent, the results last."""
    images: list[dict[str, Any]] = []
    fresh = target.with_name(f"{target.name}.new")
    with rows.open("rb") as file, fresh.open("wb") as made:
        made.write(b"[")
        first, listed = True, set[int | None]()
        for number, line in enumerate(file, 1):
            row = msgspec.json.decode(line)
            image = number if ids.images is None else ids.image(row["input"])
            image = None if image in listed else image  # an error, for it was an input before
            listed.add(image)
            told = {"error": row["error"], "code": row["code"]} if row["code"] is not None else {}
            size = {} if told else {"width": row["width"], "height": row["height"]}
            images.append({"id": image, "file_name": row["input"], **size, **told})
            for each in () if told else results(row, image, ids):
                made.write(b"\n" if first else b",\n")
                made.write(msgspec.json.encode(each))
                first = False
        made.write(b"\n]\n")
    made_beside = {"images": images, "annotations": [], "categories": _categories(ids, labels)}
    other = beside(target).with_name(f"{beside(target).name}.new")
    other.write_bytes(msgspec.json.encode(made_beside))
    other.replace(beside(target))
    fresh.replace(target)


def results(row: Row, image: int | None, ids: Numbers) -> Iterator[dict[str, Any]]:
    """The objects of a row. Left out is what the form has no place for: one with a number that is not finite, and one
    whose class stands for none."""
    size = [row["height"], row["width"]]
    for place, (index, score, box) in enumerate(zip(row["classes"], row["scores"], row["boxes"], strict=True)):
        if not all(isinstance(number, int | float) and math.isfinite(number) for number in (score, *box)):
            continue
        xmin, ymin, xmax, ymax = box
        category = index if ids.categories is None else ids.categories.get(index)
        if category is None:
            continue
        found: dict[str, Any] = {
            "image_id": image,
            "category_id": category,
            "bbox": [xmin, ymin, xmax - xmin, ymax - ymin],
            "score": score,
        }
        if row.get("masks") is not None:
            found["segmentation"] = {"size": size, "counts": row["masks"][place]}
        if row.get("keypoints") is not None:  # COCO's evaluation does not use the third number, and wants 1
            found["keypoints"] = [number for x, y, _ in row["keypoints"][place] for number in (x, y, 1)]
        yield found


def _categories(ids: Numbers, labels: Sequence[Label] | None) -> list[dict[str, Any]]:
    named = [(index, label.name) for index, label in enumerate(labels or ()) if label.name not in NO_CLASS]
    return [{"id": index if ids.categories is None else ids.categories[index], "name": name} for index, name in named]


def written(target: Path) -> Iterator[WrittenRow]:
    """The rows of a file that `write` made, in order."""
    listed = json.loads(beside(target).read_bytes())
    for image in listed["images"]:
        yield WrittenRow(image["file_name"], image.get("code"))
