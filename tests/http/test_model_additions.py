"""Versions added to the repository of a running service: bundles that are sent, and files that lie there."""

import io
import shutil
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

import flambeau
from flambeau.client import ClientError
from tests.support.server import Serve, ServerProcess
from tests.support.tensor_bundles import doubling
from tests.support.warm import run_with_torch


def tar(folder: Path, *, mode: str = "w") -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode=mode) as archive:  # type: ignore[call-overload]
        archive.add(folder, arcname=".")
    return written.getvalue()


def send(server: ServerProcess, body: bytes, *, version: str = "2", load: bool = False, **headers: str) -> Any:
    query = {"model": "doubling", "version": version, "load": str(load).lower()}
    headers = {"Content-Type": "application/x-tar"} | headers
    return requests.post(f"{server.url}/models", data=body, params=query, headers=headers, timeout=60)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that doubles three numbers."""
    return doubling(tmp_path_factory.mktemp("bundles") / "doubling")


@pytest.fixture
def repository(tmp_path: Path, bundle: Path) -> Path:
    folder = tmp_path / "repository"
    shutil.copytree(bundle, folder / "doubling" / "1")
    return folder


@pytest.fixture
def server(serve: Serve, repository: Path) -> Iterator[ServerProcess]:
    with serve(repository, "--replicas", "1", "--max-upload-bytes", "2000000") as started:
        yield started


def test_a_bundle_that_is_sent_becomes_a_version(server: ServerProcess, repository: Path, bundle: Path) -> None:
    added = send(server, tar(bundle))
    assert added.status_code == 201, added.text
    assert [(each["version"], each["state"]) for each in added.json()["versions"]] == [
        ("2", "unloaded"),
        ("1", "ready"),
    ]
    assert send(server, tar(bundle, mode="w:gz"), version="3", load=True).json()["default_version"] == "3"
    assert server.post("/predict/doubling/3", json={"input": [1, 2, 3]}).json() == {"output": [2.0, 4.0, 6.0]}
    assert sorted(each.name for each in (repository / "doubling").iterdir()) == ["1", "2", "3"]
    again = send(server, tar(bundle))
    assert (again.status_code, again.json()["code"]) == (409, "version_exists")
    lines = [line for line in server.log().splitlines() if "model add" in line]
    assert [line.split("outcome=")[1].split()[0] for line in lines] == ["done", "done", "version_exists"]
    assert all("by=127.0.0.1" in line and "source=upload" in line for line in lines)


def _without_a_member(folder: Path) -> None:
    next(folder.glob("*.onnx")).unlink()


def _with_a_changed_member(folder: Path) -> None:
    with next(folder.glob("*.onnx")).open("ab") as file:
        file.write(b"more")


def _with_another_file(folder: Path) -> None:
    (folder / "model.toml").write_text('labels = "/etc/passwd"\n')


def _too_large(folder: Path) -> None:
    (folder / "zeros").write_bytes(bytes(3_000_000))


@pytest.mark.parametrize(
    ("spoil", "mode", "words"),
    [
        (_without_a_member, "w", "lacks its member"),
        (_with_a_changed_member, "w", "was changed"),
        (_with_another_file, "w", "model.toml is not a member"),
        (_too_large, "w:gz", "more than 2,000,000 bytes (--max-upload-bytes)"),
    ],
)
def test_a_bundle_that_is_not_whole_is_refused(
    one_server: ServerProcess, bundle: Path, tmp_path: Path, spoil: Callable[[Path], None], mode: str, words: str
) -> None:
    folder = shutil.copytree(bundle, tmp_path / "copy")
    spoil(folder)
    refused = send(one_server, tar(folder, mode=mode), version="9")
    assert (refused.status_code, refused.json()["code"]) == (422, "bundle_refused")
    assert words in refused.json()["error"]
    _assert_nothing_is_left(one_server)


def _link(target: str, kind: bytes) -> tarfile.TarInfo:
    entry = tarfile.TarInfo("manifest.json")
    entry.type, entry.linkname = kind, target
    return entry


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (tarfile.TarInfo("../outside"), "leads out of it"),
        (tarfile.TarInfo("/tmp/outside"), "leads out of it"),
        (tarfile.TarInfo("a/../../outside"), "leads out of it"),
        (_link("/etc/passwd", tarfile.SYMTYPE), "no regular file"),
        (_link("/etc/passwd", tarfile.LNKTYPE), "no regular file"),
        (_link("", tarfile.FIFOTYPE), "no regular file"),
        (tarfile.TarInfo("manifest.json"), "manifest.json of bundle upload is damaged"),
    ],
    ids=lambda value: value.name + value.type.decode() if isinstance(value, tarfile.TarInfo) else "",
)
def test_an_archive_that_is_an_attack_is_refused(one_server: ServerProcess, entry: tarfile.TarInfo, words: str) -> None:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as archive:
        archive.addfile(entry, io.BytesIO())
    refused = send(one_server, written.getvalue(), version="9")
    assert (refused.status_code, refused.json()["code"]) == (422, "bundle_refused")
    assert words in refused.json()["error"]
    _assert_nothing_is_left(one_server)


def _assert_nothing_is_left(server: ServerProcess) -> None:
    [model] = server.get("/models").json()["models"]
    assert [each["version"] for each in model["versions"]] == ["1"]


@pytest.fixture(scope="module")
def one_server(serve: Serve, tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> Iterator[ServerProcess]:
    """A server for requests that change nothing. At the end its repository holds what it held."""
    folder = tmp_path_factory.mktemp("repository")
    shutil.copytree(bundle, folder / "doubling" / "1")
    with serve(folder, "--replicas", "1", "--max-upload-bytes", "2000000") as started:
        yield started
    assert [each.name for each in (folder / "doubling").iterdir()] == ["1"]
    assert [each.name for each in folder.iterdir()] == ["doubling"]


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        (b"no archive", "bundle_refused", "no tar archive"),
        (b"", "bundle_refused", "no tar archive"),
        (b"\x1f\x8b broken", "bundle_refused", "no tar archive"),
        (bytes(2_000_001), "body_too_large", "--max-upload-bytes"),
    ],
)
def test_what_is_no_archive_is_refused(one_server: ServerProcess, body: bytes, code: str, words: str) -> None:
    refused = send(one_server, body, version="9")
    assert refused.json()["code"] == code
    assert words in refused.json()["error"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"source": "../elsewhere.onnx"}, "no file of a model"),
        ({"source": "/etc/passwd"}, "no file of a model"),
        ({"source": "missing.onnx"}, "no file of a model"),
        ({"source": "doubling/1/manifest.json"}, "no file of a model"),
        ({"model": "a/b"}, "cannot be a model"),
        ({"version": ".."}, "cannot be a version"),
        ({"version": 3}, "not understood"),
        ({"labels": "/etc/passwd"}, "not understood"),
    ],
)
def test_an_addition_that_is_none_is_refused(one_server: ServerProcess, given: dict[str, Any], words: str) -> None:
    body = {"model": "doubling", "version": "9", "source": "doubling/1/model.onnx"} | given
    refused = one_server.post("/models", json=body)
    assert (refused.status_code, refused.json()["code"]) == (400, "bad_request")
    assert words in refused.json()["error"]


@pytest.mark.parametrize("held", ["a bundle", "a file"])
def test_a_model_whose_folder_is_its_only_version_gets_no_other_beside_it(
    serve: Serve, tmp_path: Path, bundle: Path, held: str
) -> None:
    """Its own version would be hidden by the new one, or the new one by it."""
    folder = tmp_path / "repository" / "doubling"
    if held == "a bundle":
        shutil.copytree(bundle, folder)
    else:
        folder.mkdir(parents=True)
        shutil.copy(bundle / "model.onnx", folder)
    with serve(folder.parent, "--replicas", "1", "--load", "on-demand") as server:
        refused = send(server, tar(bundle))
        assert (refused.status_code, refused.json()["code"]) == (400, "bad_request")
        assert "move" in refused.json()["hint"]
        assert not (folder / "2").exists()
        assert [each["version"] for each in server.get("/models/doubling").json()["versions"]] == ["1"]


def test_a_word_that_is_no_answer_to_load_is_refused(one_server: ServerProcess, bundle: Path) -> None:
    query = {"model": "doubling", "version": "9", "load": "maybe"}
    headers = {"Content-Type": "application/x-tar"}
    refused = requests.post(f"{one_server.url}/models", data=tar(bundle), params=query, headers=headers, timeout=60)
    assert (refused.status_code, refused.json()["code"]) == (400, "bad_request")


def test_a_file_of_the_repository_becomes_a_version(server: ServerProcess, repository: Path, bundle: Path) -> None:
    incoming = repository / "__incoming"
    shutil.copytree(bundle, incoming / "next")
    (incoming / "elsewhere").symlink_to(bundle)
    body = {"model": "twice", "version": "7", "source": "__incoming/next", "load": True}
    added = server.post("/models", json=body)
    assert (added.status_code, added.json()["default_version"]) == (201, "7"), added.text
    assert server.post("/predict/twice", json={"input": [1, 2, 3]}).json() == {"output": [2.0, 4.0, 6.0]}
    assert (repository / "twice" / "7" / "model.toml").read_text() == 'source = "../../__incoming/next"\n'
    outside = server.post("/models", json=body | {"version": "8", "source": "__incoming/elsewhere"})
    assert outside.json()["code"] == "bad_request"


def test_code_is_never_taken(server: ServerProcess, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import flambeau\nclass Mine(flambeau.PythonModel):\n    def predict(self, batch):\n        return batch\n"
    )
    made = run_with_torch("build", "mine.py:Mine", "--allow-code", "-o", "mine", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    refused = send(server, tar(tmp_path / "mine"))
    assert (refused.status_code, refused.json()["code"]) == (422, "bundle_refused")
    assert "Python code" in refused.json()["error"]


def test_the_command_and_the_client_add_versions(server: ServerProcess, repository: Path, bundle: Path) -> None:
    added = run_with_torch("models", "--server", server.url, "add", "doubling", "2", str(bundle), "--load", cwd=bundle)
    assert added.returncode == 0, added.stderr
    assert added.stdout.splitlines()[1].split() == ["doubling", "2", "ready", "default"]
    with flambeau.Client(server.url) as client:
        shutil.copytree(bundle, repository / "__incoming" / "next")
        assert client.add("doubling", 3, "__incoming/next")["versions"][0] == {"version": "3", "state": "unloaded"}
        with pytest.raises(ClientError, match="has a version 3 already"):
            client.add("doubling", 3, bundle)


def test_the_newest_versions_are_kept_and_those_that_are_named(serve: Serve, repository: Path, bundle: Path) -> None:
    for version in ("2", "3", "4"):
        shutil.copytree(bundle, repository / "doubling" / version)
    (repository / "doubling" / "model.toml").write_text(
        'labels = "names.txt"\n[aliases]\nstable = "1"\n'
    )  # a bundle has its own
    with serve(repository, "--replicas", "1", "--keep-versions", "2") as server:

        def versions() -> list[str]:
            return [each["version"] for each in server.get("/models/doubling").json()["versions"]]

        assert versions() == ["4", "3", "1"]
        assert server.post("/predict/doubling/2", json={"input": [1, 2, 3]}).json()["code"] == "version_not_found"
        assert send(server, tar(bundle), version="5", load=True).status_code == 201
        assert versions() == ["5", "4", "1"]
        assert (repository / "doubling" / "3" / "manifest.json").is_file()
        (repository / "doubling" / "model.toml").write_text("keep_versions = 1\n")  # this model's own policy
        time.sleep(0.3)  # the folder is read again only then
        server.get("/models")
        assert versions() == ["5", "4", "1"]  # the others are loaded
        assert server.post("/models/doubling/versions/4/unload").status_code == 200
        server.wait_until(lambda: server.get("/models") and versions() == ["5", "1"], within=10)


def test_a_policy_that_is_none_is_the_fault_of_its_model(serve: Serve, repository: Path) -> None:
    (repository / "doubling" / "model.toml").write_text("keep_versions = 0\n")
    shutil.copytree(repository / "doubling" / "1", repository / "other")
    with serve(repository, "--replicas", "1") as server:
        [version] = server.get("/models/doubling").json()["versions"]
        assert version["state"] == "failed"
        assert "keep_versions" in version["error"]
