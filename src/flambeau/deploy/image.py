"""Has docker, podman or buildah build the folder, whichever is there and works."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from flambeau.errors import SetupError


class ImageNotBuilt(SetupError):
    """There is no builder here, or it failed."""


@dataclass(frozen=True)
class Builder:
    """A program that builds images. `works` asks it whether it can; `build` are the words before the folder."""

    name: str
    works: tuple[str, ...]
    build: tuple[str, ...]


_BUILDERS = (
    Builder("docker", ("info",), ("build", "--build-arg", "SOURCE_DATE_EPOCH={epoch}")),
    # HEALTHCHECK is not in the OCI format: the other two drop it unless they are told
    Builder("podman", ("info",), ("build", "--format", "docker", "--timestamp", "{epoch}")),
    Builder("buildah", ("info",), ("build", "--format", "docker", "--timestamp", "{epoch}")),
)


def find() -> Builder:
    """The first builder that is installed and works. Raises `ImageNotBuilt`."""
    told = []
    for each in _BUILDERS:
        if shutil.which(each.name) is None:
            continue
        done = subprocess.run([each.name, *each.works], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return each
        told.append(f"{each.name} is here and does not work ({(done.stderr or done.stdout).strip()[-200:]})")
    why = "; ".join(told) or "there is no docker, podman or buildah here"
    raise ImageNotBuilt(f"{why}: install one, or build the folder where there is one, as its README.md says")


def build(builder: Builder, folder: Path, tag: str, *, epoch: int) -> None:
    """Build the image; the builder's own progress goes to standard error. Raises `ImageNotBuilt`."""
    words = [word.format(epoch=epoch) for word in builder.build]
    # the builder prints the image's id on standard output
    done = subprocess.run([builder.name, *words, "--tag", tag, str(folder)], stdout=2, check=False)
    if done.returncode:
        raise ImageNotBuilt(f"{builder.name} ended with exit code {done.returncode}: what it printed above says why")


def size(builder: Builder, tag: str) -> int | None:
    """The bytes of an image as its builder counts them; `None` if it does not tell."""
    words = ("images", "--format", "{{.Size}}", tag) if builder.name == "buildah" else (
        "image", "inspect", "--format", "{{.Size}}", tag
    )  # fmt: skip
    done = subprocess.run([builder.name, *words], capture_output=True, text=True, check=False)
    text = done.stdout.strip()
    if text.isdigit():
        return int(text)
    number, _, unit = text.partition(" ")
    scale = {"KB": 1e3, "MB": 1e6, "GB": 1e9}.get(unit)
    return int(float(number) * scale) if scale else None
