"""`flambeau deploy ray`: the configuration of a Ray Serve application."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.support import tensor_bundles
from tests.support.server import FLAMBEAU


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tensor_bundles.doubling(tmp_path_factory.mktemp("bundles") / "doubling")


def printed(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [*FLAMBEAU, "deploy", "ray", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_file_is_what_serve_deploy_takes(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "serve.yaml"
    done = printed(
        bundle, "--fronts", 3, "--replicas", 4, "--min-replicas", 1, "--ray-num-gpus", 0.5, "--host", "0.0.0.0",
        "--grpc-port", 9000, "--tokens-file", "/shared/to: kens", "-o", out,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load(out.read_text())
    assert config["proxy_location"] == "EveryNode"
    assert config["http_options"] == {"host": "0.0.0.0", "port": 8000}
    assert config["grpc_options"]["port"] == 9000
    [services] = config["grpc_options"]["grpc_servicer_functions"]
    module, _, function = services.rpartition(".")
    assert callable(getattr(importlib.import_module(module), function))
    [application] = config["applications"]
    assert (application["name"], application["import_path"]) == ("doubling", "flambeau.ray:build")
    assert application["args"] == {
        "source": str(bundle), "fronts": 3, "replicas": 4, "min_replicas": 1, "tokens_file": "/shared/to: kens",
        "ray_num_gpus": 0.5,
    }  # fmt: skip
    schema = pytest.importorskip("ray.serve.schema")
    schema.ServeDeploySchema.model_validate(config)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--host", "0.0.0.0"), "--tokens-file, or say --insecure-no-auth"),
        (("--host", "0.0.0.0", "--tokens-file", "f", "--insecure-no-auth"), "exclude each other"),
        (("--grpc-port", "9000"), "--tokens-file, or say --insecure-no-auth"),  # Serve opens it to all
    ],
)
def test_nobody_is_let_in_by_accident(bundle: Path, arguments: tuple[str, ...], told: str) -> None:
    done = printed(bundle, *arguments)
    assert done.returncode != 0
    assert told in done.stderr


def test_a_bundle_in_a_store_is_fetched_by_each_front() -> None:
    done = printed("s3://models/cats/")
    assert done.returncode == 0, done.stderr
    [application] = yaml.safe_load(done.stdout)["applications"]
    assert (application["name"], application["args"]["source"]) == ("cats", "s3://models/cats")


def test_bounds_that_exclude_each_other_are_refused(bundle: Path) -> None:
    done = printed(bundle, "--min-replicas", 3)
    assert "--min-replicas 3 are more than the 2 of --replicas" in done.stderr


def test_what_each_front_would_build_is_refused() -> None:
    done = printed("my.pth")
    assert done.returncode != 0
    assert "flambeau build my.pth -o /shared/model" in done.stderr


def test_an_application_without_ray_says_what_to_install() -> None:
    code = (
        "import sys\nsys.modules['ray'] = None\nimport flambeau, flambeau.ray\n"
        "try:\n    flambeau.ray.app('x')\nexcept flambeau.SetupError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'ray[serve]'" in done.stdout
