"""Archives with a `requirements.txt`: refused with a list of what is missing, or installed for their workers."""

import importlib.metadata
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
import requests

from flambeau.sources import packages
from tests.support.archives import write_mar
from tests.support.server import FLAMBEAU, run_flambeau, started

HANDLER = """
import importlib.metadata
import iniconfig, lanterns, msgspec

def handle(data, context):
    if data is None:
        return None
    return [{"lanterns": lanterns.lit(), "iniconfig": iniconfig.__version__, "msgspec": msgspec.__file__}] * len(data)
"""
REQUIREMENTS = """
# what it needs
lanterns>=2,<3   # a package of nobody's
iniconfig==99.1
msgspec
nothing-for-us==1; python_version < "3"
"""


def _wheel(folder: Path, name: str, version: str, module: str) -> Path:
    """A wheel of one module."""
    file, info = folder / f"{name}-{version}-py3-none-any.whl", f"{name}-{version}.dist-info"
    texts = {
        f"{name}.py": module,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(file, "w") as packed:
        for inside, text in texts.items():
            packed.writestr(inside, text)
        packed.writestr(f"{info}/RECORD", "".join(f"{each},,\n" for each in (*texts, f"{info}/RECORD")))
    return file


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, str]:
    """pip looks in a folder of two wheels, and asks nobody."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    _wheel(wheels, "lanterns", "2.5", "def lit(): return 3\n")
    _wheel(wheels, "lanterns", "3.0", "def lit(): return 4\n")
    _wheel(wheels, "iniconfig", "99.1", '__version__ = "99.1"\n')
    for name, value in {
        "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "FLAMBEAU_CACHE": str(tmp_path / "cache"),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    return dict(os.environ)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return write_mar(tmp_path / "lit.mar", {"modelName": "lit", "handler": "lit.py"},
                     {"lit.py": HANDLER, "requirements.txt": REQUIREMENTS})  # fmt: skip


@pytest.mark.long
def test_what_is_missing_is_named_installed_with_permission_and_seen_by_the_workers_alone(
    archive: Path, environment: Mapping[str, str], tmp_path: Path
) -> None:
    refused = run_flambeau("serve", archive, "--allow-code", "--port", "0")
    assert refused.returncode == 78
    assert "lit.mar needs packages that are not here: lanterns>=2,<3, iniconfig==99.1: pip install" in refused.stderr
    assert "--allow-installs" in refused.stderr
    assert not (tmp_path / "cache" / "packages").exists()

    command = [*FLAMBEAU, "serve", archive, "--allow-code", "--allow-installs", "--port", "0", "--log-format", "text"]
    with started(command, tmp_path, environment=environment) as server:
        found = requests.post(f"{server.url}/predictions/lit", data=b"x", timeout=60).json()
        assert (found["lanterns"], found["iniconfig"]) == (3, "99.1")
        assert found["msgspec"] == __import__("msgspec").__file__  # that of Flambeau, which is not installed again
        assert "installing packages for a model" in server.log()
    assert "lanterns" not in {each.name for each in importlib.metadata.distributions()}
    assert importlib.metadata.version("iniconfig") != "99.1"

    # once they are there nobody has to permit it, and nothing is installed
    (tmp_path / "again").mkdir()
    command = [*FLAMBEAU, "serve", archive, "--allow-code", "--port", "0", "--log-format", "text"]
    with started(command, tmp_path / "again", environment={**environment, "PIP_FIND_LINKS": "/nowhere"}) as server:
        assert requests.post(f"{server.url}/predictions/lit", data=b"x", timeout=60).json()["lanterns"] == 3
        assert "installing" not in server.log()

    # a bundle of it never installs
    bundle = tmp_path / "bundle"
    built = run_flambeau("build", archive, "--allow-code", "-o", bundle)
    assert built.returncode == 0, built.stderr
    os.environ["FLAMBEAU_CACHE"] = str(tmp_path / "elsewhere")
    refused = run_flambeau("serve", bundle, "--allow-code", "--allow-installs", "--port", "0")
    assert refused.returncode == 78
    assert "lit needs packages that are not here: lanterns>=2,<3, iniconfig==99.1: pip install" in refused.stderr
    assert not (tmp_path / "elsewhere" / "packages").exists()


@pytest.mark.long
@pytest.mark.usefixtures("environment")
def test_what_pip_cannot_do_is_a_sentence(tmp_path: Path) -> None:
    archive = write_mar(tmp_path / "lit.mar", {"modelName": "lit", "handler": "lit.py"},
                        {"lit.py": HANDLER, "requirements.txt": "lanterns==7\n"})  # fmt: skip
    refused = run_flambeau("serve", archive, "--allow-code", "--allow-installs", "--port", "0")
    assert refused.returncode == 1
    assert "the packages of lit.mar cannot be installed: pip says: ERROR: " in refused.stderr
    assert "lanterns==7" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("", []),
        ("# numpy<1\n\nnumpy\nNumPy>=1.20  # any\n", []),
        ("numpy<1", ["numpy<1"]),
        ("no-such-package", ["no-such-package"]),
        ("no-such-package; python_version < '3'", []),
        ("numpy>=1 --hash=sha256:00\n--index-url https://example.org\n", []),
        ("numpy>=1, \\\n  <1.1", ["numpy>=1,    <1.1"]),
        ("-r more.txt", ["-r more.txt"]),
        ("requests @ https://example.org/requests.whl", ["requests @ https://example.org/requests.whl"]),
        ("flambeau[torch]", []),
        ("git+https://example.org/lanterns", ["git+https://example.org/lanterns"]),
    ],
)
def test_lines_that_are_fulfilled(text: str, missing: list[str]) -> None:
    assert packages.missing(text) == missing
