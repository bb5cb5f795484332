"""timm's `config.json` beside weights: which of timm's networks they belong to, how its images are prepared, and what
its classes are called.

`timm.models.push_to_hf_hub` and `save_for_hf` write it, and every repository of timm on the hub has one. It is read as
data, and only by the rules by which timm reads it; what becomes of it is the affair of `flambeau.identify`. Any other
program's `config.json` is left alone.
"""

from pathlib import Path
from typing import Annotated, Any

import msgspec

from flambeau.checkpoints import neighbours
from flambeau.checkpoints.report import plain
from flambeau.errors import SourceError

NAME = "config.json"

_MOST_BYTES = 8 * 2**20  # the names and descriptions of 22,000 classes take two
_MARK = b'"pretrained_cfg"'
_Word = Annotated[str, msgspec.Meta(max_length=40)]
_Side = Annotated[int, msgspec.Meta(ge=1, le=16_384)]
_LabelNames = list[str] | dict[str, str]


class _Preparation(msgspec.Struct):
    """`pretrained_cfg`. A member that is missing, null or empty has timm's own value, as in `resolve_data_config`."""

    input_size: tuple[Annotated[int, msgspec.Meta(ge=1, le=1024)], _Side, _Side] | None = None
    fixed_input_size: bool | None = None
    interpolation: _Word | None = None
    crop_pct: Annotated[float, msgspec.Meta(ge=0.01, le=100)] | None = None
    crop_mode: _Word | None = None
    mean: list[float] | None = None
    std: list[Annotated[float, msgspec.Meta(gt=0)]] | None = None
    num_classes: int | None = None
    label_names: _LabelNames | None = None
    labels: _LabelNames | None = None


class _Contents(msgspec.Struct):
    architecture: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    pretrained_cfg: _Preparation
    num_classes: int | None = None
    global_pool: str | None = None
    model_args: dict[str, Any] | None = None
    label_names: _LabelNames | None = None
    labels: _LabelNames | None = None


class TimmConfig(msgspec.Struct, frozen=True):
    """What a `config.json` of timm's says.

    `input_size`: channels, height and width. `fixed`: the network takes no other size. `classes`: how many it has, 0
    for a network without a head. `args`: what its constructor is given. `labels`: the names of the classes, in the
    order of the outputs; `unnamed` says why there are none although the file names some.
    """

    architecture: str
    input_size: tuple[int, int, int] = (3, 224, 224)
    fixed: bool = False
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    crop_mode: str = "center"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    classes: int | None = None
    args: dict[str, Any] = {}
    labels: tuple[str, ...] | None = None
    unnamed: str = ""


def beside(weights: Path) -> Path | None:
    """The `config.json` of timm's that belongs to a file of weights. Raises `SourceError` for a damaged one.

    It belongs to the file that timm would take in its folder: one that is called as timm calls it, else the only file
    of weights there.
    """
    file = weights.parent.absolute() / NAME  # not where a link leads: the hub's own folder of a model has links only
    return file if file.is_file() and neighbours.belong(weights) and _opened(file) is not None else None


def passed_over(weights: Path, *, own: bool = False) -> str:
    """Why timm's `config.json` in the folder is not read for these weights, as a sentence; empty if none lies there.

    `own`: the network is the user's own.
    """
    file = weights.parent / NAME
    if not file.is_file() or (neighbours.belong(weights) and not own):
        return ""
    try:
        if _opened(file) is None:
            return ""
    except SourceError:
        pass
    unread = f"{NAME} in the folder, as timm writes it, is not read"
    if own:
        return f"{unread} for a network of your own: if it holds for that, say --mean, --std, --resize and --crop"
    return (
        f"{unread}: it is taken for that of {neighbours.FIRST[0]} or {neighbours.FIRST[1]}, or of weights that "
        f"lie there alone; if {weights.name} belongs to it, put both into a folder of their own"
    )


def read(file: Path) -> TimmConfig:
    """What timm's `config.json` says. Raises `SourceError`."""
    found = _opened(file)
    if found is None:
        raise SourceError(f"{file} is no longer a configuration of timm's: start again when it is whole")
    said = found.pretrained_cfg
    usual = TimmConfig(found.architecture)
    counts = [count for count in (found.num_classes, said.num_classes) if count is not None]
    names = found.label_names or found.labels or said.label_names or said.labels
    labels, unnamed = _labels(names)
    channels, height, width = said.input_size or usual.input_size
    args = {key: value for key, value in (found.model_args or {}).items() if value is not None}
    if found.global_pool:
        args.setdefault("global_pool", found.global_pool)
    if type(args.get("in_chans")) is int:
        channels = args["in_chans"]
    return TimmConfig(
        architecture=plain(found.architecture.partition(".")[0]),  # a name may end in that of a training
        input_size=(channels, height, width),
        fixed=bool(said.fixed_input_size),
        interpolation=said.interpolation or usual.interpolation,
        crop_pct=said.crop_pct or usual.crop_pct,
        crop_mode=said.crop_mode or usual.crop_mode,
        mean=tuple(said.mean or usual.mean),
        std=tuple(said.std or usual.std),
        classes=counts[0] if counts else None,
        args=args,
        labels=labels,
        unnamed=unnamed,
    )


def _opened(file: Path) -> _Contents | None:
    """The file's contents; `None` if there is none, or it is another program's. Raises `SourceError`."""
    try:
        with file.open("rb") as opened:
            data = opened.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _damaged(file, error.strerror or "unreadable") from None
    if len(data) > _MOST_BYTES:
        if _MARK not in data:
            return None
        raise _damaged(file, f"it has more than {_MOST_BYTES:,} bytes")
    try:
        table = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        if _MARK not in data:
            return None
        raise _damaged(file, str(error)) from None
    if not isinstance(table, dict):
        return None
    if "pretrained_cfg" not in table:
        if not {"architecture", "input_size"} <= table.keys():
            return None
        table = {**table, "pretrained_cfg": table}  # as timm wrote it before there was pretrained_cfg
    try:
        return msgspec.convert(table, _Contents)
    except msgspec.ValidationError as error:
        raise _damaged(file, str(error)) from None


def _damaged(file: Path, why: str) -> SourceError:
    return SourceError(
        f"{file}, which says how timm made these weights, cannot be read ({plain(why)}): correct it, or remove it"
    )


def _labels(names: _LabelNames | None) -> tuple[tuple[str, ...] | None, str]:
    """The names of the classes in order, and why there are none although some are given."""
    if not names:
        return None, ""
    if isinstance(names, list):
        return tuple(names), ""
    ordered = [names.get(str(index)) for index in range(len(names))]
    if any(name is None for name in ordered):
        return None, f"its label_names have no name for class {ordered.index(None)}"
    return tuple(name for name in ordered if name is not None), ""
