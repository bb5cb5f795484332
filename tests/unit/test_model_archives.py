"""Archives of TorchServe read as data: their three forms, what they hold, and what is refused."""

import gzip
import io
import json
import random
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from flambeau.checkpoints import model_archive
from flambeau.errors import CodeNotAllowed, ConfigError, SourceError
from flambeau.settings import torchserve
from flambeau.settings.source import SourceOptions
from flambeau.sources import archives, network_class
from tests.support.archives import MANIFEST, Files, contents, write_folder, write_mar, write_tar
from tests.support.warm import run_with_torch

MODEL = {"handler": "h.py", "serializedFile": "w.pth", "configFile": "model-config.yaml"}
FILES: Files = {
    "h.py": "x = 1\n", "w.pth": b"weights", "deep/er.txt": "down here", "model-config.yaml": "batchSize: 4\n",
    "index_to_name.json": '{"0": "cat"}',
}  # fmt: skip


@pytest.fixture(params=["zip", "tar", "folder"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "zip":
        return write_mar(tmp_path / "net.mar", MODEL, FILES)
    if request.param == "tar":
        return write_tar(tmp_path / "net.tar.gz", contents(MODEL, FILES))
    return write_folder(tmp_path / "net", contents(MODEL, FILES))


def test_the_three_forms_say_the_same(archive: Path, tmp_path: Path) -> None:
    found = model_archive.read(archive)
    assert found is not None
    assert (found.name, found.version, found.handler, found.weights) == ("net", "1.0", "h.py", "w.pth")
    assert (found.config, found.labels) == ({"batchSize": 4}, "index_to_name.json")
    target = tmp_path / "unpacked"
    target.mkdir()
    model_archive.unpack(archive, target)
    assert (target / "deep" / "er.txt").read_text() == "down here"
    assert {str(each.relative_to(target)) for each in target.rglob("*") if each.is_file()} == {*FILES, MANIFEST}


def test_other_files_are_no_archives(tmp_path: Path) -> None:
    other = tmp_path / "other.zip"
    with zipfile.ZipFile(other, "w") as file:
        file.writestr("a.txt", "a")
    assert model_archive.read(other) is None
    assert model_archive.read(tmp_path) is None
    assert model_archive.read(tmp_path / "missing.mar") is None


def _tar(file: Path, *members: tuple[str, bytes | None, str]) -> Path:
    """Members as (name, contents, target of a link)."""
    with tarfile.open(file, "w:gz") as archive:
        for name, data, link in members:
            member = tarfile.TarInfo(name)
            if data is None:
                member.type, member.linkname = tarfile.SYMTYPE, link
            else:
                member.size = len(data)
            archive.addfile(member, io.BytesIO(data or b""))
    return file


_WHOLE = tuple((name, data, "") for name, data in contents(MODEL, FILES).items())


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (("../out.txt", b"x", ""), "leads elsewhere"),
        (("a/../../out.txt", b"x", ""), "leads elsewhere"),
        (("/etc/out.txt", b"x", ""), "leads elsewhere"),
        (("link", None, "/etc/passwd"), "as a link or a device"),
        (("h.py", b"again", ""), "twice"),
        (("zeros", bytes(40 * 2**20), ""), "bomb"),
    ],
)
def test_a_hostile_tar_is_refused_and_writes_nothing_elsewhere(
    extra: tuple[str, bytes | None, str], words: str, tmp_path: Path
) -> None:
    file = _tar(tmp_path / "net.tar.gz", *_WHOLE, extra)
    target = tmp_path / "in" / "unpacked"
    target.mkdir(parents=True)
    with pytest.raises(SourceError, match=words):
        model_archive.unpack(file, target)
    assert not (tmp_path / "out.txt").exists()
    assert not (tmp_path / "in" / "out.txt").exists()


@pytest.mark.parametrize("size", [8 * 2**20, 2**62])
@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_tar_whose_header_is_a_bomb_is_refused(kind: bytes, size: int, tmp_path: Path) -> None:
    header = tarfile.TarInfo("x")
    header.type, header.size = kind, size
    file = tmp_path / "net.tar.gz"
    file.write_bytes(gzip.compress(header.tobuf(tarfile.GNU_FORMAT) + bytes(8 * 2**20)))
    with pytest.raises(SourceError, match="bomb"):
        model_archive.read(file)


