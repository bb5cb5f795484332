"""Reads a chain of layers from names and shapes: a replaced head, or a plain network over numbers.

Linear layers and norms show in the weights. Activations, dropout and other layers without weights show at most as gaps
between the numbers of an `nn.Sequential`. Whatever is not certain is refused, with what was seen.

Example: `0.weight` [16, 4], `0.bias`, `3.weight` [3, 16] and `3.bias` are a linear layer 4→16, two places without
weights, and a linear layer 16→3. With the activation `relu`, place 1 becomes the ReLU and place 2 does nothing (it was
dropout, say); without its name the chain is unclear.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal, get_args

import msgspec

from flambeau.bundle.storage import Architecture, HeadLayer
from flambeau.identify import naming, unsupported
from flambeau.identify.finding import Fit, Identified
from flambeau.identify.index import COUNTER, HeadBlock, Shape
from flambeau.identify.naming import Names

_SHOWN = 12
LayerActivation = Literal["relu", "gelu", "silu", "tanh", "sigmoid"]
ACTIVATIONS: tuple[str, ...] = (*get_args(LayerActivation), "none")
"""The activations that the user can name for the places without weights between linear layers."""


class Unclear(Exception):
    """The layers are not certain. This is no error; the message is what was seen.

    `gap`: naming an activation would settle it.
    """

    def __init__(self, seen: str, *, gap: bool = False) -> None:
        super().__init__(seen)
        self.gap = gap


class Chain(msgspec.Struct, frozen=True):
    """Layers in order, with `features` going in and `outputs` coming out. `note` says, in words, what was assumed about
    places without weights."""

    layers: tuple[HeadLayer, ...]
    features: int
    outputs: int
    note: str = ""


def is_place(name: str) -> bool:
    """Whether a name is a place in an `nn.Sequential`. None has a thousand layers; a hostile name may be any number."""
    return name.isascii() and name.isdigit() and len(name) <= 3 and (name == "0" or name[0] != "0")


def read(shapes: Mapping[str, Shape]) -> list[HeadLayer]:
    """The layers with weights, in the order of their places. Raises `Unclear` unless all are linear or norms."""
    modules: dict[str, dict[str, Shape]] = {}
    for name, shape in shapes.items():
        path, _, leaf = name.rpartition(".")
        if leaf != COUNTER:
            modules.setdefault(path, {})[leaf] = shape
    found = [_layer(path, tensors) for path, tensors in modules.items()]
    if all(is_place(layer.name) for layer in found):
        found.sort(key=lambda layer: int(layer.name))
    return found


def _layer(path: str, tensors: dict[str, Shape]) -> HeadLayer:
    weight = tensors.get("weight", ())
    names = tensors.keys()
    if len(weight) == 2 and names <= {"weight", "bias"} and tensors.get("bias", weight[:1]) == weight[:1]:
        return HeadLayer(path, "linear", (weight[1], weight[0]), "bias" in tensors)
    if len(weight) == 1 and len(set(tensors.values())) == 1:
        if names == {"weight", "bias", "running_mean", "running_var"}:
            return HeadLayer(path, "batch_norm", weight)
        if names == {"weight", "bias"}:
            return HeadLayer(path, "layer_norm", weight)
    shown = ", ".join(f"{name} {list(shape)}" for name, shape in tensors.items())
    raise Unclear(f"a layer {path} that is neither linear nor a norm ({shown})".replace("  ", " "))


def chain(found: list[HeadLayer], *, activation: str | None, own: HeadBlock | None = None) -> Chain:
    """The whole chain, places without weights included. Raises `Unclear`.

    A place without weights before the first linear layer does nothing outside training (dropout) or to vectors
    (flatten). Adjacent places between two linear layers hold `activation`; if they are separated by a norm, nobody can
    say which one has it. If `own`, the block that the chain replaces, has the same layers around a gap, the gap is
    filled as there: such places are left out of the chain, which by the contract of `Head` keeps the architecture's
    own.
    """
    if not any(layer.kind == "linear" for layer in found):
        raise Unclear("no linear layer")
    if any("." in layer.name for layer in found):
        raise Unclear(f"layers within layers ({', '.join(layer.name for layer in found[:_SHOWN])})")
    if min(size for layer in found for size in layer.sizes) < 1:
        raise Unclear(f"layers of no size ({describe(found)})")
    width = found[0].sizes[0]
    for layer in found:
        if layer.sizes[0] != width:
            raise Unclear(f"{describe(found)}: {layer.name} does not take what comes before it")
        width = layer.sizes[-1]
    numbered = all(is_place(layer.name) for layer in found)
    if not numbered:
        _refuse_unordered(found)
    layers, note = _numbered(found, activation, own) if numbered else (_named(found, activation), "")
    return Chain(tuple(layers), found[0].sizes[0], width, note)


def _named(found: list[HeadLayer], activation: str | None) -> list[HeadLayer]:
    linears = _linears(found)
    layers: list[HeadLayer] = []
    for place, layer in enumerate(found):
        if linears[0] < place <= linears[-1]:
            layers += _activated([f"{layer.name}_before"], found, place, activation)
        layers.append(layer)
    return layers


def _numbered(found: list[HeadLayer], activation: str | None, own: HeadBlock | None) -> tuple[list[HeadLayer], str]:
    linears = _linears(found)
    kept = {layer.name: layer for layer in own.layers if layer.sizes} if own else {}
    gaps = [place for place in range(len(found)) if _gap(found, place)]
    alike = {place for place in gaps if _alike(found, place, list(kept))}
    if activation and alike >= {place for place in gaps if linears[0] < place <= linears[-1]}:
        alike = {place for place in alike if place <= linears[0]}  # otherwise `activation` would have no effect
    notes: list[str] = []
    layers: list[HeadLayer] = []
    for place, layer in enumerate(found):
        inner = linears[0] < place <= linears[-1]
        if place in alike:
            notes += ["activations as in the architecture's own"] if inner else []
        elif place in gaps and inner:
            layers += _activated(_gap(found, place), found, place, activation)
        elif place in gaps:
            layers += [HeadLayer(name, "identity") for name in _gap(found, place)]
            notes.append("what has no weights before its first linear layer is taken for dropout")
        same = kept.get(layer.name)
        if same is None or same.kind == "linear" or same.sizes != layer.sizes:
            layers.append(layer)
            if layer.kind == "layer_norm":
                notes.append("a norm without running statistics is taken for a LayerNorm")
    return layers, " and ".join(dict.fromkeys(notes))


def _linears(found: list[HeadLayer]) -> list[int]:
    return [place for place, layer in enumerate(found) if layer.kind == "linear"]


def _alike(found: list[HeadLayer], place: int, own: list[str]) -> bool:
    """Whether the architecture's own block has the same gap before a place, between the same layers."""
    name = found[place].name
    if name not in own:
        return False
    before = own[own.index(name) - 1] if own.index(name) else None
    return before == (found[place - 1].name if place else None)


