"""Parametrised weights (weight norm, spectral norm, pruning), multiplied out as their layers do in evaluation mode.

`flambeau.identify.naming` finds the parts; the formulas here are those of `torch.nn.utils`.
"""

from collections.abc import Collection, Mapping

import torch

from flambeau.identify import naming
from flambeau.identify.naming import Made


def multiplied_out(tensors: Mapping[str, torch.Tensor], *, unless: Collection[str] = ()) -> dict[str, torch.Tensor]:
    """The tensors, with each weight in place of its parts.

    Parts whose keys are all in `unless` stay as they are: the network to be filled has the same parts.
    """
    _, made = naming.fold_parts({key: tuple(tensor.shape) for key, tensor in tensors.items()})
    made = {key: each for key, each in made.items() if not set(each.parts) <= set(unless)}
    gone = {part for each in made.values() for part in each.parts}
    kept = {key: tensor for key, tensor in tensors.items() if key not in gone}
    return kept | {key: weight(each, tensors) for key, each in made.items()}


def weight(made: Made, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """One weight from its parts, as the layer itself computes it."""
    parts = [tensors[part] for part in made.parts]
    if parts[0].dtype in (torch.float16, torch.bfloat16):
        parts = [part.float() for part in parts]
    if made.how == "pruned":
        whole, mask = parts
        return whole * mask.to(whole.dtype)
    if made.how == "weight_norm":
        length, direction = parts
        return torch._weight_norm(direction, length, -1 if made.axis is None else made.axis)
    whole, left, right = parts
    matrix = whole.movedim(made.axis or 0, 0).flatten(1)
    return whole / torch.dot(left, torch.mv(matrix, right))
