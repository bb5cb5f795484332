"""Reads what the constructors of segmentation_models_pytorch need from the shapes of their decoders.

Only what changes a shape can be read: widths, depth, the kind of norm and attention. Dilation, the rates of an ASPP and
what stands behind the head have no weights. It knows no file and no other library.
"""

from collections.abc import Mapping
from typing import Any, Final

from flambeau.identify.index import Shape

DECODERS: Final = {
    "MAnet": "decoder.blocks.0.hl_conv.0.0.weight",
    "Unet": "decoder.blocks.0.conv1.0.weight",
    "UnetPlusPlus": "decoder.blocks.x_0_0.conv1.0.weight",
    "FPN": "decoder.p5.weight",
    "DeepLabV3Plus": "decoder.aspp.0.convs.0.0.weight",
    "Linknet": "decoder.blocks.0.block.0.0.weight",
    "PSPNet": "decoder.psp.blocks.0.pool.1.0.weight",
}
"""A tensor that only the decoder of this network has; a MAnet has Unet's as well, so it comes first."""

OF_ONE_STAGE: Final = ("FPN", "DeepLabV3Plus", "PSPNet")
"""Those whose shapes show the depth of their encoder by the channels of its last stage alone."""

HEAD: Final = "segmentation_head.0.weight"

_CHANNELS = (256, 128, 64, 32, 16)  # of the decoders whose blocks have widths of their own
_WIDEST = 5  # blocks
_STAGES = (64, 64, 128, 256, 512)  # what a ResNet's stages give; one of three convolutions gives four times as many
_NORMED = {"Unet": "conv1", "UnetPlusPlus": "conv1", "MAnet": "conv1", "Linknet": "block.0", "PSPNet": "decoder.conv"}


def arguments(name: str, inside: Mapping[str, Shape]) -> dict[str, Any]:
    """The arguments of this network's decoder that differ from the library's defaults.

    `encoder_depth` is `None` if the shapes allow several.
    """
    found: dict[str, Any] = {}
    if name in ("Unet", "UnetPlusPlus", "MAnet"):
        place = "x_0_{}" if name == "UnetPlusPlus" else "{}"
        blocks = (f"decoder.blocks.{place.format(each)}.conv2.0.weight" for each in range(_WIDEST))
        channels = tuple(inside[key][0] for key in blocks if key in inside)
        if channels != _CHANNELS:
            found |= {"encoder_depth": len(channels), "decoder_channels": list(channels)}
    elif name == "Linknet":
        depth = sum(f"decoder.blocks.{each}.block.0.0.weight" in inside for each in range(_WIDEST))
        found |= {"encoder_depth": depth} if depth != _WIDEST else {}
    else:
        found |= _of_one_stage(name, inside)
    if name == "MAnet":
        found |= _unless("decoder_pab_channels", 64, inside.get("decoder.center.top_conv.weight", (64,))[0])
    if name == "FPN":
        pyramid = inside[DECODERS[name]][0]
        last = inside.get("decoder.seg_blocks.0.block.0.block.0.weight", (128,))[0]
        found |= _unless("decoder_pyramid_channels", 256, pyramid) | _unless("decoder_segmentation_channels", 128, last)
        found |= _unless("decoder_merge_policy", "add", "cat" if inside[HEAD][1] == 4 * last else "add")
    if name == "DeepLabV3Plus":
        found |= _unless("decoder_channels", 256, inside[DECODERS[name]][0])
        found |= _unless("decoder_aspp_separable", True, "decoder.aspp.0.convs.1.0.0.weight" in inside)
    if name == "PSPNet":
        found |= _unless("psp_out_channels", 512, inside.get("decoder.conv.0.weight", (512,))[0])
    if any(".attention1.attention.cSE." in key for key in inside):
        found["decoder_attention_type"] = "scse"
    return found | _unless("decoder_use_norm", "batchnorm", _norm(name, inside))


def _unless(argument: str, usual: Any, found: Any) -> dict[str, Any]:
    return {} if found == usual else {argument: found}


def _of_one_stage(name: str, inside: Mapping[str, Shape]) -> dict[str, Any]:
    """The depth of a ResNet whose last stage the decoder takes, by the number of its channels.

    Of other encoders nothing is known: three stages of a VGG have 512.
    """
    if "encoder.layer1.0.conv1.weight" not in inside:
        return {}
    deep = 4 if "encoder.layer1.0.conv3.weight" in inside else 1
    given = (_STAGES[0], *(deep * width for width in _STAGES[1:]))
    taken = inside[DECODERS[name]]
    depths = [depth for depth, width in enumerate(given, start=1) if len(taken) > 1 and taken[1] == width]
    usual = 3 if name == "PSPNet" else 5
    if not depths or depths == [usual]:
        return {}
    return {"encoder_depth": depths[0] if len(depths) == 1 else None}


def _norm(name: str, inside: Mapping[str, Shape]) -> str | dict[str, Any]:
    """The kind of norm behind its convolutions: without one they have a bias, and an instance norm keeps no mean."""
    place = _NORMED.get(name)
    first = next((key for key in inside if place and key.endswith(f"{place}.0.weight")), None)
    if first is None:
        return "batchnorm"
    path = first.removesuffix(".0.weight")
    if f"{path}.0.bias" in inside:
        return "identity"
    kept = f"{path}.1.running_mean" in inside or f"{path}.1.weight" not in inside
    return "batchnorm" if kept else {"type": "instancenorm", "affine": True}
