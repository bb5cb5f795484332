"""Write the generated files of deploy/ from the templates of flambeau.deploy: `make docs`.

python scripts/make_manifests.py            write them
python scripts/make_manifests.py --check    exit 1 if one is not as the templates make it
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from flambeau.deploy import manifests
from flambeau.deploy.manifests import Values

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
VALUES = Values(tokens_secret="flambeau-tokens")  # noqa: S106  # the name of a Secret
"""What kustomize starts from: the values of the chart, with tokens."""

_COMPONENTS = {
    "scaledobject": "keda", "servicemonitor": "monitor", "ingress": "ingress", "httproute": "gateway"
}  # fmt: skip
_NOTE = "# Made by scripts/make_manifests.py from src/flambeau/deploy/templates\n"


def _files() -> Iterator[tuple[Path, str]]:
    yield DEPLOY / "compose.yaml", manifests.compose(replace(VALUES, tokens_secret=None), stack=True)
    for name, text in manifests.kubernetes(VALUES, ("keda", "monitor", "ingress", "gateway")).items():
        component = _COMPONENTS.get(name)
        folder = f"kubernetes/components/{component}" if component else "kubernetes/base"
        yield DEPLOY / folder / f"{name}.yaml", text


def main() -> None:
    """Write the files, or compare them."""
    stale = []
    for file, text in _files():
        whole = _NOTE + text
        if "--check" in sys.argv[1:]:
            if not file.exists() or file.read_text() != whole:
                stale.append(file)
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(whole)
    if stale:
        sys.exit(f"not as the templates make them, run make docs: {', '.join(map(str, stale))}")


if __name__ == "__main__":
    main()
