"""What the files of Hugging Face's transformers beside weights decide: whether their network is served, over images or
texts, and how its images are prepared.

What they say is taken as it is, or the weights are refused with what to do instead. It imports no torch, and not
transformers.
"""

import importlib.util
from collections.abc import Mapping
from typing import Any, Literal

from flambeau.bundle.storage import ImageConfig
from flambeau.checkpoints.report import plain
from flambeau.checkpoints.transformers_config import NAME, PROCESSOR, TransformersConfig
from flambeau.errors import SourceError
from flambeau.identify import unsupported
from flambeau.identify.finding import ONE_OUTPUT
from flambeau.system.machine import pip_install

_OF_IMAGES = ("ForImageClassification", "ForImageClassificationWithTeacher")
_OF_TEXTS = ("ForSequenceClassification", "Model")
_OTHERS = ("imagegpt", "shieldgemma2", "siglip2", "timm_wrapper")
"""Kinds over images that take more or other than the numbers of one, and the one that timm makes of a name in the
settings, which may be that of a file on a hub or in another folder."""
_TEXT_TYPES = ("albert", "bert", "camembert", "distilbert", "electra", "mpnet", "roberta", "xlm-roberta")
"""Kinds of networks that read a whole text at once, and whose answers were compared with those of transformers."""

_CHANNELS = 3

_AFTER_PAD = ("camembert", "mpnet", "roberta", "xlm-roberta")
"""Kinds that count positions from the one after that of the padding token's number."""

_STRETCH = ("ViT", "DeiT", "Beit", "Pvt")
"""Processors to which a size of one number is that of both sides; to others it is the shorter one."""
_CROP = ("DeiT", "Bit", "CLIP", "MobileNetV1", "MobileNetV2")
"""Processors that cut out the centre unless their file says otherwise."""
_CONVNEXT = "ConvNext"
_KNOWN = (*_STRETCH, *_CROP, _CONVNEXT, "Siglip")
_ENDINGS = ("ImageProcessorFast", "ImageProcessorPil", "ImageProcessor", "FeatureExtractor")
_WHOLE = 384  # from this size on, ConvNext's processor stretches images instead of cutting out their centre
_FILTERS: dict[Any, Literal["bilinear", "bicubic"]] = {2: "bilinear", 3: "bicubic"}
"""By Pillow's numbers."""

_OTHERWISE = (
    "say --task multi-label if each class was trained on its own (BCEWithLogitsLoss), --task regression if they are "
    "numbers"
)


def statement(config: TransformersConfig) -> str:
    """Which network the files name, as the beginning of a sentence."""
    return f"{NAME} beside the weights says that they are those of transformers' {config.network}"


def kind_of(config: TransformersConfig) -> Literal["image", "text"]:
    """What the network takes. Raises `SourceError` for one that is not served."""
    kind = str(config.settings["model_type"])
    if config.network.endswith(_OF_IMAGES) and kind not in _OTHERS:
        channels = config.settings.get("num_channels")
        if type(channels) is int and channels != _CHANNELS:
            raise SourceError(
                f"{statement(config)}, of images of {channels} channel{'' if channels == 1 else 's'}, and those that "
                f"are prepared have {_CHANNELS}: {unsupported.AROUND}"
            )
        return "image"
    if config.network.endswith(_OF_TEXTS) and kind in _TEXT_TYPES:
        return "text"
    raise SourceError(
        f"{statement(config)}, which is not served by its weights: of transformers' networks those that end in "
        f"ForImageClassification are, but for {', '.join(_OTHERS)}, and over texts {', '.join(_TEXT_TYPES)} for "
        f"classes and vectors; {unsupported.AROUND}"
    )


def makes_vectors(config: TransformersConfig) -> bool:
    """Whether the network has no head, so that it makes a vector of every token."""
    return config.network.endswith("Model")


def most_tokens(config: TransformersConfig) -> int | None:
    """The tokens of a text that the network has positions for, if it says so."""
    positions = config.settings.get("max_position_embeddings")
    if type(positions) is not int:
        return None
    kind, pad = str(config.settings["model_type"]), config.settings.get("pad_token_id")
    if kind not in _AFTER_PAD:
        return positions
    before = pad if type(pad) is int and kind != "mpnet" else 1  # of mpnet's it is 1 whatever its tokenizer has
    return max(1, positions - before - 1)


def missing(config: TransformersConfig, tokenizer: bool) -> str:
    """What is not there that a network needs, as a sentence; empty if all is. `tokenizer`: whether one is there."""
    if importlib.util.find_spec("transformers") is None:
        return f"{statement(config)}, and it is not installed: {pip_install('transformers')}"
    if kind_of(config) == "text" and not tokenizer:
        return (
            f"{statement(config)}, and no tokenizer.json says how texts become its token ids: save it there with "
            "AutoTokenizer's save_pretrained(), or name it with --tokenizer"
        )
    return ""


