"""Bundles in S3: moto speaks its protocol over HTTP, and s3fs asks it as it asks Amazon's. `make test-cluster`."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flambeau.errors import BundleError, SourceError
from flambeau.sources import remote
from tests.support import tensor_bundles
from tests.support.server import FLAMBEAU, free_port, started

moto = pytest.importorskip("moto.server")
s3fs = pytest.importorskip("s3fs")

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("ignore")]  # their own

URL = "s3://models/doubling"


@pytest.fixture(scope="module")
def store() -> Iterator[dict[str, str]]:
    """What the environment has to say for S3 to be there."""
    port = free_port()
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    yield {
        "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    server.stop()


@pytest.fixture
def bucket(store: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The bucket with a bundle that doubles, and an empty folder for what is fetched."""
    for name, value in store.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FLAMBEAU_CACHE", str(tmp_path / "cache"))
    s3 = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False)
    s3.mkdir("models")
    for file in tensor_bundles.doubling(tmp_path / "doubling").iterdir():
        s3.put_file(str(file), f"models/doubling/{file.name}")
    yield s3
    s3.rm("models", recursive=True)


def test_a_bundle_is_fetched_once_and_served_by_nodes(bucket: Any, tmp_path: Path) -> None:
    manifest = hashlib.sha256((tmp_path / "doubling" / "manifest.json").read_bytes()).hexdigest()
    command = (*FLAMBEAU, "serve", URL, "--replicas", 1, "--port", 0)
    ray = (*command, "--runner", "ray", "--ray-address", "local")
    with started(ray, tmp_path, environment=dict(os.environ)) as server:
        assert server.post(json={"input": [1, 2, 3]}).json() == {"output": [2.0, 4.0, 6.0]}
    [kept] = (tmp_path / "cache" / "by-content").iterdir()
    assert kept.name == manifest
    for file in (tmp_path / "doubling").iterdir():
        assert (kept / file.name).read_bytes() == file.read_bytes()
    bucket.rm("models/doubling/model.onnx")
    with started(command, tmp_path, environment=dict(os.environ)) as server:  # the manifest is all that it reads
        assert server.post(json={"input": [1, 2, 3]}).json() == {"output": [2.0, 4.0, 6.0]}


def test_a_member_that_is_not_what_the_manifest_says_is_refused(bucket: Any, tmp_path: Path) -> None:
    bucket.pipe_file("models/doubling/model.onnx", b"something else")
    with pytest.raises(BundleError, match=r"model\.onnx .* was changed"):
        remote.fetch(URL)
    assert not list((tmp_path / "cache" / "by-content").iterdir())


def test_a_member_that_is_missing_and_a_bucket_that_is_not_there_are_said_so(bucket: Any, tmp_path: Path) -> None:
    bucket.rm("models/doubling/model.onnx")
    with pytest.raises(SourceError, match=f"{URL} cannot be fetched: FileNotFoundError"):
        remote.fetch(URL)
    with pytest.raises(SourceError, match="s3://nobody/doubling has no manifest"):
        remote.fetch("s3://nobody/doubling")
