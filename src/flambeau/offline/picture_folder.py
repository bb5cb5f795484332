"""A folder of the pictures that answers are: masks, and images made of images. Each is named after its input."""

import hashlib
from pathlib import Path, PurePath

from flambeau.errors import RequestError
from flambeau.types import Outcome


class PictureFolder:
    """Where the pictures of a run go. Folders of the inputs' names are kept below it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, name: str, outcome: Outcome) -> str | None:
        """Write the picture of the input `name`, and return its path; `None` for an input that failed."""
        result = outcome.result
        if isinstance(result, RequestError):
            return None
        file = self._folder / _below(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(result.picture())
        return str(file)


def _below(name: str) -> PurePath:
    """A path below a folder for the input: its own, without what leads elsewhere. Unlike names make unlike paths."""
    given = PurePath(name)
    parts = [part for part in given.parts if part not in (given.anchor, "..")]
    path = PurePath(*parts) if parts else PurePath("input")
    lost = PurePath(*parts) != given
    mark = f".{hashlib.sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}" if lost else ""
    return path.with_name(f"{path.name}{mark}.png")
