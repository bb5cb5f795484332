"""Packs the Flambeau that runs here as a wheel, so that the image serves with the very same code.

No index may have it: an unreleased version, an editable installation, a branch. The same code makes the same bytes.
"""

import base64
import email.generator
import hashlib
import io
import zipfile
from pathlib import Path

from flambeau.deploy.requirements import OWN, installed
from flambeau.version import VERSION

_FIRST_DAY = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip archive can name
_FILE_MODE = 0o100644 << 16

NAME = f"flambeau-{VERSION}-py3-none-any.whl"


def write(folder: Path) -> Path:
    """Write the wheel into `folder`. Raises `SetupError` if this Flambeau was not installed (a bare source folder)."""
    told = installed(OWN, "the image")
    information = f"flambeau-{VERSION}.dist-info"
    members = _code()
    members |= {
        f"{information}/METADATA": _metadata(told.read_text("METADATA") or ""),
        f"{information}/WHEEL": b"Wheel-Version: 1.0\nGenerator: flambeau\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{information}/entry_points.txt": b"[console_scripts]\nflambeau = flambeau.__main__:main\n",
    }
    licences = [each for each in told.files or () if each.parts[1:2] == ("licenses",)]
    members |= {"/".join((information, *each.parts[1:])): each.read_binary() for each in licences}
    record = f"{information}/RECORD"
    lines = [f"{name},sha256={_digest(data)},{len(data)}" for name, data in sorted(members.items())]
    members[record] = "\n".join([*lines, f"{record},,", ""]).encode()
    target = folder / NAME
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name in sorted(members):
            entry = zipfile.ZipInfo(name, _FIRST_DAY)
            entry.external_attr, entry.compress_type = _FILE_MODE, zipfile.ZIP_DEFLATED
            archive.writestr(entry, members[name])
    return target


def _code() -> dict[str, bytes]:
    """Every file of the package by its path in the wheel."""
    home = Path(__file__).parent.parent
    return {
        f"flambeau/{file.relative_to(home).as_posix()}": file.read_bytes()
        for file in sorted(home.rglob("*"))
        if file.is_file() and "__pycache__" not in file.parts and not file.name.startswith(".")
    }


def _metadata(text: str) -> bytes:
    """The installed metadata with the version of the code: that of an editable installation may be an older one."""
    parsed = email.message_from_string(text)
    parsed.replace_header("Version", VERSION)
    out = io.StringIO()
    email.generator.Generator(out, mangle_from_=False, maxheaderlen=0).flatten(parsed)
    return out.getvalue().encode()


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
