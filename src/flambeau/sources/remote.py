"""Bundles at an address of an object store (`s3://bucket/cats`), fetched by fsspec into this machine's folder for them.

Only bundles: what would have to be built is built once, elsewhere. fsspec is imported when such an address is named.
This module knows no store of its own; credentials are the store's affair.
"""

import hashlib
from pathlib import Path
from typing import Any

from flambeau.errors import BundleError, SourceError
from flambeau.sources import by_content

_PIECE = 16 * 1024 * 1024  # bytes


def is_remote(source: str) -> bool:
    """Whether a source is an address, and not a path."""
    scheme, found, _ = source.partition("://")
    return bool(found) and scheme.replace("+", "").isalnum() and not Path(source).exists()


def fetch(url: str) -> Path:
    """The folder of this machine with the bundle at `url`: the one that is there already, else it is fetched, and every
    member verified. Raises `SourceError` where there is none, and `BundleError` for one that is damaged.
    """
    store, root = _store(url)
    try:
        with store.open(f"{root}/{by_content.MANIFEST}", "rb") as file:
            manifest: bytes = file.read(_PIECE + 1)  # a longer one is refused by whoever reads it
    except FileNotFoundError:
        raise SourceError(
            f"{url} has no {by_content.MANIFEST}: it is no bundle. Build one, and copy its folder there: "
            "flambeau build my.pth -o cats"
        ) from None
    except Exception as error:  # of the store's own kinds: no credentials, no bucket, no way to it
        raise SourceError(f"{url} cannot be read: {type(error).__name__}: {error}") from error
    digest = hashlib.sha256(manifest).hexdigest()
    if (folder := by_content.find(digest, str(by_content.kept_at(digest)))) is not None:
        return folder
    arrival = by_content.Arrival(digest)
    try:
        arrival.take(by_content.MANIFEST, manifest)
        for name in arrival.members():
            with store.open(f"{root}/{name}", "rb") as file:
                arrival.take(name, file.read(_PIECE))  # an empty member, too
                while piece := file.read(_PIECE):
                    arrival.take(name, piece)
    except BundleError:
        arrival.drop()
        raise
    except Exception as error:
        arrival.drop()
        raise SourceError(f"{url} cannot be fetched: {type(error).__name__}: {error}") from error
    return arrival.finish()


def _store(url: str) -> tuple[Any, str]:
    scheme = url.partition("://")[0]
    try:
        from fsspec.core import url_to_fs

        store, root = url_to_fs(url)
    except ImportError as error:
        raise SourceError(f"{url} needs a package ({error}): for s3:// pip install s3fs, for gs:// gcsfs") from None
    except ValueError as error:
        raise SourceError(f"{url} is no source: nothing is known of {scheme}:// ({error})") from None
    return store, root.rstrip("/")
