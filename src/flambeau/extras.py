"""How an extra of Flambeau is added to this installation, as a command that works here."""

import functools
import importlib.metadata
import json
import shlex
from pathlib import Path
from urllib.parse import unquote, urlsplit


@functools.cache
def pip_install(extra: str) -> str:
    """The command, for sentences. What was installed from a folder is on no index: there the folder is named."""
    return "pip install " + shlex.quote(f"{_origin() or 'flambeau'}[{extra}]")


def _origin() -> str | None:
    """The folder that this installation was made from (PEP 610), where it was one and is still there."""
    try:
        told = json.loads(importlib.metadata.distribution("flambeau").read_text("direct_url.json") or "{}")
        folder = unquote(urlsplit(told["url"]).path) if "dir_info" in told else ""
    except (importlib.metadata.PackageNotFoundError, ValueError, KeyError):
        return None
    return folder if folder and Path(folder, "pyproject.toml").is_file() else None
