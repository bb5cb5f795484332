"""Generated checkpoints of networks that somebody changed: other heads and sizes, own networks, damaged files."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

import corpus_nets
from tests.support.checkpoints import (
    Case,
    Change,
    Maker,
    State,
    every_torchvision_model,
    lightning,
    model,
    names,
    timm_model,
    under,
)

Layer = Callable[[], nn.Module]
D, R = nn.Dropout, nn.ReLU


def L(features: int, outputs: int, *, bias: bool = True) -> Layer:
    return partial(nn.Linear, features, outputs, bias=bias)


def B(channels: int) -> Layer:
    return partial(nn.BatchNorm1d, channels)


def N(channels: int) -> Layer:
    return partial(nn.LayerNorm, channels)


def chain(*layers: Layer) -> Layer:
    return lambda: nn.Sequential(*(layer() for layer in layers))


def named(**layers: Layer) -> Layer:
    return lambda: nn.Sequential(OrderedDict((name, layer()) for name, layer in layers.items()))


def cases() -> list[Case]:
    """All generated checkpoints."""
    return [*every_torchvision_model(), *names(), *heads(), *outside(), *sizes(), *numbered(), *numbers(), *refusals()]


def shown(layer: nn.Module) -> str:
    """A head in a few words."""
    kind = type(layer).__name__
    places = ", ".join(("" if name.isdigit() else f"{name} ") + shown(child) for name, child in layer.named_children())
    return f"{kind}({places})" if places else kind


_RELU = {"hidden_activation": "relu"}
_HEADS: tuple[tuple[str, str, Layer, dict[str, Any]], ...] = (
    ("resnet18", "fc", chain(D, L(512, 7)), {}),
    ("resnet18", "fc", chain(L(512, 7)), {}),
    ("resnet18", "fc", chain(B(512), D, L(512, 7)), {}),
    ("resnet18", "fc", chain(L(512, 40), B(40), L(40, 7)), {}),
    ("resnet18", "fc", chain(N(512), L(512, 7)), {}),
    ("resnet18", "fc", L(512, 7, bias=False), {}),
    ("resnet18", "fc", named(drop=D, fc1=L(512, 7)), {}),
    ("resnet18", "fc", chain(L(512, 40), R, D, L(40, 7)), _RELU),
    ("resnet18", "fc", chain(L(512, 40), B(40), R, D, L(40, 7)), _RELU),
    ("resnet18", "fc", chain(L(512, 40), R, B(40), L(40, 7)), _RELU),
    ("resnet18", "fc", chain(D, L(512, 40), nn.GELU, L(40, 7)), {"hidden_activation": "gelu"}),
    ("resnet18", "fc", chain(L(512, 40), nn.Tanh, L(40, 20), nn.Tanh, L(20, 7)), {"hidden_activation": "tanh"}),
    ("resnet18", "fc", chain(L(512, 40), nn.Sigmoid, L(40, 7)), {"hidden_activation": "sigmoid"}),
    ("resnet18", "fc", chain(L(512, 40), D, L(40, 7)), {"hidden_activation": "none"}),
    ("resnet18", "fc", named(fc1=L(512, 40), act=R, fc2=L(40, 7)), _RELU),
    ("densenet121", "classifier", named(fc1=L(1024, 40), relu=R, fc2=L(40, 7)), _RELU),
    ("efficientnet_b0", "classifier", L(1280, 7), {}),
    ("efficientnet_b0", "classifier.1", chain(D, L(1280, 7)), {}),
    ("efficientnet_b0", "classifier", chain(D, L(1280, 40), nn.SiLU, L(40, 7)), {"hidden_activation": "silu"}),
    ("mobilenet_v2", "classifier", chain(D, L(1280, 40), R, L(40, 7)), _RELU),
    ("mobilenet_v3_small", "classifier", chain(L(576, 40), nn.Hardswish, D, L(40, 7)), {}),
    ("mobilenet_v3_small", "classifier", chain(L(576, 40), R, D, L(40, 7)), _RELU),
    ("mobilenet_v3_small", "classifier.3", chain(D, L(1024, 7)), {}),
    ("alexnet", "classifier", chain(D, L(9216, 30), R, D, L(30, 20), R, L(20, 7)), {}),
    ("vgg11", "classifier", chain(L(25088, 30), R, D, L(30, 20), R, D, L(20, 7)), {}),
    ("vgg11", "classifier", chain(D, L(25088, 7)), {}),
    ("vit_b_32", "heads", L(768, 7), {}),
    ("vit_b_32", "heads", chain(D, L(768, 7)), {}),
    ("swin_t", "head", chain(N(768), L(768, 7)), {}),
    ("convnext_tiny", "classifier.2", chain(D, L(768, 7)), {}),
    ("shufflenet_v2_x0_5", "fc", chain(D, L(1024, 7)), {}),
)


def heads() -> Iterator[Case]:
    """Heads that can be rebuilt for certain, or with the name of an activation."""
    for name, path, layers, options in _HEADS:
        how = f"{name}, {path} = {shown(layers())}{' (told)' if options else ''}"
        yield Case(how, model(name, path, layers), name, 7, head=path, options=options)
    for name in ("convnext_tiny", "vgg11"):
        make = extended(model(name, num_classes=40), R, L(40, 7))
        yield Case(f"{name}, two layers more", make, name, 7, head="classifier", options=_RELU)
    for name, taken_off, missing, features in (
        ("resnet18", "fc", "fc", 512),
        ("vgg11", "classifier", "classifier", 25088),
        ("mobilenet_v2", "classifier", "classifier.1", 1280),
        ("vit_b_32", "heads", "heads.head", 768),
    ):
        make = model(name, taken_off, nn.Identity)
        says = f"has no {missing}: without it the network makes {features} features"
        yield Case(f"{name}, {taken_off} = Identity (W5)", make, name, features, head=missing, says=says)
    make = timm_model("convnext_atto", "head.fc", chain(D, L(320, 7)))
    yield Case("timm's convnext_atto, head.fc = Dropout, Linear", make, "convnext_atto", 7, head="head.fc")


def extended(make: Maker, *layers: Layer) -> Maker:
    """A network whose `classifier` has more layers at its end."""

    def changed() -> nn.Module:
        network = make()
        for layer in layers:
            block = network.get_submodule("classifier")
            block.add_module(str(len(list(block.children()))), layer())
        return network

    return changed


def backbone(*without: str, **beside: tuple[int, ...]) -> Change:
    """The network as somebody's `backbone`, without these parts of it, and with other tensors beside it."""
    wrapped = under("backbone.", **beside)
    return lambda state: wrapped({key: value for key, value in state.items() if not key.startswith(without)})


