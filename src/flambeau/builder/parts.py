"""Weights that are kept in parts, multiplied out as the layers that keep them do it in evaluation mode.

What the parts are is told by `flambeau.identify.naming`; here are the formulas of `torch.nn.utils`.
"""

from collections.abc import Collection, Mapping

import torch

from flambeau.identify import naming
from flambeau.identify.naming import Made


def multiplied_out(tensors: Mapping[str, torch.Tensor], *, unless: Collection[str] = ()) -> dict[str, torch.Tensor]:
    """The tensors with each weight in the place of its parts.

    Parts whose keys are all in `unless` stay: the network that is to be filled keeps them in parts itself.
    """
    _, made = naming.fold_parts({key: tuple(tensor.shape) for key, tensor in tensors.items()})
    made = {key: each for key, each in made.items() if not set(each.parts) <= set(unless)}
    gone = {part for each in made.values() for part in each.parts}
    kept = {key: tensor for key, tensor in tensors.items() if key not in gone}
    return kept | {key: weight(each, tensors) for key, each in made.items()}


def weight(made: Made, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """One weight out of its parts, as the layer itself computes it."""
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
