"""Fetches a bundle from a web server, for init containers: the archive's SHA-256 is known before.

An address may hold a signature, so its query is never printed. Credentials, proxies and object stores' own protocols
are not known here: object stores sign addresses.
"""

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

import urllib3

from flambeau.bundle import storage
from flambeau.errors import BundleError, RequestError, SourceError
from flambeau.sources import uploads

_MOST = 16 * 2**30  # bytes, packed and unpacked: as --max-upload-bytes allows at most
_PIECE = 1024 * 1024
_ATTEMPTS = 5
_TIMEOUT = urllib3.Timeout(connect=10, read=60)
_AGAIN = (429, 500, 502, 503, 504)


def fetch(url: str, target: Path, *, sha256: str, allow_code: bool) -> str:
    """Make `target` a bundle from the tar archive at `url`, and say so. Raises `SourceError`.

    A target that was fetched before, from an archive with that SHA-256, is verified and kept; any other is replaced.
    """
    mark = target.parent / f".{target.name}.sha256"
    if mark.is_file() and mark.read_text() == sha256:
        try:
            return f"{target}: {storage.read(target).manifest.name} was fetched before"
        except BundleError:
            pass  # fetched again
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        mark.unlink(missing_ok=True)
        with tempfile.TemporaryFile(dir=target.parent) as packed:
            _download(url, packed, sha256)
            packed.seek(0)
            if target.exists():
                shutil.rmtree(target)
            uploads.store_archive(packed, target, most=_MOST, allow_code=allow_code)
        mark.write_text(sha256)
    except RequestError as error:
        raise SourceError(f"{_shown(url)} is no bundle: {error}") from None
    except OSError as error:
        raise SourceError(f"{target} cannot be written ({error.strerror}): name another folder with -o") from error
    return f"{target}: {storage.read(target, whole=False).manifest.name} from {_shown(url)}"


def _download(url: str, file: IO[bytes], sha256: str) -> None:
    """Write what is at the address to the file. Raises `SourceError` if it does not come, or is something else."""
    if urlsplit(url).scheme not in ("http", "https"):
        raise SourceError(f"{_shown(url)} is not fetched: give an address that begins with https:// or http://")
    again = urllib3.Retry(_ATTEMPTS, backoff_factor=0.5, status_forcelist=_AGAIN, raise_on_status=False)
    failed: Exception | None = None
    with urllib3.PoolManager(timeout=_TIMEOUT, retries=again) as pool:
        for _ in range(_ATTEMPTS):  # a body that breaks off is not repeated by urllib3
            try:
                found = _stream(pool, url, file)
            except urllib3.exceptions.HTTPError as error:
                failed = error
                continue
            if found != sha256:
                raise SourceError(
                    f"{_shown(url)} is another archive, with the SHA-256 {found} and not {sha256}: correct the one or "
                    "the other"
                )
            return
    raise SourceError(f"{_shown(url)} cannot be fetched: {type(failed).__name__}")


def _stream(pool: urllib3.PoolManager, url: str, file: IO[bytes]) -> str:
    """Write the body to the file from its beginning, and return its SHA-256 in hex."""
    digest = hashlib.sha256()
    file.seek(0)
    file.truncate()
    with pool.request("GET", url, preload_content=False, headers={"Accept-Encoding": "identity"}) as answer:
        if answer.status != 200:
            raise SourceError(f"{_shown(url)} is answered {answer.status}: is the address right, and still valid?")
        for piece in answer.stream(_PIECE, decode_content=False):
            if file.tell() + len(piece) > _MOST:
                raise SourceError(f"{_shown(url)} has more than {_MOST:,} bytes")
            digest.update(piece)
            file.write(piece)
    return digest.hexdigest()


def _shown(url: str) -> str:
    """The address without what may be secret in it."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