def outside() -> Iterator[Case]:
    """Backbones whose head lies beside them."""
    yield Case(
        "resnet18, fc outside", model("resnet18"), "resnet18", 7,
        backbone("fc.", fc__weight=(7, 512), fc__bias=(7,)), says="head lies outside, at fc",
    )  # fmt: skip
    yield Case(
        "resnet18, classifier.1 outside", model("resnet18"), "resnet18", 7,
        backbone("fc.", classifier__1__weight=(7, 512), classifier__1__bias=(7,), criterion__weight=(7,)), lightning,
        says="head lies outside, at classifier.1",
    )  # fmt: skip
    yield Case(
        "mobilenet_v2, head outside", model("mobilenet_v2"), "mobilenet_v2", 7,
        backbone("classifier.", head__weight=(7, 1280), head__bias=(7,)), says="head lies outside, at head",
    )  # fmt: skip
    yield Case(
        "resnet18, two layers outside", model("resnet18"), "resnet18", 7,
        backbone("fc.", head__0__weight=(9, 512), head__0__bias=(9,), head__2__weight=(7, 9), head__2__bias=(7,)),
        head="fc", says="head lies outside, at head", options=_RELU,
    )  # fmt: skip
    make = chain(model("resnet18", "fc", nn.Identity), L(512, 7))
    yield Case("resnet18, Sequential(backbone, Linear)", make, "resnet18", 7, says="head lies outside, at 1")
    yield Case(
        "timm's resnet26d, classifier outside", timm_model("resnet26d", num_classes=0), "resnet26d", 7,
        backbone("fc.", classifier__weight=(7, 2048), classifier__bias=(7,)), says="head lies outside, at classifier",
    )  # fmt: skip


