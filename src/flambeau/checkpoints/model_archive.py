"""TorchServe's archives, as data: the manifest, the file of configuration, and the files, unpacked.

A `.mar` is a zip; `--archive-format tgz` and `no-archive` make a tar and a folder of the same layout. Nothing in them
is run or imported. What a handler's name means is not known here.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from flambeau.checkpoints.archive_files import ArchiveFiles, open_files
from flambeau.checkpoints.report import DOWNLOAD_AGAIN, ScanError, plain
from flambeau.errors import ConfigError, SourceError
from flambeau.system.machine import pip_install

MANIFEST = "MAR-INF/MANIFEST.json"
LABELS = "index_to_name.json"
REQUIREMENTS = "requirements.txt"
SCRIPTS = ("code/inference.py",)
"""The script of a model of SageMaker's."""

_LARGEST_TEXT = 2**20


class ArchivedModel(msgspec.Struct, frozen=True):
    """What an archive's manifest says of its model; files are named by their paths in the archive.

    `weights`: the serialised file. `network`: the Python file with the network's class. `config`: the contents of
    `model-config.yaml`. `labels`: the table of class names. `names`: all files.
    """

    name: str
    version: str
    handler: str
    weights: str | None = None
    network: str | None = None
    requirements: str | None = None
    labels: str | None = None
    config: dict[str, Any] = {}
    envelope: str | None = None
    names: tuple[str, ...] = ()
    manifest: dict[str, Any] = {}


def read(path: Path) -> ArchivedModel | None:
    """What an archive holds, without unpacking it; `None` for anything that is no archive of TorchServe.

    Raises `SourceError` for one that is damaged or hostile, and `ConfigError` where a package is missing.
    """
    try:
        files = _open(path)
        return None if files is None else _read(files, path)
    except ScanError as refusal:
        raise _refused(path, refusal) from None
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from error


def unpack(path: Path, folder: Path) -> None:
    """Write the files of an archive into an empty folder. Raises `SourceError` or `OSError`."""
    try:
        files = open_files(path)
        if files is None:
            raise SourceError(f"{path} was an archive and is none any more: try again when it is whole")
        files.unpack(folder)
    except ScanError as refusal:
        raise _refused(path, refusal) from None


def holds(folder: Path, names: Sequence[str]) -> bool:
    """Whether a folder that was unpacked holds these files and no others. Raises `SourceError` or `OSError`."""
    try:
        files = open_files(folder)
    except ScanError as refusal:
        raise _refused(folder, refusal) from None
    return files is not None and set(files.names) == set(names)


def files_of_sagemaker(path: Path) -> tuple[str, ...] | None:
    """The files of `model.tar.gz`, or of the folder that it is unpacked to; `None` for anything else.

    A folder counts only if it has a script. Raises `SourceError`.
    """
    try:
        packed = path.is_file() and path.name.lower().endswith((".tar.gz", ".tgz"))
        if not packed and not any((path / name).is_file() for name in SCRIPTS):
            return None
        files = open_files(path)
        return None if files is None else files.names
    except ScanError as refusal:
        raise _refused(path, refusal) from None
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from error


def looks_like(path: Path) -> bool:
    """Whether a path may be an archive of TorchServe, by its name alone: `read` says whether it is."""
    name = path.name.lower()
    return name.endswith((".mar", ".tar.gz", ".tgz", ".zip")) or (path / MANIFEST).is_file()


def is_folder_of_one(path: Path) -> bool:
    """Whether a folder is one archive, unpacked: of TorchServe, or with a script of SageMaker."""
    return any((path / name).is_file() for name in (MANIFEST, *SCRIPTS))


def _open(path: Path) -> ArchiveFiles | None:
    if not looks_like(path):
        return None
    files = open_files(path)
    return files if files is not None and MANIFEST in files.names else None


def _refused(path: Path, refusal: ScanError) -> SourceError:
    return SourceError(f"{path} {refusal.reason}: {refusal.remedy}")


def _read(files: ArchiveFiles, path: Path) -> ArchivedModel:
    manifest = _json(files, MANIFEST)
    model = manifest.get("model") if isinstance(manifest, dict) else None
    if not isinstance(manifest, dict) or not isinstance(model, dict):
        raise ScanError(f"is a .mar whose {MANIFEST} names no model")
    named = {key: _file(files, model, key) for key in ("serializedFile", "modelFile", "requirementsFile", "configFile")}
    config = named["configFile"]
    return ArchivedModel(
        name=_text(model.get("modelName")) or path.name.partition(".")[0],
        version=_text(model.get("modelVersion")) or "1.0",
        handler=_text(model.get("handler")),
        weights=named["serializedFile"],
        network=named["modelFile"],
        requirements=named["requirementsFile"] or (REQUIREMENTS if REQUIREMENTS in files.names else None),
        labels=LABELS if LABELS in files.names else None,
        config=_yaml(files.read(config, limit=_LARGEST_TEXT), config) if config else {},
        envelope=_text(model.get("envelope")) or None,
        names=files.names,
        manifest=manifest,
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(value) if isinstance(value, int | float) else ""


def _file(files: ArchiveFiles, model: dict[str, Any], key: str) -> str | None:
    """A file that the manifest names, which has to be there. Some manifests name it by a path of its author's."""
    said = _text(model.get(key))
    if not said:
        return None
    name = said if said in files.names else said.replace("\\", "/").rpartition("/")[2]
    if name not in files.names:
        raise ScanError(f"names {plain(said)} as its {key}, and has no such file", DOWNLOAD_AGAIN)
    return name


def _json(files: ArchiveFiles, name: str) -> Any:
    try:
        return msgspec.json.decode(files.read(name, limit=_LARGEST_TEXT))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ScanError(f"is a .mar whose {name} is not JSON") from None


def _yaml(text: bytes, name: str) -> dict[str, Any]:
    try:
        import yaml
    except ImportError as error:
        raise ConfigError(f"reading {name} needs the package PyYAML: {pip_install('torchserve')}") from error
    try:
        if any(isinstance(each, yaml.AliasEvent) for each in yaml.parse(text, yaml.SafeLoader)):
            raise ScanError(f"has a {plain(name)} with aliases, which can make a short text endless")
        found = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ScanError(f"has a {plain(name)} that is not YAML: {plain(str(error))}", DOWNLOAD_AGAIN) from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ScanError(f"has a {plain(name)} that is no table of settings", DOWNLOAD_AGAIN)
    return {str(key): value for key, value in found.items()}
