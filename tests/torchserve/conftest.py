"""One model store, and two servers over it: the real TorchServe, and Flambeau with the same command line."""

import importlib
import importlib.util
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from benchmarks import environments, torchserve_servers
from benchmarks.environments import NotInstalledError
from benchmarks.torchserve_servers import Running, archive
from flambeau.architectures import torchvision_compat
from tests.support import archives, detectors, segmenters

CONFIG = {
    "default_workers_per_model": 1,
    "max_response_size": 65_535_000,
    "default_startup_timeout": 600,  # nine workers start at once, and on a busy machine each imports for minutes
    "default_response_timeout": 300,
}


class Stubs(NamedTuple):
    """The modules of TorchServe's gRPC."""

    inference: ModuleType
    inference_calls: ModuleType
    management: ModuleType
    management_calls: ModuleType


def _saved(network: nn.Module, file: Path) -> Path:
    torch.save(network.state_dict(), file)
    return file


def _classifier() -> nn.Module:
    """A classifier whose classes are apart, as those of a trained one are."""
    torchvision_compat.declare_missing()
    from torchvision.models import resnet18

    torch.manual_seed(5)
    network: Any = resnet18(num_classes=12)
    with torch.no_grad():
        network.fc.weight.mul_(8)
    made: nn.Module = network.eval()
    return made


SMALL = {"min_size": 160, "max_size": 280}
"""The picture by which the detector's scores are spread, which takes seconds less than one of 800 rows."""


def _detector() -> nn.Module:
    """The network of TorchServe's own example. Its weights are no trained ones, and the further its scores are spread,
    the more it makes of the engines' last digits: a millionth in the pixels changed some by 4e-3."""
    return detectors.detector("fasterrcnn_resnet50_fpn", 7, spread=1.0, **SMALL)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive for each of TorchServe's handlers of pictures, and for five styles of writing one."""
    made, store = tmp_path_factory.mktemp("made"), tmp_path_factory.mktemp("servers") / "store"

    def written(name: str, text: str) -> Path:
        (made / name).write_text(text)
        return made / name

    def named(classes: int) -> Path:
        table = {str(index): [f"n{index}", f"class {index}"] for index in range(classes)}
        return written("index_to_name.json", json.dumps(table))

    resnet, classifier = written("resnet.py", archives.RESNET), _classifier()
    weights = _saved(classifier, made / "classifier.pth")
    script = made / "script.pt"
    torch.jit.trace(classifier, torch.zeros(1, 3, 224, 224)).save(script)
    linear: dict[str, type[nn.Module]] = {}
    exec(archives.NETWORK, linear)
    torch.manual_seed(3)
    config = written(
        "model-config.yaml",
        "batchSize: 4\nmaxBatchDelay: 50\nminWorkers: 1\nmaxWorkers: 1\nhandler:\n  scale: 2\n  floor: 0.25\n",
    )
    (made / "extra" / "shared").mkdir(parents=True)  # the archiver takes what is in a folder, and not the folder
    extra = written("extra/shared/words.py", 'WORDS = ["hello"]\n').parents[1]
    given = {"model_file": resnet, "serialized_file": weights}
    archive(store, "classifier", handler="image_classifier", extra_files=[named(12)], **given)
    archive(store, "scripted", handler="image_classifier", serialized_file=script)
    archive(
        store,
        "detector",
        handler="object_detector",
        model_file=written("frcnn.py", archives.FASTER_RCNN),
        serialized_file=_saved(_detector(), made / "detector.pth"),
        archive_format="zip-store",  # which packs 160 MB in no time
        extra_files=[named(7)],
    )
    archive(
        store,
        "segmenter",
        handler="image_segmenter",
        model_file=written("lraspp.py", archives.SEGMENTER),
        serialized_file=_saved(segmenters.segmenter("lraspp_mobilenet_v3_large", 6), made / "segmenter.pth"),
    )
    archive(
        store,
        "rows",
        handler=written("rows.py", archives.SUBCLASS),
        model_file=written("net.py", archives.NETWORK),
        serialized_file=_saved(linear["Net"](), made / "rows.pth"),
        config_file=config,
        extra_files=[extra, written("settings.json", '{"a": 1}'), named(12)],
    )
    archive(store, "functions", handler=written("functions.py", archives.FUNCTIONS))
    archive(store, "plain", handler=written("plain.py", archives.PLAIN_CLASS))
    archive(
        store,
        "bright",
        handler=written("bright.py", archives.VISION),
        config_file=config,
        model_file=written("average.py", archives.AVERAGE),
        serialized_file=_saved(nn.Identity(), made / "average.pth"),
    )
    archive(
        store,
        "two",
        handler=written("two.py", archives.CLASSIFIER),
        model_file=resnet,
        serialized_file=weights,
        extra_files=[named(12)],
    )
    return store


@pytest.fixture(scope="session")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Stubs:
    """What the packages grpcio-tools make of TorchServe's own files."""
    try:
        environments.install("torchserve")
    except NotInstalledError as error:
        pytest.fail(str(error))
    folder = tmp_path_factory.mktemp("stubs")
    [jar] = environments.folder("torchserve").glob("lib/python3*/site-packages/ts/frontend/model-server.jar")
    names = ["inference.proto", "management.proto"]
    with zipfile.ZipFile(jar) as packed:
        for name in names:
            packed.extract(f"proto/{name}", folder)
    rpc = importlib.util.find_spec("google.rpc")  # where google/rpc/status.proto lies
    assert rpc is not None
    known = Path(next(iter(rpc.submodule_search_locations or []))).parents[1]
    subprocess.run(
        [environments.python("torchserve"), "-m", "grpc_tools.protoc", f"-I{folder / 'proto'}", f"-I{known}",
         f"--python_out={folder}", f"--grpc_python_out={folder}", *names], check=True,
    )  # fmt: skip
    sys.path.insert(0, str(folder))
    try:
        names = ["inference_pb2", "inference_pb2_grpc", "management_pb2", "management_pb2_grpc"]
        return Stubs(*(importlib.import_module(name) for name in names))
    finally:
        sys.path.remove(str(folder))


@pytest.fixture(scope="session")
def theirs(store: Path) -> Iterator[Running]:
    """The real TorchServe."""
    try:
        with torchserve_servers.theirs(store, store.with_name("theirs"), config=CONFIG) as found:
            yield found
    except NotInstalledError as error:
        pytest.fail(str(error))


@pytest.fixture(scope="session")
def ours(store: Path, cache: Path) -> Iterator[Running]:
    """Flambeau in its place."""
    with torchserve_servers.ours(store, store.with_name("ours"), config=CONFIG) as found:
        yield found
