"""Which file of weights in a folder a `config.json` there is about."""

from itertools import islice
from pathlib import Path

FIRST = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")
_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".tar")
"""What timm looks for in a folder: a file of one of these names, else one with such an ending. transformers looks for
the first two."""

_MOST_FILES = 10_000


def belong(weights: Path) -> bool:
    """Whether the library that wrote a `config.json` would take this file in its folder."""
    if weights.name in FIRST:
        return True
    entries = list(islice(weights.parent.iterdir(), _MOST_FILES))
    others = (entry for entry in entries if entry.suffix.lower() in _SUFFIXES and entry.name != weights.name)
    return len(entries) < _MOST_FILES and not any(entry.is_file() for entry in others)
