"""Where the bytes of an image lie: by package, bundle and base, as lines for people.

The packages are measured as they are installed here, less what the image leaves out. The base image is not here; its
size is what its publisher's image had when this was written.
"""

from collections.abc import Iterator
from pathlib import Path

from flambeau.deploy.folder import Packaged
from flambeau.deploy.requirements import LEFT_OUT, NOT_FOLLOWED

BASE_BYTES = 125_000_000
"""About what python:3.X-slim-bookworm takes unpacked."""

_OF_LITTLE = 500_000


def lines(packaged: Packaged) -> Iterator[str]:
    """The table, largest first, and what is left out."""
    sizes = [(each.bytes, f"{each.name} {each.version}") for each in packaged.packages]
    small = [size for size, _ in sizes if size < _OF_LITTLE]
    rows = [row for row in sizes if row[0] >= _OF_LITTLE]
    rows.append((sum(small), f"{len(small)} smaller packages"))
    rows.append((_own_bytes(), "flambeau"))
    rows.append((packaged.bundle_bytes, f"the bundle {packaged.manifest.name}"))
    rows.append((BASE_BYTES, "the base image with Python, about"))
    rows.sort(reverse=True)
    for size, what in rows:
        yield f"{size / 1e6:8.1f} MB  {what}"
    yield f"{sum(size for size, _ in rows) / 1e6:8.1f} MB  in all, and some 10 MB of compiled Python"
    packages = {each.name for each in packaged.packages}
    parts = [pattern for package in LEFT_OUT if package in packages for pattern in LEFT_OUT[package]]
    yield f"left out of packages: {', '.join(parts)}, stubs and sources"
    for (package, name), why in NOT_FOLLOWED.items():
        if (package in packages or package == "flambeau") and name not in packages:
            yield f"left out: {name}, which {package} asks for: {why}"
    if packaged.dropped:
        yield (
            f"left out of the bundle: {packaged.dropped / 1e6:.1f} MB of a graph optimised for this processor "
            "(--keep-optimised keeps it)"
        )


def _own_bytes() -> int:
    home = Path(__file__).parent.parent
    return sum(file.stat().st_size for file in home.rglob("*") if file.is_file() and file.suffix != ".pyc")
