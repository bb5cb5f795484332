"""Finds networks of segmentation_models_pytorch by the names of their tensors: an encoder, a decoder and a head.

No index has them, because every encoder goes with every decoder. Names tell the decoder, blocks the encoder, and
shapes the channels; whether the weights really fill the network shows when the library has made it. Encoders other than
ResNets are for the user to name. It imports nothing of the library.
"""

import importlib.util
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from flambeau.bundle.storage import Architecture, DenseConfig
from flambeau.identify import match, naming, nearest, segmentation_decoders
from flambeau.identify.finding import Fit, Identified
from flambeau.identify.index import Shape
from flambeau.identify.naming import Names
from flambeau.identify.segmentation_decoders import DECODERS, HEAD

LIBRARY: Final = "segmentation_models_pytorch"
"""The package to import; `pip` knows it with hyphens."""

TASK = "semantic-segmentation"

_ASIDE = "classification_head."
_PARTS = ("encoder.", "decoder.", "segmentation_head.", _ASIDE)
_NORMALISES = ("mean", "std")
"""What a training module calls the numbers by which it normalises images, beside its network."""

_RESNETS: dict[tuple[tuple[int, ...], bool], str] = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}
"""Encoders by the number of their blocks, and whether these have three convolutions."""

_BLOCK = re.compile(r"encoder\.layer([1-4])\.(\d+)\.conv1\.weight")


def installed() -> bool:
    """Whether the library is there. It is not imported."""
    return importlib.util.find_spec(LIBRARY) is not None


def named(wanted: str) -> str:
    """The network that `--arch` names, such as `Unet`, or with the library before it; empty if it is none of these."""
    library, _, name = wanted.rpartition("/")
    return name if name in DECODERS and library in ("", LIBRARY) else ""


def find_named(file: Names, name: str, args: Mapping[str, Any]) -> Identified:
    """The same as `find`, where the user has named the network."""
    found = find(file, args, wanted=name)
    return found or Identified(None, advice=nearest.none_of(f"{LIBRARY}'s {name}"))


def find(file: Names, args: Mapping[str, Any], *, wanted: str | None = None) -> Identified | None:
    """The network that these tensors are of, or advice; `None` if they are of no such network.

    `args` are the user's for its constructor; `wanted` is its name if the user said it.
    """
    for prefix in sorted(file.prefixes, key=lambda prefix: not naming.is_averaged(prefix)):
        inside = file.within(prefix)
        name = next((name for name, key in DECODERS.items() if key in inside), None)
        if name is not None and HEAD in inside and any(key.startswith("encoder.") for key in inside):
            if wanted not in (None, name):
                return Identified(None, advice=f"--arch {wanted}, but the weights are those of {LIBRARY}'s {name}")
            return _found(file, prefix, inside, name, args)
    return None


def _found(file: Names, prefix: str, inside: dict[str, Shape], name: str, args: Mapping[str, Any]) -> Identified:
    aside, left = match.beside(file, prefix, inside)
    channels = _channels(inside)
    normalises = _normalises(prefix, left, channels)
    left = {key: shape for key, shape in left.items() if key not in normalises}
    left |= {prefix + key: shape for key, shape in inside.items() if not key.startswith(_PARTS)}
    training = [key for key in inside if key.startswith(_ASIDE)]
    used = {key: shape for key, shape in inside.items() if key not in training}
    given: dict[str, Any] = {
        "encoder_name": _encoder(inside), "encoder_weights": None, "in_channels": channels, "classes": inside[HEAD][0],
        **segmentation_decoders.arguments(name, used),
    }  # fmt: skip
    classes = given["classes"]
    called = f"{LIBRARY}'s {name}"
    if advice := nearest.left_over(called, left) or nearest.unlike(args, "classes", classes):
        return Identified(None, advice=advice)
    given |= args
    told = f"the weights are those of {called}"
    if given["encoder_name"] is None:
        return _asked(
            name, f"{told}, with an encoder that flambeau does not tell by its tensors", args, encoder_name="vgg16"
        )
    if given.get("encoder_depth", 0) is None:
        return _asked(name, f"{told}, and several depths of its encoder have these shapes", args, encoder_depth=2)
    told += f" with the encoder {given['encoder_name']} and {classes} classes"
    if not installed():
        return Identified(
            None, advice=f"{told}, and that library is not installed: pip install {LIBRARY.replace('_', '-')}, and run "
            "the same again"
        )  # fmt: skip
    fit = Fit(
        architecture=Architecture(LIBRARY, name, given),
        classes=classes,
        keys={file.keys[prefix + key]: key for key in used},
        aside=(*file.aside, *(file.keys[key] for key in (*(prefix + key for key in training), *aside, *normalises))),
        why=f"{told}: so their names say",
        pipeline=DenseConfig(),
        task=TASK,
        normalises=tuple(file.keys[key] for key in normalises),
    )
    unknown = name in segmentation_decoders.OF_ONE_STAGE and _encoder(inside) is None
    other = ", the depth of an encoder that is no ResNet" if unknown else ""
    note = (
        f"what weights do not show (dilation, upsampling, an activation at the end{other}) is the library's default: "
        f"--arch {name} with --arch-args changes it"
    )
    return Identified(fit, notes=(note, *nearest.averaged(prefix)))