def sizes() -> Iterator[Case]:
    """Networks for images of another size."""
    larger = model("vit_b_16", image_size=384, num_classes=4)
    yield Case("vit_b_16 for 384 pixels", larger, "vit_b_16", 4, says="images of 384 pixels")
    larger = timm_model("vit_tiny_patch16_224", img_size=320, num_classes=4)
    yield Case("timm's vit_tiny_patch16_224 for 320 pixels", larger, "vit_tiny_patch16_224", 4, says="of 320 pixels")
    larger = timm_model("vit_tiny_patch16_384", num_classes=4)
    yield Case("timm's vit_tiny_patch16_384", larger, "vit_tiny_patch16_384", 4)
    thin = model("mobilenet_v2", width_mult=0.5, num_classes=4)
    asked = {"wanted": "mobilenet_v2", "args": {"width_mult": 0.5}}
    yield Case("mobilenet_v2, half as wide (told)", thin, "mobilenet_v2", 4, options=asked, says="arguments of its own")


def numbered() -> Iterator[Case]:
    """Children without names (U8)."""
    body = list(resnet18().children())
    whole = nn.Sequential(*body[:-1], nn.Flatten(), nn.Linear(512, 7))
    for name, make in {
        "in a class": lambda: nn.ModuleDict({"features": nn.Sequential(*body[:-1]), "fc": nn.Linear(512, 7)}),
        "with the head": lambda: whole,
    }.items():
        asked = {"wanted": "resnet18"}
        yield Case(f"children of resnet18, {name} (told)", make, "resnet18", 7, options=asked, says="are numbered")
        yield Case(f"children of resnet18, {name}", make, None, says="say --arch resnet18")
        wrong = {"wanted": "resnet34"}
        yield Case(f"children of resnet18, {name}, as resnet34", make, None, says="do not fill", options=wrong)
    yield Case("what fastai saves", corpus_nets.fastai, None, says="as fastai's head does, which joins two poolings")


def resnet18() -> nn.Module:
    with torch.device("meta"):
        return model("resnet18")()


def numbers() -> Iterator[Case]:
    """Plain networks over numbers."""
    told: dict[str, Any] = {"wanted": "mlp", "args": {"activation": "relu"}}
    yield Case("one linear layer", L(4, 3), "mlp", 3)
    yield Case("one linear layer somewhere", L(4, 3), "mlp", 3, under("model.regressor."))
    yield Case("linear layers side by side", chain(L(4, 9), B(9), L(9, 2)), "mlp", 2)
    yield Case("a LayerNorm among them (told)", chain(L(4, 9), N(9), L(9, 2)), "mlp", 2, options={"wanted": "mlp"})
    yield Case("a linear layer without bias (told)", L(4, 3, bias=False), "mlp", 3, options={"wanted": "mlp"})
    yield Case("linear layers with an activation (told)", chain(L(4, 9), R, L(9, 2)), "mlp", 2, options=told)
    yield Case("batch norms among them (told)", chain(B(4), L(4, 9), B(9), R, D, L(9, 2)), "mlp", 2, options=told)
    yield Case("layers with names (told)", named(fc1=L(4, 9), act=R, fc2=L(9, 2)), "mlp", 2, options=told)


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3)])
        self.up = nn.ModuleList([nn.ConvTranspose2d(16, 8, 2), nn.ConvTranspose2d(8, 3, 2)])


def cut(share: float) -> Change:
    """What a mapping keeps of its tensors when it is cut short."""
    return lambda state: dict(list(state.items())[: int(len(state) * share)])


def twice(state: State) -> State:
    """An ensemble of two: no copy of weights, but a network of its own."""
    return {f"models.{number}.{key}": value for number in range(2) for key, value in state.items()}


