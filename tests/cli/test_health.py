"""`flambeau health`, which the image's HEALTHCHECK runs."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.server import FLAMBEAU, Serve, free_port, run_flambeau, started
from tests.support.tensor_bundles import doubling

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return doubling(tmp_path_factory.mktemp("bundles") / "doubling")


def test_health_is_asked_where_the_settings_say(
    serve: Serve, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLAMBEAU_PORT", free_port())
    done = run_flambeau("health")
    assert done.returncode == 1
    assert "no server answers on 127.0.0.1:" in done.stderr
    with serve(bundle) as server:  # on another port
        assert run_flambeau("health").returncode == 1
        monkeypatch.setenv("FLAMBEAU_PORT", server.url.rpartition(":")[2])
        done = run_flambeau("health", "--host", "0.0.0.0")
        assert (done.returncode, done.stdout) == (0, "ready\n")
    socket = f"unix:{tmp_path}/socket"
    with started([*FLAMBEAU, "serve", "--host", socket, bundle], tmp_path, address=r"(unix:\S+)"):
        assert run_flambeau("health", "--host", socket).returncode == 0
    assert run_flambeau("health", "--host", socket).returncode == 1


def test_health_reads_the_file_of_settings(serve: Serve, bundle: Path, tmp_path: Path) -> None:
    """A file names a source too, which is nothing to this command."""
    with serve(bundle) as server:
        port = server.url.rpartition(":")[2]
        (tmp_path / "flambeau.toml").write_text(f'port = {port}\nsource = "x.pth"\nlabels = "imagenet"\n')
        environment = {**os.environ, "FLAMBEAU_SOURCE": "/models"}
        done = subprocess.run([*FLAMBEAU, "health"], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, "ready\n"), done.stderr
