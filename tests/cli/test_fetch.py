"""`flambeau fetch`, which an init container runs, against a real web server; tokens as Kubernetes mounts a Secret."""

import hashlib
import http.server
import io
import os
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from flambeau.bundle import storage
from flambeau.deploy.fetching import fetch
from flambeau.errors import SourceError
from flambeau.settings.source import SourceOptions
from flambeau.sources import build_cache


@dataclass
class Store:
    """A web server with one archive. `break_off`: so many answers end in their middle."""

    url: str
    body: bytes
    sha256: str
    break_off: int = 0
    status: int = 200
    asked: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def archive(double_py: Path, cache: Path) -> bytes:
    """A bundle of a Python model, packed."""
    bundle = build_cache.open_source(
        SourceOptions(source=f"{double_py}:Double", allow_code=True), progress=lambda event: None
    )
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as file:
        file.add(bundle.path, "bundle")
    return packed.getvalue()


@pytest.fixture
def store(archive: bytes) -> Iterator[Store]:
    found = Store("", archive, hashlib.sha256(archive).hexdigest())

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.asked.append(self.path)
            self.send_response(found.status)
            self.send_header("Content-Length", str(len(found.body)))
            self.end_headers()
            whole = found.break_off == 0
            found.break_off -= not whole
            self.wfile.write(found.body if whole else found.body[: len(found.body) // 2])
            if not whole:
                self.connection.shutdown(socket.SHUT_RDWR)

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        found.url = f"http://127.0.0.1:{server.server_port}/models/double.tar.gz?signature=secret"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield found
        server.shutdown()
        thread.join()


def test_a_bundle_is_fetched_verified_and_kept(store: Store, tmp_path: Path) -> None:
    target = tmp_path / "models/bundle"
    told = fetch(store.url, target, sha256=store.sha256, allow_code=True)
    assert storage.read(target).manifest.name == "Double"
    assert "secret" not in told
    assert len(store.asked) == 1
    assert "before" in fetch(store.url, target, sha256=store.sha256, allow_code=True)
    assert len(store.asked) == 1
    (target / "code/double.py").write_text("import os")  # spoilt on the volume
    fetch(store.url, target, sha256=store.sha256, allow_code=True)
    assert storage.read(target).manifest.name == "Double"
    assert len(store.asked) == 2


def test_an_answer_that_breaks_off_is_asked_for_again(store: Store, tmp_path: Path) -> None:
    store.break_off = 2
    fetch(store.url, tmp_path / "bundle", sha256=store.sha256, allow_code=True)
    assert len(store.asked) == 3


def test_another_archive_is_refused_and_leaves_nothing(store: Store, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is another archive") as refused:
        fetch(store.url, tmp_path / "bundle", sha256="0" * 64, allow_code=True)
    assert "secret" not in str(refused.value)
    assert [*tmp_path.iterdir()] == []


def test_code_is_taken_only_if_allowed(store: Store, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="brings Python code"):
        fetch(store.url, tmp_path / "bundle", sha256=store.sha256, allow_code=False)
    assert not (tmp_path / "bundle").exists()


def test_what_is_not_there_and_what_is_no_address_is_said(store: Store, tmp_path: Path) -> None:
    store.status = 403
    with pytest.raises(SourceError, match="is answered 403"):
        fetch(store.url, tmp_path / "bundle", sha256=store.sha256, allow_code=True)
    with pytest.raises(SourceError, match="begins with https://"):
        fetch("file:///etc/passwd", tmp_path / "bundle", sha256=store.sha256, allow_code=True)


_READ = """
import os, sys
from flambeau.errors import ConfigError
from flambeau.http import tokens
os.setgroups([])
os.setgid(int(sys.argv[2]))
os.setuid(int(sys.argv[3]))
try:
    print(len(tokens.read(sys.argv[1], {})))
except ConfigError as error:
    print(error)
"""
_UID, _GROUP = 12345, 10001


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
@pytest.mark.parametrize(
    ("owner", "mode", "told"),
    [
        (0, 0o440, "1"),  # a Secret with fsGroup, and a credential of systemd
        (0, 0o640, "1"),
        (0, 0o444, "chmod 600"),
        (0, 0o460, "chmod 600"),
        (_UID, 0o440, "chmod 600"),  # a user's own file has no business with a group
        (_UID, 0o600, "1"),
    ],
)
def test_a_secret_of_kubernetes_is_readable_by_the_pods_group(owner: int, mode: int, told: str) -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's folders are its own user's alone
        Path(folder).chmod(0o755)
        file = Path(folder, "tokens")
        file.write_text("infer d2hhdCBhIGxvbmcgYW5kIHJhbmRvbSB0b2tlbg\n")
        os.chown(file, owner, _GROUP)
        file.chmod(mode)
        done = subprocess.run(
            [sys.executable, "-c", _READ, file, str(_GROUP), str(_UID)], capture_output=True, text=True, check=True
        )
    assert told in done.stdout
