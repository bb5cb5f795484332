"""The packages that an archive's `requirements.txt` names: which of them are missing here, and an environment for them.

An environment belongs to the text of the requirements and to this version of Python. It sees all packages of the Python
that serves, and holds what that lacks, or has in another version; its folder goes before all others in the workers of
its model, and in no other process. Only pip knows how to install, and only with `--allow-installs` is it asked to.

What reads requirements is imported when there are some: most models have none, and images for those lack it.
"""

import hashlib
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable
from importlib.metadata import Distribution, distributions
from pathlib import Path

from flambeau.checkpoints.report import plain
from flambeau.errors import InstallsNotAllowed, SourceError
from flambeau.system import staging
from flambeau.system.process import interpreter
from flambeau.telemetry import logs

_SHARED = "zz_shared.pth"  # last in the alphabet: what the environment has itself goes first
_PATIENCE = 1800  # seconds for pip: some packages are gigabytes
_LONGEST_REASON = 400
_MORE = ("-r", "--requirement", "-e", "--editable")  # options that name packages; the others say where pip finds them


def missing(text: str, *, within: Path | None = None) -> list[str]:
    """The lines of the text of a requirements file that are not fulfilled; of other files and addresses only pip knows.

    `within`: the packages of this environment count, too.
    """
    if not text.strip():
        return []
    from packaging.utils import canonicalize_name

    path = [*([] if within is None else [str(_packages(within))]), *sys.path]
    found: dict[str, Distribution] = {}
    for each in distributions(path=path):
        found.setdefault(canonicalize_name(each.name), each)
    return [line for line in _lines(text) if not _fulfilled(line, found)]


def named(text: str) -> list[str]:
    """The packages that the text of a requirements file names and this machine wants, without hashes and addresses."""
    from packaging.requirements import Requirement

    plain_ones = [Requirement(line.split(" --")[0]) for line in _lines(text) if _is_plain(line.split(" --")[0])]
    found = [each for each in plain_ones if each.marker is None or each.marker.evaluate()]
    for each in found:
        each.marker = None
    return [str(each) for each in found]


def _lines(text: str) -> list[str]:
    joined = text.replace("\\\n", " ")
    lines = (line.split(" #")[0].strip() for line in joined.splitlines() if not line.lstrip().startswith("#"))
    return [line for line in lines if line]


def _fulfilled(line: str, found: dict[str, Distribution]) -> bool:
    if line.startswith("-") and not line.startswith(_MORE):
        return True
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name

    try:
        wanted = Requirement(line.split(" --")[0])  # what follows are the hashes of its files
    except InvalidRequirement:
        return False
    if wanted.marker is not None and not wanted.marker.evaluate():
        return True
    here = found.get(canonicalize_name(wanted.name))
    if here is None or wanted.url or not wanted.specifier.contains(here.version, prereleases=True):
        return False
    return all(_fulfilled(each, found) for each in _of_extras(here, wanted.extras))


def _of_extras(here: Distribution, extras: Iterable[str]) -> list[str]:
    from packaging.requirements import Requirement

    found = []
    for text in here.requires or ():
        each = Requirement(text)
        marker, each.marker = each.marker, None
        if marker and not marker.evaluate({"extra": ""}) and any(marker.evaluate({"extra": one}) for one in extras):
            found.append(str(each))
    return found


def find(text: str, home: Path, *, whose: str) -> str:
    """The folder of packages for the workers of a model; empty if they need none. `whose`: the model, for messages.

    Raises `InstallsNotAllowed` with the list of what is missing.
    """
    if not (lacking := missing(text)):
        return ""
    target = _environment(text, home)
    if target.is_dir() and not _lacking(text, target):
        return str(_packages(target))
    raise _refusal(lacking, whose)


def provide(text: str, home: Path, *, whose: str, allowed: bool) -> None:
    """Install what is missing below `home`, if that is allowed and was not done before.

    Raises `InstallsNotAllowed`, or `SourceError` with pip's reason.
    """
    if not (lacking := missing(text)):
        return
    target = _environment(text, home)
    if target.is_dir() and not _lacking(text, target):
        return
    if not allowed:
        raise _refusal(lacking, whose)
    logs.event("installing packages for a model, in an environment of its own", model=whose,
               packages=plain(", ".join(lacking)))  # fmt: skip
    try:
        home.mkdir(parents=True, exist_ok=True)
        with staging.lock(home, target.name):
            if not target.is_dir():
                staging.clear(home)
                with staging.filling(target) as folder:
                    _fill(text, folder, whose)
                    folder.rename(target)
            elif _lacking(text, target):  # this Python has fewer packages than when it was made
                _pip(text, target, whose)
    except OSError as error:
        raise SourceError(f"the packages of {whose} cannot be installed to {home} ({error.strerror}): name another "
                          "folder with FLAMBEAU_CACHE") from error  # fmt: skip


def _refusal(lacking: list[str], whose: str) -> InstallsNotAllowed:
    return InstallsNotAllowed(
        f"{whose} needs packages that are not here: {plain(', '.join(lacking))}: pip install them beside Flambeau, or "
        "serve the archive with --allow-installs, which installs them for this model alone"
    )


def _lacking(text: str, target: Path) -> list[str]:
    """What an environment lacks. Other files and addresses were pip's to fulfil when it was made."""
    return [line for line in missing(text, within=target) if _is_plain(line)]


def _is_plain(line: str) -> bool:
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        return not Requirement(line).url
    except InvalidRequirement:
        return False


def _environment(text: str, home: Path) -> Path:
    said = f"{sys.implementation.cache_tag} {sysconfig.get_platform()}\n{text}"
    return home / hashlib.sha256(said.encode()).hexdigest()[:32]


def _packages(environment: Path) -> Path:
    return Path(sysconfig.get_path("purelib", "venv", {"base": str(environment)}))


def _fill(text: str, folder: Path, whose: str) -> None:
    import venv

    venv.EnvBuilder(symlinks=True).create(folder)
    shared = [each for each in sys.path if each and Path(each).is_dir()]
    (_packages(folder) / _SHARED).write_text("\n".join(shared) + "\n")
    _pip(text, folder, whose)


def _pip(text: str, folder: Path, whose: str) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        options = ["--quiet", "--disable-pip-version-check", "--no-input"]
        command = [interpreter(), "-m", "pip", "--python", str(folder / "bin" / "python"), "install", *options]
        try:
            done = subprocess.run(
                [*command, "-r", file.name], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                timeout=_PATIENCE, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise SourceError(
                f"the packages of {whose} cannot be installed: pip took over {_PATIENCE} s: try again, or pip install "
                "them beside Flambeau"
            ) from None
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines[-1:]
        reason = plain(" ".join(errors))[:_LONGEST_REASON] or f"it ended with {done.returncode}"
        raise SourceError(f"the packages of {whose} cannot be installed: pip says: {reason}")