def unsaid(config: TransformersConfig) -> str:
    """What the user has to say of a network's task, as a sentence; empty if nothing."""
    names = config.settings.get("id2label")
    one = isinstance(names, dict) and len(names) == 1 and config.task is None and not makes_vectors(config)
    return f"{statement(config)}; {ONE_OUTPUT}" if one else ""


def task_in_words(config: TransformersConfig) -> str:
    """The task of the network, and which activation is applied by whom."""
    of = "of a text, made token ids by its tokenizer: " if kind_of(config) == "text" else ""
    if makes_vectors(config):
        return f"{of}embedding, of a vector for every token"
    if config.task is not None:
        return f"{of}{config.task}, as {NAME} beside the weights says"
    return f"{of}classification, assumed: Flambeau applies a softmax; {_OTHERWISE}"


def prepared(config: TransformersConfig, *, asked: Mapping[str, Any]) -> ImageConfig:
    """How images are prepared: as the image processor of transformers does, but for what is `asked`.

    Raises `SourceError` for a way that is not served, and without the file unless all of it is asked for.
    """
    if {"crop", "mean", "std"} <= asked.keys():
        return ImageConfig(resize=asked.get("resize", asked["crop"]), crop=asked["crop"])
    said = config.processor
    if said is None:
        raise SourceError(
            f"{statement(config)}, and no {PROCESSOR} says how its images are prepared: save it there with "
            "AutoImageProcessor's save_pretrained(), or say --crop, --mean, --std, and --resize where it is not --crop"
        )
    return _of_processor(said, asked)


def _of_processor(said: Mapping[str, Any], asked: Mapping[str, Any]) -> ImageConfig:
    kind = str(said.get("image_processor_type") or said.get("feature_extractor_type"))
    name = next((kind.removesuffix(ending) for ending in _ENDINGS if kind.endswith(ending)), kind)
    if name not in _KNOWN:
        raise _unserved(f"image_processor_type {plain(kind)}")
    for key, wanted in (("do_resize", True), ("do_rescale", True), ("do_pad", False), ("do_flip_channel_order", False)):
        if said.get(key, wanted) not in (wanted, None):
            raise _unserved(f"{key} {said[key]}")
    if abs(_number(said, "rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
        raise _unserved(f"rescale_factor {said['rescale_factor']}")
    resize, stretch = _size(said, name)
    crop = resize
    if name == _CONVNEXT and not stretch and resize < _WHOLE:
        resize = int(resize / _number(said, "crop_pct", 224 / 256))
    elif name == _CONVNEXT:
        stretch = True
    if said.get("do_center_crop", name in _CROP):
        crop, _ = _square(said.get("crop_size"), "crop_size")
    elif not stretch and name != _CONVNEXT and "crop" not in asked:
        raise _unserved("a size of the shorter side without do_center_crop")
    filtered = _FILTERS.get(said.get("resample"))
    if filtered is None:
        raise _unserved(f"resample {said.get('resample')}")
    plain_colours = said.get("do_normalize", True) is False
    mean = (0.0,) * 3 if plain_colours else _colours(said, "image_mean")
    std = (1.0,) * 3 if plain_colours else _colours(said, "image_std")
    if 0 in std:
        raise _unserved("image_std 0")
    return ImageConfig(resize, crop, mean, std, filtered, stretch=stretch, crop_floor=not (stretch and resize == crop))


def _size(said: Mapping[str, Any], name: str) -> tuple[int, bool]:
    """The side that images get, and whether both sides get it."""
    size = said.get("size")
    if isinstance(size, dict) and "shortest_edge" in size and "longest_edge" not in size:
        return _side(size["shortest_edge"], "size"), False
    if type(size) is int:
        return _side(size, "size"), name in _STRETCH
    return _square(size, "size")


def _square(size: Any, key: str) -> tuple[int, bool]:
    if type(size) is int:
        return _side(size, key), True
    if not isinstance(size, dict) or size.get("height") != size.get("width"):
        raise _unserved(f"{key} {plain(str(size))}")
    return _side(size.get("height"), key), True


def _side(size: Any, key: str) -> int:
    if type(size) is not int or not 0 < size < 2**14:
        raise _unserved(f"{key} {plain(str(size))}")
    return size


def _number(said: Mapping[str, Any], key: str, usual: float) -> float:
    found = said.get(key)
    if found is None:
        return usual
    if type(found) not in (int, float) or not found > 0:
        raise _unserved(f"{key} {plain(str(found))}")
    return float(found)


def _colours(said: Mapping[str, Any], key: str) -> tuple[float, ...]:
    found = said.get(key)
    if type(found) in (int, float):
        found = [found] * 3
    if not isinstance(found, list) or len(found) != 3 or any(type(each) not in (int, float) for each in found):
        raise _unserved(f"{key} {plain(str(found))}")
    return tuple(map(float, found))


def _unserved(what: str) -> SourceError:
    return SourceError(
        f"{PROCESSOR} beside the weights says {what}, and images are not prepared so here: say --crop, --mean, "
        "--std, and --resize where it is not --crop, if that is near enough; a PythonModel prepares them as it says"
    )
