"""Writes the folder that builds an image: Dockerfile, bundle, pinned requirements, Flambeau's wheel, bill of materials.

The same bundle and the same installed packages make the same bytes, with the same times. It builds neither bundle nor
image.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from flambeau.bundle import storage
from flambeau.bundle.storage import OPTIMISED_ONNX, Bundle, Manifest, PythonConfig
from flambeau.deploy import dockerfile, hashes, requirements, sbom, wheel
from flambeau.deploy.hashes import Hashes
from flambeau.deploy.requirements import Package
from flambeau.errors import CodeNotAllowed
from flambeau.settings.service import EngineChoice

REQUIREMENTS = "requirements.txt"
BUNDLE = "bundle"
MODELS = "/models"
"""Where the image has its bundle, and where another folder can be mounted in its place."""

EPOCH = 315_532_800
"""1 January 1980 in Unix seconds: the time of every file, if SOURCE_DATE_EPOCH names no other."""

_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
"""The index of PyTorch's builds without CUDA, whose versions end in +cpu; PyPI has none of them for Linux."""

_IGNORED = (
    "# Only what the Dockerfile copies goes to the builder\n*\n!requirements.txt\n!flambeau-*.whl\n!{sbom}\n!bundle\n"
)


@dataclass(frozen=True)
class Packaged:
    """A written folder: what it serves, with which engine and packages, on which processors."""

    manifest: Manifest
    engine: str
    tag: str
    packages: tuple[Package, ...]
    hashes: Hashes
    bundle_bytes: int
    dropped: int
    """The bytes of the bundle that stayed behind."""


def write(
    bundle: Bundle,
    folder: Path,
    *,
    engine: EngineChoice,
    tag: str | None,
    more: Iterable[str],
    allow_code: bool,
    keep_optimised: bool,
    epoch: int,
    progress: Callable[[str], None],
) -> Packaged:
    """Write everything into an empty folder. Raises `SetupError`, and `CodeNotAllowed` for a bundle that runs code.

    `more` are packages beyond those that the engine needs: a Python model's imports cannot be known. `keep_optimised`
    keeps the graph that was optimised for this machine's processor. `epoch`: the time of every file, in Unix seconds.
    """
    manifest = bundle.manifest
    chosen = requirements.engine_of(manifest, engine)
    code = runs_code(manifest, chosen)
    if code and not allow_code:
        raise CodeNotAllowed(f"the bundle {manifest.name} holds code, which the image would run: add --allow-code")
    progress("finding the packages that serving needs")
    packages = requirements.needed(manifest, chosen, more)
    progress(f"asking pip for the hashes of {len(packages)} packages")
    found = hashes.ask(packages)
    progress("writing the folder")
    wheel.write(folder)
    dropped = _copy_bundle(bundle, folder / BUNDLE, keep_optimised=keep_optimised)
    (folder / REQUIREMENTS).write_text(_requirements(packages, found))
    sbom.write(folder, storage.read(folder / BUNDLE).manifest, packages, found.of, epoch=epoch)
    settings = {"FLAMBEAU_SOURCE": MODELS}
    settings |= {"FLAMBEAU_ALLOW_CODE": "1"} if code else {}
    settings |= {"FLAMBEAU_ENGINE": chosen} if chosen != manifest.engine else {}
    name = tag or default_tag(manifest.name)
    (folder / "Dockerfile").write_text(
        dockerfile.render(title=manifest.name, description=f"{manifest.name}, served by Flambeau", settings=settings)
    )
    (folder / ".dockerignore").write_text(_IGNORED.format(sbom=sbom.FILE))
    torch = any(each.name == "torch" for each in packages)
    (folder / "README.md").write_text(
        dockerfile.readme(
            title=manifest.name,
            tag=name,
            engine=_engine_name(chosen),
            torch=torch,
            processors=" and ".join(found.processors),
        )
    )
    _settle(folder, epoch)
    size = sum(file.stat().st_size for file in (folder / BUNDLE).rglob("*") if file.is_file())
    return Packaged(manifest, chosen, name, packages, found, size, dropped)


def runs_code(manifest: Manifest, engine: str) -> bool:
    """Whether serving the bundle with that engine runs code that came with the model."""
    own = manifest.architecture is not None and manifest.architecture.registry == "code"
    return isinstance(manifest.pipeline, PythonConfig) or (own and engine in ("eager", "compile"))


def default_tag(name: str) -> str:
    """The image's name from the model's: small letters, digits, and single hyphens between them."""
    return "-".join(re.findall("[a-z0-9]+", name.lower())) or "model"


def _engine_name(engine: str) -> str:
    return {"python": "Python"}.get(engine, engine)


def _copy_bundle(bundle: Bundle, target: Path, *, keep_optimised: bool) -> int:
    """Copy the members and the manifest. Returns the bytes of the members that stay behind."""
    optimised = [name for name in bundle.manifest.members if name.startswith(OPTIMISED_ONNX)]
    behind = [] if keep_optimised else optimised
    target.mkdir()
    for name in bundle.manifest.members:
        if name not in behind:
            file = target / name
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.member(name), file)
    optimal = bundle.manifest.optimised if keep_optimised else None
    storage.write_manifest(target, msgspec.structs.replace(bundle.manifest, optimised=optimal))
    return sum((bundle.path / name).stat().st_size for name in behind)


def _requirements(packages: tuple[Package, ...], found: Hashes) -> str:
    """The requirements file: exact versions with the sha256 of their wheels, for pip's --require-hashes."""
    where = f"Python {requirements.python_version()} on {' and '.join(found.processors)}"
    lines = [f"# What serving needs, at the versions it was packaged with, for {where}."]
    if any(each.version.endswith("+cpu") for each in packages):
        lines.append(f"--extra-index-url {_CPU_INDEX}")
    for each in packages:
        sums = (f"    --hash=sha256:{sha256}" for sha256 in found.of[each.name])
        lines.append(" \\\n".join([each.pin, *sums]))
    return "\n".join(lines) + "\n"


def _settle(folder: Path, epoch: int) -> None:
    """Give every file and folder the same time and the permissions that any user of the image can read with."""
    for each in (*sorted(folder.rglob("*"), reverse=True), folder):
        each.chmod(0o755 if each.is_dir() else 0o644)
        os.utime(each, (epoch, epoch))
