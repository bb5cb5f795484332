"""Class names: the built-in ImageNet list, and the file formats people have.

* `imagenet`: the 1,000 classes of ILSVRC 2012 with their WordNet ids
* `imagenet_class_index.json`: `{"0": ["n01440764", "tench"], ...}`
* `index_to_name.json`: `{"0": "cat", ...}`
* a text file: one name a line, in the order of the model's outputs
"""

import json
from importlib import resources
from pathlib import Path
from typing import Any

from flambeau.errors import LabelsError
from flambeau.types import Label

IMAGENET = "imagenet"


def load(source: str, *, outputs: int) -> tuple[Label, ...]:
    """The labels in the order of the model's `outputs`. Raises `LabelsError`; a wrong count names both numbers."""
    if source == IMAGENET:
        labels = _from_json(resources.files("flambeau.build").joinpath("imagenet_class_index.json").read_text("utf-8"))
        what = "the ImageNet list"
    else:
        what = f"--labels {source}"
        labels = _from_file(Path(source), what)
    if len(labels) != outputs:
        raise LabelsError(f"{what} has {len(labels)} classes, but the model has {outputs} outputs")
    return labels


def _from_file(path: Path, what: str) -> tuple[Label, ...]:
    try:
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise LabelsError(f"{what} cannot be read ({error.strerror}): name a file, or imagenet") from error
    except UnicodeDecodeError:
        raise LabelsError(f"{what} is not text in UTF-8") from None
    if text.lstrip().startswith("{"):
        try:
            return _from_json(text)
        except (ValueError, TypeError, KeyError) as error:
            raise LabelsError(
                f'{what} is not a table of classes like {{"0": ["n01440764", "tench"]}} or {{"0": "cat"}}: {error}'
            ) from error
    if text.lstrip().startswith("["):
        raise LabelsError(f'{what} is a JSON list: write {{"0": "cat", ...}}, or one name a line')
    names = [line.strip() for line in text.splitlines() if line.strip()]
    return tuple(Label(str(index), name) for index, name in enumerate(names))


def _from_json(text: str) -> tuple[Label, ...]:
    table: dict[str, Any] = json.loads(text)
    missing = [index for index in range(len(table)) if str(index) not in table]
    if missing:
        raise ValueError(f'class "{missing[0]}" is missing')
    return tuple(_label(index, table[str(index)]) for index in range(len(table)))


def _label(index: int, entry: Any) -> Label:
    if isinstance(entry, str):
        return Label(str(index), entry)
    if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry)):
        raise TypeError(f'class "{index}" is neither a name nor [id, name]')
    return Label(*entry)
