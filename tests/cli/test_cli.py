"""The sources that `serve` and `build` take, and what they say about those they cannot take."""

import json
import shutil
import signal
import subprocess
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton

from flambeau.architectures import torchvision_compat
from flambeau.bundle import storage
from flambeau.bundle.storage import Bundle
from tests.support.photographs import encoded, photograph
from tests.support.server import FLAMBEAU, Serve, free_port
from tests.support.warm import open_before, run_with_torch

NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self, hidden=8):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, hidden), nn.ReLU(), nn.Linear(hidden, 3))

    def forward(self, rows):
        return self.layers(rows)

class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.line = nn.Linear(1, 1)

    def forward(self, rows):
        return self.line(rows)

class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(5)

    def forward(self, rows):
        return self.norm(rows)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights files, made as people make them."""
    folder = tmp_path_factory.mktemp("sources")
    torchvision_compat.declare_missing()
    from torchvision import models

    torch.manual_seed(0)
    torch.save(models.resnet18(num_classes=3).state_dict(), folder / "resnet18.pth")
    torch.save(models.densenet121(weights=None).state_dict(), folder / "densenet.pth")
    (folder / "names.txt").write_text("cat\ndog\nhorse\n")
    (folder / "net.py").write_text(NET)
    twice = {"line.weight": torch.tensor([[2.0]]), "line.bias": torch.tensor([0.0])}
    torch.save(twice, folder / "twice.pt")
    torch.save({f"module.layers.{key}": value for key, value in _net_state().items()}, folder / "net.pth")
    torch.save({"norm.weight": torch.ones(5), "norm.bias": torch.zeros(5)}, folder / "odd.pth")
    return folder


def _net_state() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    layers = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    return layers.state_dict()


@pytest.mark.long
def test_a_fine_tuned_resnet_serves_with_its_own_classes(serve: Serve, folder: Path, cat: bytes) -> None:
    arguments = ("resnet18", "--weights", folder / "resnet18.pth", "--labels", folder / "names.txt")
    said = open_before(*arguments)
    assert "[5/5]" in said
    assert "agrees with PyTorch" in said
    with serve(*arguments) as server:
        body = server.post("/predict?top_k=3&threshold=0", files={"file": cat}).json()
        assert sorted(each["class_name"] for each in body["predictions"]) == ["cat", "dog", "horse"]
        assert body["class_id"] in ("0", "1", "2")


@pytest.mark.slow
def test_densenet_answers_as_pytorch_itself(serve: Serve, folder: Path) -> None:
    """The whole way, bytes to probabilities, against torchvision's transform and the eager network."""
    from torchvision import models, transforms

    picture = photograph("coffee")
    network = models.densenet121(weights=None).eval()
    network.load_state_dict(torch.load(folder / "densenet.pth", weights_only=True))
    prepare = transforms.Compose([
        transforms.Resize(255), transforms.CenterCrop(224), transforms.ToTensor(),
        transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ])  # fmt: skip
    prepared = prepare(picture)[None]
    with torch.inference_mode():
        logits = network(prepared)
        expected = logits.softmax(1)[0]
    for engine in ("onnxruntime", "eager"):
        arguments = ("densenet121", "--weights", folder / "densenet.pth", "--labels", "imagenet", "--engine", engine)
        port = free_port()
        with serve(*arguments, "--grpc-port", port) as server:
            body = server.post("/predict?threshold=0", files={"image": encoded(picture)}).json()
            raw, from_json, files = over_v2(server.url, "densenet121", prepared.numpy(), encoded(picture))
            by_grpc, files_by_grpc = over_grpc(f"127.0.0.1:{port}", "densenet121", prepared.numpy(), encoded(picture))
        assert (raw == from_json).all()
        assert by_grpc == pytest.approx(raw, abs=1e-6 * float(logits.abs().max()))
        assert files_by_grpc[0].tolist() == pytest.approx(body["probabilities"], abs=1e-6)
        assert raw == pytest.approx(logits.numpy(), abs=1e-6 * float(logits.abs().max()))
        assert torch.from_numpy(raw.copy()).softmax(1)[0].tolist() == pytest.approx(body["probabilities"], abs=1e-6)
        assert files[0].tolist() == pytest.approx(body["probabilities"], abs=1e-6)
        assert body["class_index"] == int(expected.argmax())
        assert body["probabilities"] == pytest.approx(expected.tolist(), abs=1e-5)


