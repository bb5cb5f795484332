"""One server and one Flask application that ask for tokens, for all tests of access control."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask

from tests.support.access import ADMIN, HASHED, INFER, PAGE
from tests.support.fronts import application
from tests.support.server import Serve, ServerProcess


@pytest.fixture(scope="package")
def tokens_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("access") / "tokens"
    digest = hashlib.sha256(HASHED.encode()).hexdigest()
    file.write_text(f"# ours\ninfer {INFER}\nadmin {ADMIN}  # the operator's\n\ninfer sha256:{digest}\n")
    file.chmod(0o600)
    return file


@pytest.fixture(scope="package")
def server(serve: Serve, double_py: Path, tokens_file: Path) -> Iterator[ServerProcess]:
    """One that asks for tokens, lets one page of another origin in, and answers to one more name."""
    with serve(
        f"{double_py}:Double", "--allow-code", "--tokens-file", tokens_file,
        "--cors-origins", PAGE, "--allowed-hosts", "model.example",
    ) as started:  # fmt: skip
        yield started


@pytest.fixture(scope="package")
def app(double_py: Path, tokens_file: Path) -> Iterator[Flask]:
    """The same as a Flask application."""
    with application(
        f"{double_py}:Double", allow_code=True, tokens_file=str(tokens_file), cors_origins=PAGE,
        allowed_hosts="localhost,model.example",
    ) as made:  # fmt: skip
        yield made


@pytest.fixture(scope="package")
def open_app(double_py: Path) -> Iterator[Flask]:
    """An application without tokens, with a route of somebody else's."""
    with application(f"{double_py}:Double", allow_code=True) as made:
        made.add_url_rule("/mine", "mine", lambda: "mine")
        yield made
