"""What timm's `config.json` beside weights decides: which network they fill, and how its images are prepared.

The file's say is taken as it is, or the weights are refused with what to say instead; it is never taken in part. Where
timm is not installed, a network of torchvision's with the same name and weights takes the place of timm's.
"""

import json
import shlex
from collections.abc import Callable, Mapping
from math import floor
from typing import Any

import msgspec

from flambeau.bundle.storage import ImageConfig
from flambeau.checkpoints.report import plain
from flambeau.checkpoints.timm_config import NAME, TimmConfig
from flambeau.errors import SourceError
from flambeau.identify import index
from flambeau.identify.finding import Fit, Identified

Find = Callable[[str, Mapping[str, Any]], Identified]
"""Look for the architecture of a name, made with arguments."""

_TAKEN = ("global_pool", "dynamic_img_size", "dynamic_img_pad", "strict_img_size")
"""Arguments for timm's constructors that change no weight, and that are taken from the file."""
_READ = ("img_size", "in_chans", "num_classes")
"""Those that are compared with the weights."""
_RATES = ("_rate", "_drop")
"""Endings of arguments for training alone."""

_FILTERS = ("bilinear", "bicubic")


def decide(config: TimmConfig, find: Find, args: Mapping[str, Any], *, timm: bool, otherwise: Identified) -> Identified:
    """The network that the file names, filled by the weights. `args` are the user's and come first.

    `otherwise` is what the weights alone show, for the advice. `timm`: whether it is installed.
    """
    name = config.architecture
    said = statement(config)
    if (channels := config.input_size[0]) != 3:
        return _refused(
            f"{said} for images of {channels} channels, and timm's networks are served for 3: give your own function "
            f"that returns timm.create_model({name!r}, in_chans={channels}) with --arch file.py:function --allow-code"
        )
    if strange := _strange(config, args):
        shown = {key: config.args[key] for key in strange}
        told = f"made with {plain(', '.join(shown))}, which no file is trusted with"
        return _refused(f"{said}, {told}: {_say(name, {**shown, **args})}")
    found = _with_args(config, find, args) if timm else _of_torchvision(config, find, args)
    if found.fit is None:
        return msgspec.structs.replace(found, advice=f"{said}, but {found.advice}{_elsewise(otherwise, name)}")
    return msgspec.structs.replace(found, fit=msgspec.structs.replace(found.fit, why=said))


def statement(config: TimmConfig) -> str:
    """Which network the file names, as the beginning of a sentence."""
    return f"{NAME} beside the weights says that they are those of timm's {config.architecture}"


def asked(config: TimmConfig, wanted: str) -> bool:
    """Whether the name that the user gave is that of timm's network in the file."""
    return wanted in (index.called("timm", config.architecture), f"timm/{config.architecture}")


def prepared(config: TimmConfig, *, resize: int | None = None, crop: int | None = None) -> ImageConfig:
    """How images are prepared: timm's `create_transform(**resolve_data_config(...))`, without what the user says.

    `resize` and `crop` are the user's, with which the file's own way is not asked for. Raises `SourceError`.
    """
    _, height, width = config.input_size
    said = f"{NAME} beside the weights says"
    if crop is None and height != width:
        raise SourceError(
            f"{said} images of {height} × {width} pixels, and square ones are served: --crop {min(height, width)} cuts "
            "such out of the centre, which gives other answers; a PythonModel prepares them as it says"
        )
    if resize is None and crop is None and config.crop_mode not in ("center", "squash"):
        size = floor(height / config.crop_pct)
        raise SourceError(
            f"{said} crop_mode {config.crop_mode!r}, and images are cut out of the centre here, which gives other "
            f"answers: --resize {size} --crop {height} does so all the same; a PythonModel prepares them as it says"
        )
    if config.interpolation not in _FILTERS:
        raise SourceError(
            f"{said} interpolation {config.interpolation!r}, and images are resized with {' or '.join(_FILTERS)} here: "
            "write one of these there if its answers are near enough; a PythonModel prepares them as it says"
        )
    for name, values in (("mean", config.mean), ("std", config.std)):
        if len(values) != 3:
            raise SourceError(f"{said} {name} of {len(values)} numbers for images of 3 channels: correct it")
    return ImageConfig(
        resize=floor(height / config.crop_pct),
        crop=height,
        mean=config.mean,
        std=config.std,
        interpolation="bilinear" if config.interpolation == "bilinear" else "bicubic",
        stretch=config.crop_mode == "squash" and resize is None and crop is None,
    )