def over_v2(url: str, model: str, prepared: np.ndarray, file: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """KServe v2: the network's own outputs asked in binary and as JSON, and the probabilities of a file."""
    client = triton.InferenceServerClient(url.removeprefix("http://"), network_timeout=60.0)
    described = client.get_model_metadata(model)
    given, output = described["inputs"][0], described["outputs"][0]["name"]
    found = []
    for binary in (True, False):
        tensor = triton.InferInput(given["name"], list(prepared.shape), "FP32")
        tensor.set_data_from_numpy(prepared, binary_data=binary)
        wanted = triton.InferRequestedOutput(output, binary_data=binary)
        found.append(client.infer(model, [tensor], outputs=[wanted]).as_numpy(output))
    images = triton.InferInput("images", [1], "BYTES")
    images.set_data_from_numpy(np.array([file], object))
    found.append(client.infer(model, [images]).as_numpy("probabilities"))
    client.close()
    return found[0], found[1], found[2]


def over_grpc(target: str, model: str, prepared: np.ndarray, file: bytes) -> tuple[np.ndarray, np.ndarray]:
    """The same over gRPC: the network's own outputs, and the probabilities of a file."""
    client = triton_grpc.InferenceServerClient(target)
    described = client.get_model_metadata(model)
    given, output = described.inputs[0], described.outputs[0].name
    tensor = triton_grpc.InferInput(given.name, list(prepared.shape), "FP32")
    tensor.set_data_from_numpy(prepared)
    asked = [triton_grpc.InferRequestedOutput(output)]
    raw = client.infer(model, [tensor], outputs=asked, client_timeout=60).as_numpy(output)
    images = triton_grpc.InferInput("images", [1], "BYTES")
    images.set_data_from_numpy(np.array([file], object))
    files = client.infer(model, [images], client_timeout=60).as_numpy("probabilities")
    client.close()
    return raw, files


def test_a_network_over_numbers_serves_rows_and_lists_of_rows(serve: Serve, folder: Path) -> None:
    layers = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    layers.load_state_dict(_net_state())
    rows = torch.tensor([[1.0, 2, 3, 4], [-1, 0.5, 0, 2]])
    expected = layers(rows).tolist()
    arguments = ("net.pth", "--arch", "net.py:Net", "--allow-code")
    open_before(*arguments, cwd=folder)
    with serve(*arguments, cwd=folder) as server:
        assert "[5/5]" not in server.log()  # it was built
        assert server.post(json={"input": rows[0].tolist()}).json()["output"] == pytest.approx(expected[0], abs=1e-5)
        many = server.post(json={"input": rows.tolist()}).json()["output"]
        assert many[1] == pytest.approx(expected[1], abs=1e-5)
        wrong = server.post(json={"input": [1, 2, 3]})
        assert wrong.status_code == 400
        assert wrong.json()["error"] == (
            "input must be a list of 4 numbers, or a list of such lists, but its shape is [3]"
        )
        assert "text where a number belongs" in server.post(json={"input": ["1", 2, 3, 4]}).json()["error"]
        assert server.post(files={"file": b"x"}).status_code == 415
        assert b"<textarea" in server.get("/").content


def test_the_third_recipe_as_a_network(serve: Serve, folder: Path) -> None:
    with serve("twice.pt", "--arch", "net:Twice", "--allow-code", cwd=folder) as server:
        assert server.post(json={"input": 3}).content == b'{"output":6.0}'
        assert server.post(json={"input": [3]}).content == b'{"output":[6.0]}'
        assert "must be a number" in server.post(json={"input": "3"}).json()["error"]


def test_an_own_network_is_served_by_eager_pytorch_too(serve: Serve, folder: Path) -> None:
    arguments = ("net.pth", "--arch", "net.py:Net", "--allow-code", "--engine", "eager")
    with serve(*arguments, cwd=folder) as server:
        assert len(server.post(json={"input": [1, 2, 3, 4]}).json()["output"]) == 3
        assert "engine=eager" in server.log()


def test_arch_args_reach_the_constructor(folder: Path, tmp_path: Path) -> None:
    arguments = ("net.pth", "--arch", "net.py:Net", "--allow-code", "--arch-args", '{"hidden": 9}')
    done = run_with_torch("build", *arguments, "-o", tmp_path / "out", cwd=folder)
    assert done.returncode == 1
    assert "layers.0.weight is (8, 4) in the file and (9, 4) in Net" in done.stderr


def test_a_built_bundle_can_be_carried_elsewhere_and_served(serve: Serve, folder: Path, tmp_path: Path) -> None:
    done = run_with_torch(
        "build", "resnet18", "--weights", folder / "resnet18.pth", "--labels", folder / "names.txt",
        "--threshold", "0.9", "-o", tmp_path / "first",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shutil.move(tmp_path / "first", tmp_path / "second")
    manifest = json.loads((tmp_path / "second" / "manifest.json").read_text())
    assert manifest["agreement"]["same_top_class"] is True
    assert manifest["agreement"]["difference"] < 1e-4
    assert manifest["source"]["sha256"] == storage.sha256_of(folder / "resnet18.pth")
    assert str(tmp_path) not in json.dumps(manifest)
    with serve(tmp_path / "second", "--name", "pets") as server:
        body = server.post("/predict/pets", files={"file": encoded(photograph("rocket"))}).json()
        assert body["class_id"] is None
        assert "below the threshold 0.9" in body["reason"]


@pytest.mark.long
def test_a_python_bundle_asks_again_for_allow_code(serve: Serve, double_py: Path, tmp_path: Path) -> None:
    done = run_with_torch("build", f"{double_py}:Double", "--allow-code", "-o", tmp_path / "double")
    assert done.returncode == 0, done.stderr
    refused = run_with_torch("serve", tmp_path / "double")
    assert refused.returncode == 78
    assert "--allow-code" in refused.stderr
    with serve(tmp_path / "double", "--allow-code") as server:
        assert server.post(json={"input": 3}).json() == {"output": 6.0}


def test_an_existing_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    done = run_with_torch("build", "-o", tmp_path)
    assert done.returncode == 1
    assert "is not empty" in done.stderr
    assert (tmp_path / "precious").read_text() == "mine"


long = partial(pytest.param, marks=pytest.mark.long)
"""A case that takes seconds."""


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["double.py:Double"], 78, "add --allow-code"),
        (["absent.py:Double", "--allow-code"], 1, "absent.py does not exist"),
        long(["net.py:Absent", "--allow-code"], 1, "has no Absent"),
        long(["net.py:Net", "--allow-code"], 1, "is not a subclass of flambeau.PythonModel"),
        (["net.pth", "--arch", "net.py:Net"], 78, "add --allow-code"),
        (["net.pth"], 1, "--arch mlp"),
        (["absent.pth"], 1, "absent.pth does not exist"),
        (["resnet81"], 1, "did you mean"),
        (["resnet18", "--weights", "absent.pth"], 1, "--weights absent.pth does not exist"),
        long(["resnet18", "--weights", "densenet.pth"], 1, "do not fill resnet18"),
        (["resnet18", "--weights", "resnet18.pth", "--num-classes", "5"], 1, "--num-classes 5, but the last layer"),
        long(["resnet18", "--weights", "resnet18.pth", "--labels", "imagenet"], 1, "but the model has 3"),
        long(["resnet18", "--weights", "resnet18.pth", "--labels", "absent"], 1, "--labels absent cannot be read"),
        (["resnet18", "--weights", "names.txt"], 1, "names.txt is text"),
        (["odd.pth", "--arch", "net.py:Odd", "--allow-code"], 1, "--input-shape"),
        (["--threshold", "nan"], 78, "--threshold nan is too small"),
        (["--device", "cuda:7"], 1, "--device cuda:7"),
        (["--device", "abacus"], 1, "abacus"),
        long(["--engine", "eager", "--device", "cuda"], 1, "sees no CUDA device here"),
        long(["--engine", "eager", "--device", "mps"], 1, "sees no Apple GPU here"),
        (["--arch-args", "[1]"], 78, "--arch-args [1] is not a JSON object"),
        (["--name", "a/b"], 78, "cannot be a model's name"),
        (["--port", "70000"], 78, "--port 70000 is too large"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)  # fmt: skip
def test_what_cannot_be_served_is_told_in_one_line(
    folder: Path, double_py: Path, default_bundle: Bundle, arguments: list[str], code: int, sentence: str
) -> None:
    """F-22: exit code, one line with the remedy, no traceback."""
    shutil.copy(double_py, folder / "double.py")
    done = run_with_torch("serve", *arguments, *([] if "--port" in arguments else ["--port", 0]), cwd=folder)
    assert done.returncode == code, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("flambeau: ")
    assert sentence in last
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_pretrained_weights_that_cannot_be_fetched_name_the_remedy(tmp_path: Path) -> None:
    """With no route to the host that torchvision fetches from."""
    environment = {
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
        "TORCH_HOME": str(tmp_path),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        done = run_with_torch("serve", "squeezenet1_1", "--port", 0)
    assert done.returncode == 1
    assert "name it with --weights" in done.stderr.splitlines()[-1]


def test_a_changed_bundle_is_refused(folder: Path, tmp_path: Path, default_bundle: Bundle) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(default_bundle.path, copy)
    labels = copy / "labels.json"
    labels.write_text(labels.read_text().replace("Egyptian_cat", "Egyptian_dog"))
    done = run_with_torch("serve", copy, "--port", 0)
    assert done.returncode == 1
    assert "labels.json" in done.stderr
    assert "was changed since it was built" in done.stderr


def test_weights_that_carry_code_are_refused_without_running_it(tmp_path: Path) -> None:
    """T-01."""
    canary = tmp_path / "canary"

    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (canary,))

    torch.save({"fc.weight": torch.ones(1), "trap": Trap()}, tmp_path / "trap.pth")
    done = run_with_torch("serve", "resnet18", "--weights", tmp_path / "trap.pth", "--port", 0)
    assert done.returncode == 1
    assert "names builtins.getattr, which could" in done.stderr
    assert not canary.exists()


def test_help_teaches() -> None:
    top = run_with_torch("--help").stdout
    assert "flambeau serve double.py:Double --allow-code" in top
    serve_help = run_with_torch("serve", "--help").stdout
    for flag in ("--host", "--threshold", "--weights", "--labels", "--device", "--engine", "--allow-code"):
        assert flag in serve_help
    assert run_with_torch("serve", "--no-such-flag").returncode == 2


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["net.pth", "--arch", "net.py:Net", "--allow-code", "--labels", "names.txt"], "--labels"),
        (["resnet18", "--weights", "resnet18.pth", "--input-shape", "4"], "--input-shape"),
        (["double.py:Double", "--allow-code", "--crop", "224"], "--crop"),
        (["--weights", "resnet18.pth"], "--weights"),
    ],
)
def test_an_option_without_effect_is_refused(folder: Path, double_py: Path, arguments: list[str], option: str) -> None:
    shutil.copy(double_py, folder / "double.py")
    done = run_with_torch("serve", *arguments, "--port", 0, cwd=folder)
    assert done.returncode == 1
    assert f"{option} " in done.stderr.splitlines()[-1]


@pytest.mark.long
def test_a_build_that_is_stopped_leaves_nothing_behind(tmp_path: Path) -> None:
    """I5: neither a folder nor a process."""
    process = subprocess.Popen(
        [*FLAMBEAU, "build", "-o", str(tmp_path / "bundle")], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert process.stderr.read(6) == "[1/5] "  # the build process is at work
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.terminate()
    process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert children
    assert list(tmp_path.iterdir()) == []
    for child in children:
        assert not Path(f"/proc/{child}").exists()
