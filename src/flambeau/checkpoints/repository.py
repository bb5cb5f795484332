"""The layout of a repository: which models and versions a folder holds, by names alone. Opens no file.

    DIR/cats.pth                       model cats, version 1
    DIR/dogs/manifest.json             model dogs, version 1: a bundle
    DIR/digits/2/manifest.json         model digits, version 2: a bundle
    DIR/digits/3/net.onnx              model digits, version 3: any one source
    DIR/digits/3/model.toml            what is set for that version alone
    DIR/digits/model.toml              what is set for all versions of digits

Names and versions are read here once and looked up in a table from then on: no request ever becomes a path.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from flambeau.bundle import storage

OPTIONS = "model.toml"
"""The file in a model's folder, or a version's, with its options."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""What a model or a version may be called."""

SUFFIXES = frozenset({".pth", ".pt", ".pt2", ".bin", ".ckpt", ".safetensors", ".onnx", ".mar"})
"""How files are called that may be a model by themselves."""

_MOST = 10_000  # entries of one folder
_OTHER_FOLDERS = ("saved_model.pb", "data.pkl", ".metadata", "config.json", "*.index.json")
"""Files whose folder is one model, of another program's making."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a version lies.

    `source` is a bundle's folder or a file; `None` where `folder` holds no source, or several. `candidates` are the
    files that could be it. `general` is the file of options of the whole model, `special` that of this version.
    `fault` says why the folder could not be read.
    """

    folder: Path
    source: Path | None
    candidates: tuple[str, ...] = ()
    general: Path | None = None
    special: Path | None = None
    fault: str = ""


RepositoryLayout = dict[str, dict[str, Place]]
"""Places by model and version."""


def read(folder: Path) -> RepositoryLayout:
    """The models in a folder; empty for a folder that is no repository.

    A model that cannot be read has its fault. Raises `OSError` if the folder itself cannot be.
    """
    if (folder / storage.MANIFEST).is_file() or any(next(folder.glob(name), None) for name in _OTHER_FOLDERS):
        return {}
    found: RepositoryLayout = {}
    for entry in _entries(folder):
        try:
            _add(found, folder, entry)
        except OSError as error:
            found[entry.name] = {"1": Place(entry, None, fault=f"{entry} cannot be read: {error.strerror}")}
    return found


def _add(found: RepositoryLayout, folder: Path, entry: Path) -> None:
    if entry.is_file() and entry.suffix.lower() in SUFFIXES and NAME.fullmatch(entry.stem):
        place = Place(folder, entry, (entry.name,), _options(entry.with_suffix(".toml")))
        other = found.setdefault(entry.stem, {}).setdefault("1", place)
        if other is not place:  # cats.pth and cats.onnx, or cats.pth beside cats/1
            found[entry.stem]["1"] = Place(folder, None, (*other.candidates, entry.name), place.general)
    elif entry.is_dir() and NAME.fullmatch(entry.name) and (versions := _versions(entry)):
        found[entry.name] = versions


def newest_first(versions: Iterable[str]) -> list[str]:
    """Versions in order: 10 before 9, 1.10 before 1.9, and numbers before words."""
    return sorted(versions, key=_age, reverse=True)


def _age(version: str) -> list[tuple[int, int | str]]:
    parts = re.findall(r"\d+|\D+", version)
    return [(1, int(part)) if part.isdecimal() else (0, part) for part in parts]


def _versions(folder: Path) -> dict[str, Place]:
    general = _options(folder / OPTIONS)
    if (folder / storage.MANIFEST).is_file():
        return {"1": Place(folder, folder, general=general)}
    found = {}
    for entry in _entries(folder):
        if entry.is_dir() and NAME.fullmatch(entry.name):
            try:
                place = _place(entry, general)
            except OSError as error:
                place = Place(entry, None, fault=f"{entry} cannot be read: {error.strerror}")
            if place is not None:
                found[entry.name] = place
    if found:
        return found
    alone = _place(folder, None)  # whose file of options is that of the model
    return {} if alone is None else {"1": replace(alone, general=alone.special, special=None)}


def _place(folder: Path, general: Path | None) -> Place | None:
    """What a version's folder holds; `None` for a folder with nothing of ours in it."""
    special = _options(folder / OPTIONS)
    if (folder / storage.MANIFEST).is_file():
        return Place(folder, folder, general=general, special=special)
    files = [entry for entry in _entries(folder) if entry.is_file() and entry.suffix.lower() in SUFFIXES]
    if not files and special is None:
        return None
    only = files[0] if len(files) == 1 else None
    return Place(folder, only, tuple(file.name for file in files), general, special)


def _options(file: Path) -> Path | None:
    return file if file.is_file() else None


def _entries(folder: Path) -> list[Path]:
    return sorted(entry for entry in islice(folder.iterdir(), _MOST) if not entry.name.startswith((".", "__")))
