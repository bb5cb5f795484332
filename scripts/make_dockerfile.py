"""Writes the Dockerfile at the repository's root: a stage that runs `flambeau package` on the built-in model, and then
the stages that `flambeau package` writes into every folder. Run it after a change of their template: `make docs`.
"""

from pathlib import Path

from flambeau.deploy import dockerfile, folder

ROOT = Path(__file__).parent.parent

HEADING = """\
# An image that serves the built-in model, or whatever is mounted at /models: a bundle, or a repository of models.
#   docker build -t flambeau .
#   docker run --rm --read-only --tmpfs /tmp -p 127.0.0.1:5000:5000 -e FLAMBEAU_INSECURE_NO_AUTH=1 \\
#     -e FLAMBEAU_ALLOWED_HOSTS=localhost,127.0.0.1 flambeau
#   docker run ... -v ./models:/models:ro flambeau
# Written by scripts/make_dockerfile.py (make docs), from the template of flambeau package."""

PACKAGE = """
FROM ${BASE} AS package
WORKDIR /source
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY src src
# PyTorch builds the model's bundle in this stage, and stays in it
RUN python3 -m venv --copies /venv \\
 && /venv/bin/python -m pip install --no-cache-dir --disable-pip-version-check -c constraints.txt '.[torch]'
RUN /venv/bin/flambeau package -o /package"""


def text() -> str:
    """The Dockerfile."""
    return dockerfile.render(
        title="flambeau",
        description="Serves a mounted bundle or repository of models, or EfficientNet-Lite0 with ImageNet weights",
        settings={"FLAMBEAU_SOURCE": folder.MODELS},
        heading=HEADING,
        before=PACKAGE,
        stage="package",
        python="3.11",
    )


if __name__ == "__main__":
    (ROOT / "Dockerfile").write_text(text())
