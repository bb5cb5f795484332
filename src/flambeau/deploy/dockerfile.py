"""The text of the Dockerfile and of the README beside it, from the templates of this room.

The Dockerfile at the repository's root is made from the same template: there a stage before it runs `flambeau package`.
It writes no file.
"""

from collections.abc import Mapping
from importlib import resources

import jinja2

from flambeau.deploy import requirements, sbom
from flambeau.deploy.requirements import python_version
from flambeau.version import VERSION

_HEADING = "# Written by flambeau package {version}. Build it with docker, podman, buildah or Kaniko: see README.md"


def render(
    *,
    title: str,
    description: str,
    settings: Mapping[str, str],
    heading: str = _HEADING,
    before: str = "",
    stage: str | None = None,
    python: str | None = None,
) -> str:
    """The Dockerfile. `settings` are the variables that it sets; `title` and `description` are labels.

    `before` are further stages. The folder is `/package` in the one named `stage`; `None`: it is the build's context.
    """
    left_out = sorted(each for package in requirements.LEFT_OUT.values() for each in package)
    return _template("Dockerfile").render(
        heading=heading.format(version=VERSION), before=before,
        origin=f"--from={stage} " if stage else "", prefix="/package/" if stage else "",
        python=python or python_version(),
        title=_label(title), description=_label(description), version=VERSION, settings=settings, sbom=sbom.FILE,
        left_out=left_out, suffixes=requirements.LEFT_OUT_SUFFIXES,
    )  # fmt: skip


def readme(*, title: str, tag: str, engine: str, torch: bool, processors: str) -> str:
    """The README of five lines."""
    return _template("README.md").render(
        title=title, tag=tag, engine=engine, torch=torch, processors=processors, version=VERSION, sbom=sbom.FILE
    )


def _template(name: str) -> jinja2.Template:
    text = resources.files("flambeau.deploy").joinpath("templates", name).read_text("utf-8")
    # S701: nothing here is HTML
    environment = jinja2.Environment(  # noqa: S701
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    return environment.from_string(text)


def _label(text: str) -> str:
    """Text for a label between double quotes: one line, in which nothing is expanded."""
    shown = "".join(each if each.isprintable() else "?" for each in text)
    return "".join(f"\\{each}" if each in '\\"$' else each for each in shown)