def _asked(name: str, why: str, args: Mapping[str, Any], **such: object) -> Identified:
    """The user is asked for an argument of the constructor, with an example beside those that were said."""
    said = json.dumps({**args, **such})
    return Identified(None, advice=f"{why}: say which it was in training, such as --arch {name} --arch-args '{said}'")


def _normalises(prefix: str, left: Mapping[str, Shape], channels: int) -> tuple[str, ...]:
    """The mean and the deviation that lie beside the network, where both are numbers for its channels, else nothing.

    Example: a LightningModule registers them as buffers of shape (1, 3, 1, 1), beside `model.`.
    """
    above = prefix.rstrip(".").rpartition(".")
    beside = tuple(f"{above[0]}{above[1]}{name}" for name in _NORMALISES)
    alike = all(key in left and math.prod(left[key]) in (1, channels) for key in beside)
    return beside if prefix and alike and left[beside[0]] == left[beside[1]] else ()


_QUESTION = (
    "beside the network the file has {keys}, by which its training normalised images, and whether those were of 0 to 1 "
    "or of 0 to 255, as in examples of the library, does not show: "
)


def question(fit: Fit, mean: Sequence[float] = (), std: Sequence[float] = ()) -> str:
    """What the user is asked about a file that has the numbers of a normalisation, and not the scale of its images.

    `mean` and `std` are these numbers, one for each channel, if they have been read.
    """
    told = _QUESTION.format(keys=" and ".join(fit.normalises))
    if not std or not all(math.isfinite(each) for each in (*mean, *std)) or not all(each > 0 for each in std):
        return f"{told}say --mean and --std as numbers for images of 0 to 1; without them, flambeau build tells both"
    plain = any(mean) or set(std) != {1.0}
    before = "" if plain else "; or, if your dataset has normalised them, its own --mean and --std"
    return f"{told}say {_options(mean, std, 1)} for 0 to 1, or {_options(mean, std, 255)} for 0 to 255{before}"


def _options(mean: Sequence[float], std: Sequence[float], scale: int) -> str:
    words = (",".join(f"{each / scale:.9g}" for each in numbers) for numbers in (mean, std))
    return "--mean {} --std {}".format(*words)


def _channels(inside: Mapping[str, Shape]) -> int:
    """How many channels the encoder's first convolution takes: 3 if one takes 3, else as the file's first one.

    A file of safetensors has its tensors by name, so that others may come before the first.
    """
    taken = [shape for key, shape in inside.items() if key.startswith("encoder.") and len(shape) == 4]
    return 3 if any(shape[1] == 3 and shape[2] > 1 for shape in taken) or not taken else taken[0][1]


def _encoder(inside: Mapping[str, Shape]) -> str | None:
    places = [(int(met[1]), int(met[2])) for key in inside if (met := _BLOCK.fullmatch(key))]
    counts = tuple(sum(stage == each for each, _ in places) for stage in range(1, 5))
    deep = "encoder.layer1.0.conv3.weight" in inside
    plain = inside.get("encoder.layer1.0.conv2.weight") == (64, 64, 3, 3)  # else it is a ResNeXt, or a wide one
    others = any(part in key for key in inside if key.startswith("encoder.layer") for part in (".se.", ".se_module."))
    return _RESNETS.get((counts, deep)) if plain and not others else None
