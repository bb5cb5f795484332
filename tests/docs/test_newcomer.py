"""README and quickstart as a newcomer does them: in a fresh clone, with nothing else installed, line by line (U1).

`tests/docs/test_docs.py` runs the same blocks in the environment of the tests, in which everything is there.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.documents import WEIGHTS, Examples, blocks_of, give, make_weights

DONE_IN_ORDER = (ROOT / "README.md", ROOT / "docs" / "quickstart.md")


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What `git clone` gives of the last commit."""
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("this is no clone that could be cloned again")
    folder = tmp_path_factory.mktemp("newcomer") / "flambeau"
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", ROOT, folder], check=True)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)  # with PyTorch in it


@pytest.mark.slow
@pytest.mark.timeout(3600)  # it installs PyTorch
@pytest.mark.parametrize("document", DONE_IN_ORDER, ids=lambda document: document.name)
def test_every_line_works_as_printed_u1(document: Path, clone: Path, cat: bytes) -> None:
    def nobody(marker: str) -> str:
        raise AssertionError(f"there is no server for {marker!r} but the one that `make serve` started")

    blocks = [each for each in blocks_of(document) if each.marker]
    for name in WEIGHTS:
        if any(name in each.text for each in blocks):
            make_weights(name, clone / name)
    with Examples(clone, nobody, fresh=True) as examples:
        for block in blocks:
            if block.marker == "each":
                give(clone, cat)
            try:
                examples.take(block)
            except AssertionError as error:
                raise AssertionError(f"{document.name}, line {block.line}: {error}") from error


def test_the_environment_of_a_newcomer_has_nothing_of_ours(tmp_path: Path) -> None:
    with Examples(tmp_path, lambda _: "", fresh=True) as examples:
        found = examples._environment
    assert "VIRTUAL_ENV" not in found
    assert not shutil.which("flambeau", path=found["PATH"])
    assert os.environ["PATH"].endswith(found["PATH"].rpartition(os.pathsep)[2])