def other_classes(config: TimmConfig, fit: Fit) -> str:
    """Why the file belongs to other weights, by its number of classes; empty if it does not."""
    found = 0 if fit.features else fit.classes
    if config.classes in (None, found):
        return ""
    stated, have = (f"{count} classes" if count else "no head" for count in (config.classes, found))
    return (
        f"{NAME} beside the weights is of a network with {stated}, and they have {have}: correct its num_classes, or "
        "remove it if it belongs to other weights"
    )


def names(config: TimmConfig, fit: Fit, others: tuple[str, ...] | None) -> tuple[tuple[str, ...] | None, str]:
    """The names of the classes, and why there are none although some are given.

    `others` are those that the file of the weights has itself.
    """
    found, why = config.labels, config.unnamed
    if fit.features:
        return None, ""
    if found is not None and len(found) != fit.classes:
        why = f"it names {len(found)} classes, and there are {fit.classes}"
    elif found is not None and others is not None and others != found:
        why = "the file of the weights names them otherwise"
    if why:
        return None, f"the names of classes in {NAME} are not taken, for {why}: --labels names them"
    return found or others, ""


def _with_args(config: TimmConfig, find: Find, args: Mapping[str, Any]) -> Identified:
    """timm's network, made with what the file says and the user does not."""
    wanted = f"timm/{config.architecture}"
    made = {key: config.args[key] for key in _TAKEN if key in config.args}
    size = _side(config.args.get("img_size")) or (config.input_size[1] if config.fixed else None)
    exact = find(wanted, {}).fit
    if exact is not None and isinstance(exact.pipeline, ImageConfig) and "img_size" not in args:
        own = exact.pipeline.crop  # the size that the weights are for, if they have a table of positions
        free = made.get("dynamic_img_size") or made.get("strict_img_size") is False
        if _network(exact).positions is None:
            made |= {"img_size": size} if size and size != own else {}
        elif not free and config.input_size[1:] != (own, own):
            height, width = config.input_size[1:]
            return _refused(
                f"{config.architecture} has a table of positions for images of {own} × {own} pixels here, and not of "
                f"{height} × {width}: correct input_size, or remove the file"
            )
    elif not _may_rename(config, made):
        made = {}
    elif size:
        made["img_size"] = size
    found = find(wanted, {**made, **args})
    if exact is None and found.fit is not None:
        told = "it was made with arguments of its own: loading the weights shows whether they fit"
        found = msgspec.structs.replace(found, notes=(*found.notes, told))
    return found


def _may_rename(config: TimmConfig, made: Mapping[str, Any]) -> bool:
    """Whether a network that was made with these may have other tensors than its name alone makes."""
    facts = index.facts("timm")
    number, _ = facts.architectures.get(config.architecture, (None, None))
    return made != {"global_pool": "avg"} or (number is not None and facts.networks[number].positions is not None)


def _of_torchvision(config: TimmConfig, find: Find, args: Mapping[str, Any]) -> Identified:
    """torchvision's network of the same name, which computes the same; else the advice to install timm."""
    name, known = config.architecture, index.facts("torchvision")
    alike = name in known.architectures and not known.networks[known.architectures[name][0]].aux
    if alike and config.args.get("global_pool", "avg") == "avg":
        found = find(name, args)
        if found.fit:
            return msgspec.structs.replace(found, notes=(*found.notes, f"torchvision's {name} computes the same"))
    return find(f"timm/{name}", args)


def _network(fit: Fit) -> index.Network:
    facts = index.facts("timm")
    return facts.networks[facts.architectures[fit.architecture.name][0]]


def _side(size: Any) -> int | None:
    """The side of a square image size, as an argument of timm's: a number, or two."""
    if isinstance(size, list) and len(size) == 2 and size[0] == size[1]:
        size = size[0]
    return size if type(size) is int and 0 < size < 2**14 else None


def _strange(config: TimmConfig, args: Mapping[str, Any]) -> list[str]:
    """The names of the file's arguments that are not taken from it, and that the user does not give."""

    def is_taken(name: str, value: Any) -> bool:
        if name in _TAKEN:
            return type(value) is (str if name == "global_pool" else bool)
        return name in _READ or name.endswith(_RATES)

    return [name for name, value in config.args.items() if name not in args and not is_taken(name, value)]


def _say(name: str, args: Mapping[str, Any]) -> str:
    given = plain(shlex.quote(json.dumps(args)))
    return f"say --arch timm/{name} --arch-args {given} if you know that, or remove it from model_args there"


def _elsewise(otherwise: Identified, name: str) -> str:
    """What the weights alone show, where that is another network."""
    fit = otherwise.fit
    if fit is None or fit.architecture.registry not in index.REGISTRIES:
        return ""
    other = index.called(fit.architecture.registry, fit.architecture.name)
    return "" if other == name else f"; by their names and shapes they fill {other}, which --arch {other} takes"


def _refused(advice: str) -> Identified:
    return Identified(None, advice=advice)
