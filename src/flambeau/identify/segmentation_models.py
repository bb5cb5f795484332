"""Finds networks of segmentation_models_pytorch by the names of their tensors: an encoder, a decoder and a head.

No index has them, because every encoder goes with every decoder. Names tell the decoder, blocks the encoder, and
shapes the channels; whether the weights really fill the network shows when the library has made it. Encoders other than
ResNets are for the user to name. It imports nothing of the library.
"""

import importlib.util
import json
import re
from collections.abc import Mapping
from typing import Any, Final

from flambeau.bundle.storage import Architecture, DenseConfig
from flambeau.identify import match, naming, nearest
from flambeau.identify.finding import Fit, Identified
from flambeau.identify.index import Shape
from flambeau.identify.naming import Names

LIBRARY: Final = "segmentation_models_pytorch"
"""The package to import; `pip` knows it with hyphens."""

TASK = "semantic-segmentation"

_HEAD = "segmentation_head.0.weight"
_ASIDE = "classification_head."
_DECODERS = {
    "MAnet": "decoder.blocks.0.hl_conv.0.0.weight",
    "Unet": "decoder.blocks.0.conv1.0.weight",
    "UnetPlusPlus": "decoder.blocks.x_0_0.conv1.0.weight",
    "FPN": "decoder.p5.weight",
    "DeepLabV3Plus": "decoder.aspp.0.convs.0.0.weight",
    "Linknet": "decoder.blocks.0.block.0.0.weight",
    "PSPNet": "decoder.psp.blocks.0.pool.1.0.weight",
}
"""A tensor that only the decoder of this network has; a MAnet has Unet's as well, so it comes first."""

_RESNETS: dict[tuple[tuple[int, ...], bool], str] = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}
"""Encoders by the number of their blocks, and whether these have three convolutions."""

_BLOCK = re.compile(r"encoder\.layer([1-4])\.(\d+)\.conv1\.weight")
_UNET_CHANNELS = (256, 128, 64, 32, 16)


def installed() -> bool:
    """Whether the library is there. It is not imported."""
    return importlib.util.find_spec(LIBRARY) is not None


def find(file: Names, args: Mapping[str, Any]) -> Identified | None:
    """The network that these tensors are of, or advice; `None` if they are of no such network.

    `args` are the user's for its constructor.
    """
    for prefix in sorted(file.prefixes, key=lambda prefix: not naming.is_averaged(prefix)):
        inside = file.within(prefix)
        name = next((name for name, key in _DECODERS.items() if key in inside), None)
        if name is not None and _HEAD in inside and any(key.startswith("encoder.") for key in inside):
            return _found(file, prefix, inside, name, args)
    return None


def _found(file: Names, prefix: str, inside: dict[str, Shape], name: str, args: Mapping[str, Any]) -> Identified:
    aside, left = match.beside(file, prefix, inside)
    training = [key for key in inside if key.startswith(_ASIDE)]
    used = {key: shape for key, shape in inside.items() if key not in training}
    given = _arguments(name, used)
    classes = given["classes"]
    called = f"{LIBRARY}'s {name}"
    if advice := nearest.left_over(called, left) or nearest.unlike(args, "classes", classes):
        return Identified(None, advice=advice)
    given |= args
    told = f"the weights are those of {called}"
    command = f"--arch {LIBRARY}:{name} --arch-args '{json.dumps(given)}' --allow-code --task {TASK}"
    if given["encoder_name"] is None:
        return Identified(
            None, advice=f"{told}, with an encoder that flambeau does not tell by its tensors: write its name for null "
            f"and {command}"
        )  # fmt: skip
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
        aside=(*file.aside, *(file.keys[prefix + key] for key in training), *(file.keys[key] for key in aside)),
        why=f"{told}: so their names say",
        pipeline=DenseConfig(),
        task=TASK,
    )
    note = (
        "what weights do not show (dilation, upsampling, an activation at the end) is the library's default: "
        "--arch-args changes it"
    )
    return Identified(fit, notes=(note, *nearest.averaged(prefix)))


def _arguments(name: str, inside: Mapping[str, Shape]) -> dict[str, Any]:
    """What its constructor needs to make a network of these shapes. The encoder's name is `None` if it is not known."""
    first = next((shape for key, shape in inside.items() if key.startswith("encoder.") and len(shape) == 4), (0, 3))
    found: dict[str, Any] = {
        "encoder_name": _encoder(inside), "encoder_weights": None, "in_channels": first[1],
        "classes": inside[_HEAD][0],
    }  # fmt: skip
    if name == "Unet":
        blocks = (inside.get(f"decoder.blocks.{place}.conv2.0.weight", ()) for place in range(5))
        channels = tuple(shape[0] for shape in blocks if shape)
        if channels != _UNET_CHANNELS:
            found |= {"encoder_depth": len(channels), "decoder_channels": list(channels)}
    if any(".attention1.attention.cSE." in key for key in inside):
        found["decoder_attention_type"] = "scse"
    return found


def _encoder(inside: Mapping[str, Shape]) -> str | None:
    places = [(int(met[1]), int(met[2])) for key in inside if (met := _BLOCK.fullmatch(key))]
    counts = tuple(sum(stage == each for each, _ in places) for stage in range(1, 5))
    deep = "encoder.layer1.0.conv3.weight" in inside
    plain = inside.get("encoder.layer1.0.conv2.weight") == (64, 64, 3, 3)  # else it is a ResNeXt, or a wide one
    others = any(part in key for key in inside if key.startswith("encoder.layer") for part in (".se.", ".se_module."))
    return _RESNETS.get((counts, deep)) if plain and not others else None
