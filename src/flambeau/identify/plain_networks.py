"""Plain networks over numbers: nothing but linear layers and norms, one after the other.

What its weights do not show is never guessed: a chain with places without weights needs an activation's name.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from flambeau.bundle.storage import Architecture
from flambeau.identify import layers, naming, sketches, unsupported
from flambeau.identify.finding import Fit, Identified
from flambeau.identify.layers import Unclear
from flambeau.identify.naming import Names

NAME = "mlp"


def find(names: Names, args: Mapping[str, Any], *, asked: bool = False) -> Identified | None:
    """The chain that the file is, or why it is not certain; `None` for a file that has other layers than these.

    `asked`: somebody named it so, which tells a linear layer without bias from a table of vectors.
    """
    shapes = {name: shape for name, shape in names.shapes.items() if not naming.serves_training(name)}
    path = naming.common_path(shapes)
    inner = {name: name[len(path) + 1 if path else 0 :] for name in shapes}
    try:
        found = layers.read({short: shapes[name] for name, short in inner.items()})
    except Unclear:
        return None
    if not found or unsupported.tables(names):  # an embedding's table is two-dimensional as well
        return None
    if any("." in layer.name for layer in found):  # a transformer has nothing but such layers, and is no chain of them
        return None
    activation = args.get("activation")
    if activation not in (None, *layers.ACTIVATIONS):
        known = ", ".join(layers.ACTIVATIONS[:-1])
        return Identified(
            None, advice=f"the activation {activation!r} of --arch-args is not known: say {known} or none"
        )
    if unsupported.bare_table(found) and not asked:
        [layer] = found
        told = f"{layer.sizes[1]} x {layer.sizes[0]} numbers without a bias are a linear layer, or a table of vectors"
        remedy = f"say --arch {NAME} if it is a layer ({layers.describe(found)}); else {sketches.AROUND}"
        return Identified(None, advice=f"{told}: {remedy}")
    if any(layer.kind == "layer_norm" for layer in found) and not asked:
        told = "a norm without running statistics may be a LayerNorm, or one over the rows of a batch"
        own = "give your own class with --arch file.py:Class --allow-code"
        advice = f"{told} ({layers.describe(found)}): say --arch {NAME} if it is a LayerNorm, or {own}"
        return Identified(None, advice=advice)
    try:
        chain = layers.chain(found, activation=activation)
    except Unclear as unclear:
        remedy = "give your own class with --arch file.py:Class --allow-code"
        if not unclear.gap:
            told = "these are linear layers and norms over numbers, and how they are joined cannot be told"
            return Identified(None, advice=f"{told} ({unclear}): {remedy}")
        remedy = (
            f"""name the activation with --arch {NAME} --arch-args '{{"activation": "relu"}}' """
            f"({', '.join(layers.ACTIVATIONS[1:])}), or {remedy}"
        )
        return Identified(None, advice=f"this is a plain network over numbers ({unclear}): {remedy}")
    alone = chain.layers[0].name == ""
    built = [msgspec.structs.replace(layer, name=layer.name or "0") for layer in chain.layers]
    fit = Fit(
        architecture=Architecture("flambeau", NAME, {"layers": msgspec.to_builtins(built)}),
        classes=chain.outputs,
        keys={names.keys[name]: f"0.{short}" if alone else short for name, short in inner.items()},
        aside=(*names.aside, *(names.keys[name] for name in names.shapes.keys() - shapes.keys())),
        why=f"nothing but {'a linear layer' if len(found) == 1 else 'layers in a chain'}: {layers.describe(found)}",
        pipeline=None,
    )
    return Identified(fit, notes=(chain.note,) if chain.note else ())
