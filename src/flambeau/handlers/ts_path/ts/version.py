"""The version of TorchServe whose names are here."""

__version__ = "0.12.0"
