"""Whether a network that PyTorch itself serves may be given several rows: its code may decide by their numbers."""

from dataclasses import replace

from flambeau.builder import eager
from flambeau.builder.filled import Tell
from flambeau.builder.probing import Probed
from flambeau.types import Tensors


def settled(probed: Probed, inputs: Tensors, *, tell: Tell) -> Probed:
    """The same, given one row at a time if it decides by numbers that it computed of these."""
    why = None if probed.one_row else eager.decides(probed.filled, inputs)
    if why is None:
        return probed
    tell(f"{probed.filled.name} is given one row at a time, because {why}")
    return replace(probed, one_row=why)
