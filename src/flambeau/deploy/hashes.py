"""The sha256 of the wheels that an image installs, for each kind of processor, as pip finds them.

pip is asked in the words of its own command line, so its configuration (another index, a certificate) counts here too.
Nothing is downloaded but what the index tells about the files.
"""

import json
import platform
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from flambeau.deploy.requirements import Package, normalised, python_version
from flambeau.errors import SetupError
from flambeau.system.process import interpreter

PROCESSORS = ("x86_64", "aarch64")
_SAME = {"amd64": "x86_64", "arm64": "aarch64"}

_OLDEST_GLIBC, _NEWEST_GLIBC = 5, 36
"""Minor versions of glibc 2 whose wheels run on Debian 12, the image's system (PEP 600)."""

_TIMEOUT = 600.0  # seconds; pip has timeouts of its own for each answer of the index


@dataclass(frozen=True)
class Hashes:
    """The sha256 of the wheels by package, the processors that all have wheels for, and why not others."""

    of: dict[str, tuple[str, ...]]
    processors: tuple[str, ...]
    without: dict[str, str]


def ask(packages: Iterable[Package]) -> Hashes:
    """Ask pip for the wheels of the packages. Raises `SetupError` when it finds none for this machine's processor."""
    pins = [each.pin for each in packages]
    own = _SAME.get(platform.machine().lower(), platform.machine().lower())
    found: dict[str, set[str]] = {}
    able: list[str] = []
    without: dict[str, str] = {}
    for processor in PROCESSORS:
        try:
            wheels = _wheels(pins, processor)
        except SetupError as error:
            if processor == own:
                raise
            without[processor] = str(error)
            continue
        able.append(processor)
        for name, sha256 in wheels.items():
            found.setdefault(name, set()).add(sha256)
    return Hashes({name: tuple(sorted(each)) for name, each in found.items()}, tuple(able), without)


def _wheels(pins: list[str], processor: str) -> dict[str, str]:
    """The sha256 of the wheel of every package for one kind of processor."""
    versions = [f"manylinux_2_{minor}_{processor}" for minor in range(_OLDEST_GLIBC, _NEWEST_GLIBC + 1)]
    versions += [f"manylinux{year}_{processor}" for year in ("2014", "2010", "1")]
    with tempfile.TemporaryDirectory(prefix="flambeau-") as folder:
        report = Path(folder, "report.json")
        wanted = Path(folder, "requirements.txt")
        wanted.write_text("".join(f"{pin}\n" for pin in pins))
        command = [
            interpreter(), "-P", "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps", "--no-input",
            "--quiet", "--disable-pip-version-check", "--only-binary", ":all:", "--implementation", "cp",
            "--python-version", python_version(), *(part for each in versions for part in ("--platform", each)),
            "--target", str(Path(folder, "none")), "--report", str(report), "--requirement", str(wanted),
        ]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
        except subprocess.TimeoutExpired:
            raise SetupError(
                f"pip did not find the packages in {_TIMEOUT:.0f} s: is the package index there?"
            ) from None
        if done.returncode or not report.is_file():
            raise SetupError(_why(done.stderr, processor))
        items = json.loads(report.read_text())["install"]
    return {normalised(each["metadata"]["name"]): _sha256(each) for each in items}


def _sha256(item: dict[str, dict[str, dict[str, dict[str, str]]]]) -> str:
    sha256 = item["download_info"].get("archive_info", {}).get("hashes", {}).get("sha256")
    if sha256 is None:
        raise SetupError(f"pip names no sha256 for {item['metadata']['name']}: its index has none")
    return sha256


def _why(told: str, processor: str) -> str:
    """pip's own reason in a sentence of ours."""
    if "No module named pip" in told:
        return f"{interpreter()} has no pip, which finds the packages of the image: {interpreter()} -m ensurepip"
    errors = [line.removeprefix("ERROR: ") for line in told.splitlines() if line.startswith("ERROR: ")]
    if "no such option: --report" in told:
        errors = ["it is older than 22.2, which can: pip install --upgrade pip"]
    return f"pip found no wheels of the packages for {processor}: {errors[-1] if errors else told.strip()[-300:]}"
