"""Which files of a process are the user's own code, which a cached bundle was built of."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from flambeau.builder import own_code


def test_imported_are_the_files_outside_of_pythons_folders_by_their_real_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also through a link, and in a linked folder; not what somebody has installed, nor what is no file."""
    own = tmp_path / "own"
    (own / "parts").mkdir(parents=True)
    (tmp_path / "site-packages").mkdir()
    written = [own / "net.py", own / "parts" / "layers.py", own / "aside.py", tmp_path / "site-packages" / "theirs.py"]
    for file in written:
        file.write_text("")
    (tmp_path / "linked").symlink_to(own / "parts")
    (tmp_path / "link.py").symlink_to(own / "aside.py")
    found: list[Any] = [
        own / "net.py", own / "net.py", tmp_path / "linked" / "layers.py", tmp_path / "link.py",
        tmp_path / "site-packages" / "theirs.py", tmp_path / "gone.py", own, json.__file__, own_code.__file__, 7, None,
    ]  # fmt: skip
    for number, file in enumerate(found):
        module = ModuleType(f"made_{number}")
        module.__file__ = str(file) if isinstance(file, Path) else file
        monkeypatch.setitem(sys.modules, module.__name__, module)
    listed = [file for file in own_code.imported() if Path(file).is_relative_to(tmp_path.resolve())]
    assert listed == sorted(str(file.resolve()) for file in written[:3])
    assert json.__file__ not in own_code.imported()
    assert own_code.__file__ not in own_code.imported()
