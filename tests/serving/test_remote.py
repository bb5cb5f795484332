"""Bundles at an address: fetched once, verified, and refused where there is none. The store is fsspec's, in memory."""

import uuid
from pathlib import Path

import fsspec
import pytest

from flambeau.errors import BundleError, SourceError
from flambeau.sources import remote
from tests.support import tensor_bundles
from tests.support.fronts import application


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLAMBEAU_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def url(tmp_path: Path) -> str:
    """The address of a bundle that doubles."""
    bundle = tensor_bundles.doubling(tmp_path / "doubling")
    root = f"/{uuid.uuid4().hex}/doubling"
    store = fsspec.filesystem("memory")
    for file in bundle.iterdir():
        store.pipe_file(f"{root}/{file.name}", file.read_bytes())
    return f"memory:/{root}"


def test_a_bundle_in_a_store_is_served_and_fetched_once(url: str, cache: Path) -> None:
    with application(url, runner="threads") as app:
        answer = app.test_client().post("/predict", json={"input": [1, 2, 3]})
        assert answer.get_json() == {"output": [2.0, 4.0, 6.0]}
    [kept] = (cache / "by-content").iterdir()
    store = fsspec.filesystem("memory")
    store.rm(f"{url.removeprefix('memory:/')}/model.onnx")
    assert remote.fetch(url) == kept  # the manifest alone is read


def test_a_member_that_was_changed_is_refused_and_nothing_is_kept(url: str, cache: Path) -> None:
    fsspec.filesystem("memory").pipe_file(f"{url.removeprefix('memory:/')}/model.onnx", b"something else")
    with pytest.raises(BundleError, match=r"model\.onnx .* was changed"):
        remote.fetch(url)
    assert not list((cache / "by-content").iterdir())


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("memory://nothing/here", r"memory://nothing/here has no manifest\.json: it is no bundle"),
        ("nonsense://a/b", "nonsense://a/b is no source: nothing is known of nonsense://"),
        ("gs://bucket/cats", "gs://bucket/cats needs a package .*for gs:// gcsfs"),
    ],
)
def test_what_cannot_be_fetched_says_why(source: str, told: str, cache: Path) -> None:
    with pytest.raises(SourceError, match=told):
        remote.fetch(source)
    assert remote.is_remote(source)
    assert not remote.is_remote("models/cats")