def test_a_tar_that_was_damaged_on_its_way_is_told(tmp_path: Path) -> None:
    file = _tar(tmp_path / "net.tar.gz", *_WHOLE, ("noise", random.Random(1).randbytes(2**20), ""))
    data = bytearray(file.read_bytes())
    data[-8:-4] = bytes(4)  # the checksum at its end
    file.write_bytes(data)
    with pytest.raises(SourceError, match="damaged"):
        model_archive.read(file)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [("../out.txt", b"x", "leads elsewhere"), ("zeros", bytes(40 * 2**20), "bomb"), ("H.PY", b"x", "readers differ")],
)
def test_a_hostile_mar_is_refused(name: str, data: bytes, words: str, tmp_path: Path) -> None:
    file = write_mar(tmp_path / "net.mar", MODEL, {**FILES, name: data})
    with pytest.raises(SourceError, match=words):
        model_archive.read(file)


def test_a_link_in_a_folder_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "net", contents(MODEL, FILES))
    (folder / "deep" / "link").symlink_to("/etc/passwd")
    with pytest.raises(SourceError, match="as a link or a device"):
        model_archive.read(folder)


@pytest.mark.parametrize(
    ("model", "files", "words"),
    [
        (MODEL | {"serializedFile": "gone.pth"}, FILES, "names gone.pth as its serializedFile"),
        (MODEL, {**FILES, "model-config.yaml": "a: &x [1]\nb: *x\n"}, "aliases"),
        (MODEL, {**FILES, "model-config.yaml": "a: [1"}, "not YAML"),
        (MODEL, {**FILES, "model-config.yaml": "- 1\n"}, "no table"),
        (MODEL, {**FILES, "model-config.yaml": "a: !!python/object/apply:os.system [id]\n"}, "not YAML"),
    ],
)
def test_an_archive_that_contradicts_itself_is_refused(
    model: dict[str, Any], files: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match=words):
        model_archive.read(write_mar(tmp_path / "net.mar", model, files))


def test_an_archive_that_is_replaced_while_it_is_read_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = SourceOptions(source=str(tmp_path / "net.mar"), allow_code=True)

    def write(text: str) -> None:
        write_mar(tmp_path / "net.mar", {"handler": "h.py"}, {"h.py": text})

    def replaced(path: Path, folder: Path) -> None:
        write("new = 1\n")
        unpack(path, folder)

    write("old = 1\n")
    unpack = model_archive.unpack
    monkeypatch.setattr(model_archive, "unpack", replaced)
    with pytest.raises(SourceError, match="changed while"):
        archives.request_for(options, tmp_path / "home")
    monkeypatch.undo()
    write("old = 1\n")
    request = archives.request_for(options, tmp_path / "home")
    assert request is not None
    assert Path(str(request.files), "h.py").read_text() == "old = 1\n"


