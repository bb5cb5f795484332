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
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from flambeau.bundle import storage

OPTIONS = "model.toml"
"""The file in a model's folder, or a version's, with its options."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""What a model or a version may be called."""

_SUFFIXES = frozenset({".pth", ".pt", ".pt2", ".bin", ".ckpt", ".safetensors", ".onnx", ".mar"})
_MOST = 10_000  # entries of one folder
_OTHER_FOLDERS = ("saved_model.pb", "data.pkl", ".metadata", "config.json", "*.index.json")
"""Files whose folder is one model, of another program's making."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a version lies.

    `source` is a bundle's folder or a file; `None` where `folder` holds no source, or several. `candidates` are the
    files that could be it. `options` are the files of options from the most general to the most special.
    """

    folder: Path
    source: Path | None
    candidates: tuple[str, ...] = ()
    options: tuple[Path, ...] = ()


RepositoryLayout = dict[str, dict[str, Place]]
"""Places by model and version."""


def read(folder: Path) -> RepositoryLayout:
    """The models in a folder; empty for a folder that is no repository. Raises `OSError`."""
    if (folder / storage.MANIFEST).is_file() or any(next(folder.glob(name), None) for name in _OTHER_FOLDERS):
        return {}
    found: RepositoryLayout = {}
    for entry in _entries(folder):
        if entry.is_file() and entry.suffix.lower() in _SUFFIXES and NAME.fullmatch(entry.stem):
            versions = found.setdefault(entry.stem, {})
            first = versions.setdefault("1", Place(folder, entry, (entry.name,), _options(entry.with_suffix(".toml"))))
            if first.source != entry:  # cats.pth and cats.onnx
                versions["1"] = Place(folder, None, (*first.candidates, entry.name), first.options)
        elif entry.is_dir() and NAME.fullmatch(entry.name) and (versions := _versions(entry)):
            found[entry.name] = versions
    return found


def newest_first(versions: list[str]) -> list[str]:
    """Versions in order: 10 before 9, and numbers before words."""
    return sorted(
        versions, key=lambda each: (each.isdecimal(), int(each) if each.isdecimal() else 0, each), reverse=True
    )


def _versions(folder: Path) -> dict[str, Place]:
    general = _options(folder / OPTIONS)
    if (folder / storage.MANIFEST).is_file():
        return {"1": Place(folder, folder, options=general)}
    found = {}
    for entry in _entries(folder):
        if entry.is_dir() and NAME.fullmatch(entry.name) and (place := _place(entry, general)) is not None:
            found[entry.name] = place
    return found or ({"1": alone} if (alone := _place(folder, ())) is not None else {})


def _place(folder: Path, general: tuple[Path, ...]) -> Place | None:
    """What a version's folder holds; `None` for a folder with nothing of ours in it."""
    options = general + _options(folder / OPTIONS)
    if (folder / storage.MANIFEST).is_file():
        return Place(folder, folder, options=options)
    files = [entry for entry in _entries(folder) if entry.is_file() and entry.suffix.lower() in _SUFFIXES]
    if not files and not (folder / OPTIONS).is_file():
        return None
    only = files[0] if len(files) == 1 else None
    return Place(folder, only, tuple(file.name for file in files), options)


def _options(file: Path) -> tuple[Path, ...]:
    return (file,) if file.is_file() else ()


def _entries(folder: Path) -> list[Path]:
    return sorted(entry for entry in islice(folder.iterdir(), _MOST) if not entry.name.startswith((".", "__")))