def _gap(found: list[HeadLayer], place: int) -> list[str]:
    """The places without weights before a layer of a numbered chain."""
    before = int(found[place - 1].name) if place else -1
    return [str(number) for number in range(before + 1, int(found[place].name))]


def _activated(names: list[str], found: list[HeadLayer], place: int, activation: str | None) -> list[HeadLayer]:
    if activation == "none":
        return [HeadLayer(name, "identity") for name in names]
    if _gaps_between_linears(found, place) > 1:
        raise Unclear(f"{describe(found)}: the weights do not show which of these has the activation")
    if activation is None:
        raise Unclear(describe(found), gap=True)
    # Dropout beside the activation does nothing, so any of the places will do: take the first.
    return [HeadLayer(names[0], activation), *(HeadLayer(name, "identity") for name in names[1:])]  # type: ignore[arg-type]


def _gaps_between_linears(found: list[HeadLayer], place: int) -> int:
    """The number of separate gaps between the two linear layers around a place."""
    first = max(index for index in range(place) if found[index].kind == "linear")
    last = min(index for index in range(place, len(found)) if found[index].kind == "linear")
    if not is_place(found[place].name):
        return last - first
    return sum(bool(_gap(found, index)) for index in range(first + 1, last + 1))


def _refuse_unordered(found: list[HeadLayer]) -> None:
    """Raise `Unclear` if named layers may be in the wrong order. Names have no order of their own, and some files sort
    them: two layers of the same shape could stand either way round.
    """
    sizes = [layer.sizes for layer in found if layer.kind == "linear"]
    names = [layer.name for layer in found]
    if len(set(sizes)) < len(sizes) and names != sorted(names, key=_natural):
        raise Unclear(f"{describe(found)}: the weights do not show their order")


