"""The folder into which a platform puts a model: what in it is the source.

Platforms unpack an archive, download a bucket's folder or mount a volume, and name only the folder. It may be a bundle,
hold one file, one model's folder, or a repository of several; other files, such as a README, may lie beside. Opens no
file but the names.
"""

from dataclasses import dataclass
from pathlib import Path

from flambeau.bundle import storage
from flambeau.checkpoints import model_archive, repository
from flambeau.errors import ConfigError

_PREFERRED = ("model.safetensors", "pytorch_model.bin", "model.onnx")
"""Of one model's files of the same weights in other formats, as the hub has them: the first is taken."""

_ARCHIVES = (".tar.gz", ".tgz", ".tar", ".zip")
_SCRIPTS = ("code/inference.py", "inference.py", "handler.py", "score.py")

_BRING = "put a bundle of `flambeau build`, or one weights file, into it"


@dataclass(frozen=True, slots=True)
class FoundSource:
    """The SOURCE in a folder, and what the operator should know of it."""

    source: str
    note: str = ""


def find(folder: str, *, allow_code: bool = False) -> FoundSource:
    """What to serve of a folder, or of a file. With `allow_code` it is the folder, if that has a script.

    Raises `ConfigError` where nothing can be told to be the model.
    """
    if "://" in folder:
        raise ConfigError(
            f"the model is at {folder}, and nothing is fetched here: put it into the image (flambeau package SOURCE), "
            "or mount its folder and name that as FLAMBEAU_SOURCE"
        )
    path = Path(folder)
    if path.is_file():
        return FoundSource(folder)
    if allow_code and any((path / name).is_file() for name in model_archive.SCRIPTS):
        return FoundSource(folder)
    try:
        return _find(path)
    except OSError as error:
        raise ConfigError(f"the model folder {folder} cannot be read ({error.strerror}): {_BRING}") from None


def _find(path: Path) -> FoundSource:
    entries = sorted(each.name for each in path.iterdir() if not each.name.startswith((".", "__", "lost+found")))
    note = _about_scripts(path)
    if (path / storage.MANIFEST).is_file():
        return FoundSource(str(path), note)
    if preferred := next((name for name in _PREFERRED if (path / name).is_file()), None):
        others = [name for name in entries if Path(name).suffix in repository.SUFFIXES and name != preferred]
        if all(name in (*_PREFERRED, "pytorch_model.bin") for name in others):
            return FoundSource(str(path / preferred), note)
    layout = repository.read(path)
    places = [place for versions in layout.values() for place in versions.values()]
    if len(places) == 1 and places[0].source is not None and places[0].general is places[0].special is None:
        return FoundSource(str(places[0].source), note)
    if layout:
        return FoundSource(str(path), note)
    if packed := next((name for name in entries if name.endswith(_ARCHIVES)), None):
        raise ConfigError(f"{path / packed} is an archive that nobody unpacked: unpack it, or {_BRING}")
    if not entries:
        raise ConfigError(f"the model folder {path} is empty: {_BRING}, or build the model into the image")
    shown = ", ".join(entries[:5]) + (", ..." if len(entries) > 5 else "")
    raise ConfigError(f"the model folder {path} holds no model, but {shown}: {_BRING}")


def _about_scripts(path: Path) -> str:
    script = next((name for name in _SCRIPTS if (path / name).is_file()), None)
    return f"{path / script} is not run: the model itself is served, by Flambeau's own code" if script else ""
