"""Import torch and print what it sees: `python -m flambeau.doctor.torch_child`. Nobody imports this module."""

import contextlib
import sys

import msgspec

from flambeau.doctor.devices import TorchDevices


def main() -> None:
    """Print a `TorchDevices`."""
    with contextlib.redirect_stdout(sys.stderr):
        import torch

        cuda = torch.cuda.is_available()
        seen = TorchDevices(
            version=str(torch.__version__),
            made_for=torch.version.cuda or torch.version.hip,
            gpus=[torch.cuda.get_device_name(each) for each in range(torch.cuda.device_count())] if cuda else [],
            mps=torch.backends.mps.is_available(),
        )
        if cuda:  # seeing is not computing: a driver may be too old for what it is asked
            torch.ones(8, device="cuda").sum().item()
    print(msgspec.json.encode(seen).decode())


if __name__ == "__main__":
    main()