@pytest.mark.parametrize("change", ["handler", "file", "config"])
def test_what_is_hashed_is_what_was_read(change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An archive that takes another's place between the reading of its manifest and its hash mixes with nothing."""
    file = tmp_path / "net.mar"
    options = SourceOptions(source=str(file), allow_code=True)
    model, files = {"handler": "h.py", "configFile": "c.yaml"}, {"h.py": "x = 1\n", "c.yaml": "batchSize: 4\n"}
    others = {
        "handler": (model | {"modelVersion": "2.0"}, files),
        "file": (model, files | {"more.py": ""}),
        "config": (model, files | {"c.yaml": "batchSize: 8\n"}),
    }
    read = model_archive.read

    def read_and_replaced(path: Path) -> Any:
        found = read(path)
        if path == file:
            write_mar(file, *others[change])
        return found

    write_mar(file, model, files)
    monkeypatch.setattr(model_archive, "read", read_and_replaced)
    with pytest.raises(SourceError, match="changed while"):
        archives.request_for(options, tmp_path / "home")
    monkeypatch.undo()
    assert archives.request_for(options, tmp_path / "home") is not None


def test_a_manifest_that_is_not_json_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "net.mar"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(MANIFEST, "{")
    with pytest.raises(SourceError, match="not JSON"):
        model_archive.read(file)


@pytest.mark.parametrize("allow_code", [False, True])
def test_a_text_classifier_is_refused_with_the_way_out(tmp_path: Path, allow_code: bool) -> None:
    """The sentence comes first: to ask for --allow-code before would be in vain."""
    file = write_mar(tmp_path / "news.mar", {"modelName": "news", "handler": "text_classifier"}, {"a.py": ""})
    with pytest.raises(SourceError, match=r"handler text_classifier.*torchtext.*as a dict.*with --allow-code"):
        archives.request_for(SourceOptions(source=str(file), allow_code=allow_code), tmp_path / "home")


# The class of the network, parsed


INIT = "    def __init__(self):\n        "
NEXT = "        self."
TORCHVISION = "from torchvision.models.resnet import BasicBlock, ResNet\nfrom torch import nn\n\n"
WHOLE = f"class Net(ResNet):\n{INIT}super().__init__(BasicBlock, [2, 2, 2, 2])\n"
VGG = """from torchvision.models.vgg import VGG, cfgs, make_layers
class Net(VGG):
    def __init__(self):
        super(Net, self).__init__(make_layers(cfgs["A"], False), **{"{word}": False})
"""
DETECTOR = """from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FasterRCNN

class Net(FasterRCNN):
    def __init__(self, num_classes=91, **kwargs):
        backbone = resnet_fpn_backbone("resnet50", True)
        super(Net, self).__init__(backbone, num_classes{more}, **kwargs)
"""


@pytest.mark.parametrize(
    ("source", "hidden"),
    [
        (f"class Net(ResNet):\n{INIT}super().__init__(BasicBlock, [2, 2, 2, 2])\n", ""),
        (f"class Net(ResNet):\n    'Words.'\n{INIT}super(Net, self).__init__()\n{NEXT}fc = nn.Linear(5, 3)\n", ""),
        ("class Net(ResNet):\n    def forward(self, x):\n        return x\n", "defines forward"),
        (f"class Net(ResNet):\n{INIT}super().__init__(norm_layer=Norm)\n", "sets norm_layer"),
        (f"class Net(ResNet):\n{INIT}super().__init__(*args)\n{NEXT}relu = GELU()\n", "its line 6"),
        ("class Net(nn.Module):\n    pass\n", "no network of torchvision's"),
        ("class Net(ResNet):\n    forward = other\n", "its line 5"),
        # written otherwise, and hidden all the same
        (f"{WHOLE}\nNet.forward = lambda self, x: x\n", "its line 8"),
        (f"BasicBlock.expansion = 2\n{WHOLE}", "its line 4"),
        (f"from blocks import BasicBlock\n{WHOLE}", "imports blocks"),
        (f"from .blocks import BasicBlock\n{WHOLE}", "its line 4 imports"),
        (f"class Net(ResNet):\n{INIT}super().__init__(Own, [2, 2, 2, 2])\n", "its line 6"),
        (f"class Net(ResNet):\n{INIT}super().__init__(BasicBlock, [2], 6, False, 1, 64, [True])\n", "its line 6"),
        (f"class Net(ResNet):\n{INIT}super().__init__()\n{NEXT}fc = Linear(5, 3)\n", "its line 7"),
        ("class Net(ResNet, metaclass=Own):\n    pass\n", "its line 4"),
        ("@own\nclass Net(ResNet):\n    pass\n", "may change"),
        (f"def own(): ...\n{WHOLE}", "its line 4"),
        ("from torchvision.models.googlenet import GoogLeNet\nclass Net(GoogLeNet):\n    pass\n", "transform_input"),
        # of TorchServe's examples: VGG-11, with a table of arguments that is written out
        (VGG.replace("{word}", "init_weights"), ""),
        (VGG.replace("{word}", "dilation"), "sets dilation"),
        (VGG.replace("{word}", "init_weights").replace("False}", "False, **other}"), "sets **"),
        # the detector of TorchServe's documentation
        (DETECTOR.replace("{more}", ""), ""),
        (DETECTOR.replace("{more}", ", 600"), "its line 10"),
        (DETECTOR.replace("{more}", ", min_size=600"), "sets min_size"),
        (DETECTOR.replace("True", "True, norm_layer=nn.BatchNorm2d").replace("{more}", ""), "sets norm_layer"),
    ],
)  # fmt: skip
def test_what_the_weights_do_not_show_is_found_in_the_class(source: str, hidden: str, tmp_path: Path) -> None:
    file = tmp_path / "model.py"
    file.write_text(TORCHVISION + source)
    found = network_class.read(file, tmp_path)
    assert found.name == "Net"
    assert hidden in found.hidden
    assert bool(hidden) == bool(found.hidden)


def test_a_detector_of_an_own_class_is_answered_by_its_handler(tmp_path: Path) -> None:
    """Only torchvision's own have the outputs of our task."""
    file = io.BytesIO()
    torch.save({"backbone.weight": torch.ones(2)}, file)
    model = {"handler": "object_detector", "modelFile": "model.py", "serializedFile": "w.pth"}
    mar = write_mar(
        tmp_path / "net.mar", model,
        {"model.py": TORCHVISION + DETECTOR.replace("{more}", ", min_size=600"), "w.pth": file.getvalue()},
    )  # fmt: skip
    with pytest.raises(CodeNotAllowed, match="sets min_size"):
        archives.request_for(SourceOptions(source=str(mar)), tmp_path / "home")
    request = archives.request_for(SourceOptions(source=str(mar), allow_code=True), tmp_path / "home")
    assert request is not None
    assert request.handler is not None
    assert request.handler.code.module == "ts.torch_handler.object_detector"
    assert run_with_torch("inspect", mar).stdout.count("its handler object_detector answers, in the workers") == 1


@pytest.mark.parametrize(("source", "words"), [("class A: ...\nclass B: ...\n", "2 classes"), ("def (", "not Python")])
def test_a_file_without_one_network_is_refused(source: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "model.py"
    file.write_text(source)
    with pytest.raises(SourceError, match=words):
        network_class.read(file, tmp_path)


# config.properties


def test_a_config_file_is_acted_on_or_passed_over() -> None:
    models = {"cats": {"1.0": {"defaultVersion": True, "marName": "c.mar", "minWorkers": 2, "batchSize": 8}}}
    text = (
        "# comment\ninference_address=http://0.0.0.0:9080\nmanagement_address = http://127.0.0.1\n"
        "job_queue_size:50\nNUM_WORKERS=1\nmetrics_mode=prometheus\nload_models=all\n"
        f"models={json.dumps(models)[:20]}\\\n   {json.dumps(models)[20:]}\n"
        "disable_token_authorization=true\nmodel_store=$$HOME$$/store\nenable_envvars_config=true\n"
    )
    found = torchserve.read(text, {"HOME": "/h", "TS_DEFAULT_RESPONSE_TIMEOUT": "7", "TS_CONFIG_FILE": "x"})
    assert found.settings == {
        "host": "0.0.0.0", "port": 9080, "management_address": "127.0.0.1:8081", "max_queue_size": 50,
        "model_store": "/h/store", "compute_timeout": 7, "grpc_port": 0,
    }  # fmt: skip
    assert found.passed_over.keys() == {"NUM_WORKERS", "metrics_mode", "grpc_inference_address"}
    assert (found.load, found.open_to_all) == (("all",), True)
    [cats] = found.models
    assert (cats.name, cats.version, cats.archive, cats.default) == ("cats", "1.0", "c.mar", True)
    assert cats.settings == {"replicas": 2, "max_batch_size": 8}


def test_a_snapshot_names_its_models_as_kserve_writes_it() -> None:
    text = 'model_snapshot={"name":"startup.cfg","modelCount":1,"models":{"m":{"1.0":{"marName":"m.mar"}}}}'
    [model] = torchserve.read(text, {}).models
    assert (model.name, model.archive) == ("m", "m.mar")


def test_a_bad_value_is_passed_over_and_a_bad_address_refused() -> None:
    assert torchserve.read("job_queue_size=many\nmodels={\n", {}).passed_over.keys() == {"job_queue_size", "models"}
    with pytest.raises(ConfigError, match="is not an address"):
        torchserve.read("inference_address=ftp://x", {})


@pytest.mark.parametrize(
    ("text", "port", "managed"),
    [
        ("", 7070, "127.0.0.1:7071"),
        ("inference_address=http://localhost:1\ngrpc_inference_port=5\ngrpc_management_port=6", 5, "127.0.0.1:6"),
        ("inference_address=http://0.0.0.0:1\ngrpc_inference_address=0.0.0.0\n", 7070, "127.0.0.1:7071"),
        ("grpc_management_address=::1\n", 7070, "[::1]:7071"),
        ("inference_address=http://0.0.0.0:1\n", 0, None),
        ("grpc_inference_port=no\n", 0, None),
        ("grpc_inference_address=0.0.0.0\n", 0, None),
    ],
)
def test_grpc_listens_where_torchserves_does_or_nowhere(text: str, port: int, managed: str | None) -> None:
    found = torchserve.read(text, {})
    assert (found.settings["grpc_port"], found.settings.get("grpc_management_address")) == (port, managed)
    assert bool(found.passed_over) is (port == 0)


def test_properties_are_read_as_java_reads_them() -> None:
    text = "a\\:b = c\n  d e\n! no\nf=1\\\n  2\ng\nh=\\u0041\n"
    assert torchserve.parse_properties(text) == {"a:b": "c", "d": "e", "f": "12", "g": "", "h": "A"}
