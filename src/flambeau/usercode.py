"""Import a class from the user's own code: the only place where such code enters a process.

Callers have checked `--allow-code` already; `load` checks it once more, so that no path leads around it.
"""

import importlib
import importlib.util
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any

from flambeau.bundle.storage import CodeReference
from flambeau.errors import CodeNotAllowed, SourceError


def refuse_unless(allowed: bool, what: str) -> None:
    """Raise `CodeNotAllowed` unless the operator allowed code. `what` names the thing that carries the code."""
    if not allowed:
        raise CodeNotAllowed(f"{what} is code that would run with your rights: if you trust it, add --allow-code")


def parse(text: str) -> CodeReference:
    """Read `package.module:Class` or `path/file.py:Class`. Raises `SourceError`.

    The root for imports is the file's own folder, or, for a module, the current folder.
    """
    place, colon, name = text.rpartition(":")
    if not colon or not place or not name.isidentifier():
        raise SourceError(f"{text!r} does not name a class: write file.py:Class or package.module:Class")
    if not place.endswith(".py"):
        return CodeReference(name=name, module=place, root=str(Path.cwd()))
    file = Path(place).expanduser().resolve()
    if not file.is_file():
        raise SourceError(f"{place} does not exist: write file.py:Class with the path of an existing file")
    return CodeReference(name=name, file=str(file), root=str(file.parent))


def load(reference: CodeReference, *, within: Path | None, allow_code: bool) -> Any:
    """Import the object that `reference` names. `within` is the bundle that a `file` belongs to.

    Raises `CodeNotAllowed`, or `SourceError` with the reason when the import fails or the name is missing.
    """
    where = reference.module or reference.file or "?"
    refuse_unless(allow_code, f"{Path(where).name}:{reference.name}")
    if reference.root:
        admit(Path(reference.root))
    try:
        if reference.module:
            module = importlib.import_module(reference.module)
        else:
            module = _import_file(Path(within or ".", where))
    except Exception as error:
        raise SourceError(f"{where} cannot be imported: {type(error).__name__}: {error}") from error
    try:
        return getattr(module, reference.name)
    except AttributeError:
        raise SourceError(f"{where} has no {reference.name}: name a class that is defined there") from None


def load_module(file: Path, *, allow_code: bool) -> Any:
    """Import a whole file, as a module of its name. Raises `CodeNotAllowed`, and whatever the file raises."""
    refuse_unless(allow_code, file.name)
    return _import_file(file)


def admit(folder: Path) -> None:
    """Let allowed code import the modules beside it."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


class _SourceOnly(SourceFileLoader):
    """Loads source files only, so that the verified file is what runs. Bytecode is neither read nor written: nobody
    verifies it, and on a full disk or under a file size limit Python leaves half a file, on which every later start
    would fail.
    """

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        code: CodeType = self.source_to_code(self.get_data(path), path)
        return code


def _import_file(file: Path) -> Any:
    spec = importlib.util.spec_from_file_location(file.stem, file, loader=_SourceOnly(file.stem, str(file)))
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    # Registered before it runs, as `import` does: dataclasses and pickling look their module up by name.
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(spec.name, None)
        raise
    return module
