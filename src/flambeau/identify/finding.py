"""What was found out about the network that weights belong to: values only, without behaviour."""

import msgspec

from flambeau.bundle.storage import Architecture, ImageConfig
from flambeau.identify.unsupported import Known


class Fit(msgspec.Struct, frozen=True):
    """A network that the weights fill completely.

    `architecture` has everything its constructor needs, the number of classes and a replaced head included. `keys` maps
    each used key of the file to the network's own; `aside` names the file's keys that serve training only.
    `same_weights` are other architectures that these weights fill as well, and `why` says in one sentence why this one
    was taken.
    `pipeline` is `None` for a network over numbers. `features`: it has no head, and `classes` counts its features.
    """

    architecture: Architecture
    classes: int
    keys: dict[str, str]
    aside: tuple[str, ...] = ()
    same_weights: tuple[str, ...] = ()
    why: str = ""
    pipeline: ImageConfig | None = ImageConfig()
    features: bool = False


class Near(msgspec.Struct, frozen=True):
    """A network that the weights nearly fill, with what differs. `misshaped` holds (key, file's shape, network's)."""

    name: str
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]


class Identified(msgspec.Struct, frozen=True):
    """The fit, or the nearest misses with a sentence that says what to try. `notes` are worth telling in any case.

    `known` is a network of torchvision's that has no task here yet.
    """

    fit: Fit | None
    near: tuple[Near, ...] = ()
    advice: str = ""
    notes: tuple[str, ...] = ()
    known: Known | None = None


class Published(msgspec.Struct, frozen=True):
    """Official weights: the architecture they belong to, their name, and the transform of their recipe."""

    architecture: str
    name: str
    pipeline: ImageConfig
