"""Make a virtual environment with pip in it. Needs Python 3.11 and nothing else.

Debian and Ubuntu split `ensurepip` off into the package python3-venv, so `python3 -m venv` fails on a fresh machine.
There this script makes the environment without pip and installs pip from its wheel on the package index, checked
against the sha256 that the index states.
"""

import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
import venv
from pathlib import Path

INDEX = "https://pypi.org/simple"
WHEEL = re.compile(r'href="([^"]*/(pip-(\d+(?:\.\d+)*)-py3-none-any\.whl))#sha256=([0-9a-f]{64})"')


def main() -> None:
    """Make the environment named on the command line."""
    if sys.version_info < (3, 11):
        sys.exit(f"Flambeau needs Python 3.11 or later, and this is {sys.version.split()[0]}")
    target = Path(sys.argv[1])
    if importlib.util.find_spec("ensurepip") is not None:
        venv.create(target, with_pip=True, symlinks=os.name != "nt")
        return
    print("   this Python has no ensurepip (Debian: python3-venv); taking pip from the package index")
    venv.create(target, with_pip=False, symlinks=os.name != "nt")
    python = target / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    with tempfile.TemporaryDirectory() as folder:
        wheel = fetch_pip(Path(folder))
        # A wheel is a zip file, and pip runs from one.
        subprocess.run([python, wheel / "pip", "install", "--quiet", "--no-input", wheel], check=True)


def fetch_pip(folder: Path) -> Path:
    """Download the newest pip wheel from PIP_INDEX_URL or PyPI, verified."""
    index = os.environ.get("PIP_INDEX_URL", INDEX).rstrip("/") + "/pip/"
    try:
        with urllib.request.urlopen(index) as page:
            links = WHEEL.findall(page.read().decode())
    except OSError as error:
        sys.exit(f"pip could not be fetched from {index} ({error}): apt-get install python3-venv, then try again")
    if not links:
        sys.exit(f"{index} lists no pip: apt-get install python3-venv, then try again")
    href, name, _, sha256 = max(links, key=lambda link: [int(part) for part in link[2].split(".")])
    with urllib.request.urlopen(urllib.parse.urljoin(index, href)) as file:
        data = file.read()
    if hashlib.sha256(data).hexdigest() != sha256:
        sys.exit(f"{name} from {index} does not have the sha256 that the index states")
    wheel = folder / name
    wheel.write_bytes(data)
    return wheel


if __name__ == "__main__":
    main()
