"""Networks of a user's own over numbers: their files, and what their bundles answer."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

import flambeau
from flambeau.bundle.storage import Bundle
from tests.networks import number_nets

NETWORKS = Path(number_nets.__file__)


def saved(
    folder: Path, name: str, state: dict[str, Any] | None = None, code: str = ""
) -> tuple[nn.Module, dict[str, Any]]:
    """The network of that name with random weights, and the source with the options that name it.

    `code` is added to that of the networks. `state` is saved in the place of the weights.
    """
    file = folder / "net.py"
    file.write_text(NETWORKS.read_text() + code)
    torch.manual_seed(1)
    network = getattr(number_nets, name)().eval() if hasattr(number_nets, name) else nn.Identity()
    torch.save(network.state_dict() if state is None else state, folder / "saved.pth")
    return network, {"source": folder / "saved.pth", "arch": f"{file}:{name}", "allow_code": True}


def answers(made: Bundle, item: Any) -> Any:
    with flambeau.load(made.path, allow_code=True) as model:
        return model.predict(item)