def _natural(name: str) -> str:
    """A sort key that puts `fc10` after `fc2`."""
    return re.sub(r"\d+", lambda digits: digits[0].zfill(9), name)


def describe(found: list[HeadLayer]) -> str:
    """The layers in words: `4→16, something without weights, 16→3`."""
    words = []
    for place, layer in enumerate(found):
        if is_place(layer.name) and _gap(found, place) and place:
            words.append("something without weights")
        elif not is_place(layer.name) and place:
            words.append("perhaps something without weights")
        words.append("→".join(map(str, layer.sizes)) if layer.kind == "linear" else f"{layer.kind} of {layer.sizes[0]}")
    return ", ".join(words if len(words) <= _SHOWN else [*words[:_SHOWN], "…"])


# Plain networks over numbers: nothing but linear layers and norms, one after the other. An activation is never guessed:
# a chain with places without weights needs its name.


PLAIN_NETWORK = "mlp"

_END = (
    "the numbers of its last layer are the answer: a sigmoid, a softmax or a scale after that, or a sum past a layer "
    "(a residual), would leave no trace in the file; if it has one, give your own class with --arch file.py:Class "
    "--allow-code"
)


def find_plain(names: Names, args: Mapping[str, Any], *, asked: bool = False) -> Identified | None:
    """The file as a plain network, or the reason why that is not certain; `None` if it has other layers.

    `asked`: the user named it with `--arch`, which distinguishes a linear layer without bias from a table of vectors.
    """
    shapes = {name: shape for name, shape in names.shapes.items() if not naming.serves_training(name)}
    path = naming.common_path(shapes)
    inner = {name: name[len(path) + 1 if path else 0 :] for name in shapes}
    try:
        found = read({short: shapes[name] for name, short in inner.items()})
    except Unclear:
        return None
    if not found or unsupported.tables(names):  # an embedding's table is two-dimensional as well
        return None
    if any("." in layer.name for layer in found):  # a transformer has only such layers, but is no chain
        return None
    activation = args.get("activation")
    if activation not in (None, *ACTIVATIONS):
        known = ", ".join(ACTIVATIONS[:-1])
        return Identified(
            None, advice=f"the activation {activation!r} of --arch-args is not known: say {known} or none"
        )
    if unsupported.bare_table(found) and not asked:
        [layer] = found
        told = f"{layer.sizes[1]} x {layer.sizes[0]} numbers without a bias are a linear layer, or a table of vectors"
        remedy = f"say --arch {PLAIN_NETWORK} if it is a layer ({describe(found)}); else {unsupported.AROUND}"
        return Identified(None, advice=f"{told}: {remedy}")
    if any(layer.kind == "layer_norm" for layer in found) and not asked:
        told = "a norm without running statistics may be a LayerNorm, or one over the rows of a batch"
        own = "give your own class with --arch file.py:Class --allow-code"
        advice = f"{told} ({describe(found)}): say --arch {PLAIN_NETWORK} if it is a LayerNorm, or {own}"
        return Identified(None, advice=advice)
    try:
        found_chain = chain(found, activation=activation)
    except Unclear as unclear:
        remedy = "give your own class with --arch file.py:Class --allow-code"
        if not unclear.gap:
            told = "these are linear layers and norms over numbers, and the weights do not show how they are joined"
            return Identified(None, advice=f"{told} ({unclear}): {remedy}")
        remedy = (
            f"""name the activation with --arch {PLAIN_NETWORK} --arch-args '{{"activation": "relu"}}' """
            f"({', '.join(ACTIVATIONS[1:])}), or {remedy}"
        )
        return Identified(None, advice=f"this is a plain network over numbers ({unclear}): {remedy}")
    alone = found_chain.layers[0].name == ""
    built = [msgspec.structs.replace(layer, name=layer.name or "0") for layer in found_chain.layers]
    fit = Fit(
        architecture=Architecture("flambeau", PLAIN_NETWORK, {"layers": msgspec.to_builtins(built)}),
        classes=found_chain.outputs,
        keys={names.keys[name]: f"0.{short}" if alone else short for name, short in inner.items()},
        aside=(*names.aside, *(names.keys[name] for name in names.shapes.keys() - shapes.keys())),
        why=f"nothing but {'a linear layer' if len(found) == 1 else 'layers in a chain'}: {describe(found)}",
        pipeline=None,
    )
    return Identified(fit, notes=(*((found_chain.note,) if found_chain.note else ()), _END))