def more(key: str, *shape: int) -> Change:
    return lambda state: state | {key: torch.zeros(shape)}


def refusals() -> Iterator[Case]:
    """What cannot be told for certain, and what is none of the networks that are known."""
    small = model("resnet18")

    def refused(name: str, make: Maker, says: str, change: Change = dict, **options: Any) -> Case:
        return Case(name, make, None, change=change, says=says, options=options)

    def head(name: str, path: str, layers: Layer, says: str, **options: Any) -> Case:
        told = " ".join(options.values()) or "nothing"
        return refused(f"{name}, {path} = {shown(layers())}, told {told}", model(name, path, layers), says, **options)

    gap = "fc has 512→40, something without weights, 40→7: name what stands between them with --hidden-activation relu"
    yield head("resnet18", "fc", chain(L(512, 40), R, L(40, 7)), gap)
    yield head("resnet18", "fc", chain(L(512, 40), R, B(40), D, L(40, 7)), "do not show", hidden_activation="relu")
    yield head("resnet18", "fc", named(fc1=L(512, 40), act=R, fc2=L(40, 7)), "--hidden-activation relu")
    yield head("resnet18", "fc", L(1024, 7), "fc takes 1024 features where there are 512")
    yield head("resnet18", "fc", chain(chain(L(512, 40), R), L(40, 7)), "layers within layers (0.0, 1)")
    yield head("resnet18", "fc", chain(L(512, 40), L(30, 7)), "1 does not take what comes before it")
    yield head("efficientnet_b0", "classifier", chain(D, L(1280, 40), R, L(40, 7)), "--hidden-activation relu")
    yield head("convnext_tiny", "classifier", chain(nn.Flatten, L(768, 7)), "is given feature maps")
    yield head(
        "resnet18",
        "fc",
        chain(L(512, 40), R, L(40, 7)),
        "prelu is not known",
        hidden_activation="prelu",
    )
    yield refused("resnet18, cut short", small, "cut short or one of several", cut(2 / 3))
    yield refused("resnet18, one layer more", small, "1 unexpected (layer5.weight)", more("layer5.weight", 9, 9))
    yield refused(
        "resnet18, first layer for grey images",
        model("resnet18", "conv1", _grey),
        "[64, 1, 7, 7] for [64, 3, 7, 7]",
    )
    yield refused("resnet18, counter of no norm", small, "conv1.num_batches", more("conv1.num_batches_tracked"))
    yield refused("two resnet18", small, "the file has 122 more tensors", twice)
    arcface = backbone("fc.", arcface__weight=(7, 512))
    yield refused("resnet18 and the centres of ArcFace", small, "arcface.weight is not named like a head's", arcface)
    yield refused("a UNet", UNet, "no architecture that flambeau knows resembles these weights")
    yield refused(
        "an embedding's table", L(9, 1000, bias=False), "a table of vectors is no network", under("embedding.")
    )
    yield refused("a norm that may be any", chain(L(4, 9), N(9), L(9, 2)), "say --arch mlp if it is a LayerNorm")
    yield refused("a table or a layer", L(16, 1000, bias=False), "linear layer, or a table of vectors: say --arch mlp")
    yield refused("a plain network", chain(L(4, 9), R, L(9, 2)), """--arch mlp --arch-args '{"activation": "relu"}'""")
    yield refused(
        "a plain network of names", named(a=L(4, 9), b=L(9, 2)), "4→9, perhaps something without weights, 9→2"
    )
    yield refused("resnet18 asked for as resnet50", small, "the weights do not fill resnet50", wanted="resnet50")
    yield refused("resnet18 asked for as resnet19", small, "did you mean resnet18", wanted="resnet19")
    yield refused("resnet18 asked for as mlp", small, "no plain network over numbers", wanted="mlp")
    told: dict[str, Any] = {"wanted": "resnet18", "args": {"num_classes": 3}}
    yield refused("resnet18 of 1000 classes asked for with 3", small, "leave num_classes out", **told)


def _grey() -> nn.Module:
    return nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
