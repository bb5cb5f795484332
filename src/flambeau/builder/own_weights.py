"""The weights of a user's own class, in a file as a training tool saved it.

Example: a LightningModule that has the network as `self.net` saves `net.fc.weight`, and beside it what a loss or a
metric keeps. They are the weights of `Net` if the names below `net.` are exactly those of `Net`. What lies beside
is left out only where its name says that it is for training; anything else may belong to the computation.
"""

from collections.abc import Collection, Mapping

import torch
from torch import nn

from flambeau.builder import parts
from flambeau.builder.filled import Tell
from flambeau.errors import SourceError
from flambeau.identify import match, naming, nearest
from flambeau.identify.index import COUNTER
from flambeau.settings.source import SourceOptions

_SHOWN = 3
_NORMALISES = {"mean", "std"}


def of_class(
    tensors: Mapping[str, torch.Tensor], network: nn.Module, options: SourceOptions, *, name: str, tell: Tell
) -> dict[str, torch.Tensor]:
    """The tensors under the names that the class gives them; as near as they come, if they are of another class.

    Raises `SourceError` if tensors lie beside them whose use is not known.
    """
    own = network.state_dict().keys()
    plain = parts.multiplied_out(tensors, unless=own)
    if _fits(plain, own):
        return plain
    names = naming.unwrap({key: tuple(tensor.shape) for key, tensor in tensors.items()})
    below = {}
    for prefix in names.prefixes:
        inside = {key: tensors[names.keys[prefix + key]] for key in names.within(prefix)}
        below[prefix] = parts.multiplied_out(inside, unless=own)
    fitting = [prefix for prefix, found in below.items() if _fits(_trained(found, own), own)]
    if not fitting:
        return max([plain, *below.values()], key=lambda found: len(own & found.keys()))
    prefix = max(fitting, key=naming.is_averaged)
    aside, more = match.beside(names, prefix, names.within(prefix))
    left = [key for key in more if not key.endswith(COUNTER)]
    if left and not _said(left, options):
        shown = ", ".join([names.keys[key] for key in left][:_SHOWN]) + (", …" if len(left) > _SHOWN else "")
        normalises = "; of images, --mean and --std say it too" if _are_of_normalising(left) else ""
        raise SourceError(
            f"{name} fits the weights below '{prefix}', but beside them the file has {len(left)} more ({shown}), and "
            f"they may belong to what was trained: save the network alone, as torch.save(module.{prefix}state_dict(), "
            f"'weights.pth'), or give a class that has them{normalises}"
        )
    if left:
        beside = " and ".join(names.keys[key] for key in left)
        tell(f"{beside} are left out: --mean and --std say how images are normalised")
    for note in nearest.averaged(prefix):
        tell(note)
    taken = _trained(below[prefix], own)
    if unused := [*aside, *(prefix + key for key in below[prefix].keys() - taken.keys())]:
        tell(f"set aside, because training alone needs them: {', '.join(sorted(unused)[:_SHOWN])}")
    return taken


def _fits(found: Collection[str], own: Collection[str]) -> bool:
    """Whether these are the names of the class; only training needs the counters of norms."""
    counters = {key for key in {*found, *own} if key.endswith(COUNTER)}
    return {*found} - counters == {*own} - counters


def _trained(found: Mapping[str, torch.Tensor], own: Collection[str]) -> dict[str, torch.Tensor]:
    """Without what is not the class's and is for training by its name."""
    return {key: tensor for key, tensor in found.items() if key in own or not naming.serves_training(key)}


def _are_of_normalising(left: Collection[str]) -> bool:
    return {key.rpartition(".")[2] for key in left} == _NORMALISES


def _said(left: Collection[str], options: SourceOptions) -> bool:
    """Whether what is left normalises, and the user has said how images are normalised."""
    return _are_of_normalising(left) and options.mean is not None and options.std is not None
