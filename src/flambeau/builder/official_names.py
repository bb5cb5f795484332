"""The hash in the name of a file of official weights, and whether it is the file's own."""

import re
from pathlib import Path

from flambeau.builder.filled import Tell

_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8})\.\w+$")  # resnet18-f37072fd.pth: how torchvision names its files


def official_weights(name: str, file: str, sha256: str, *, tell: Tell) -> str:
    """The name of the official weights of a detector or segmenter that have this hash, by torchvision's own list; empty
    if they are others. Tells the user when the file is named like official ones and holds others."""
    from torchvision import models

    compare_name(file, sha256, tell=tell)
    for entry in models.get_model_weights(name):
        digits = entry.url.rpartition("-")[2].partition(".")[0]
        if len(digits) >= 8 and sha256.startswith(digits):
            return str(entry)
    return ""


def compare_name(file: str, sha256: str, *, tell: Tell) -> None:
    """Tell the user when a file is named like official weights but holds something else."""
    named = _HASH_IN_NAME.search(file)
    if named and not sha256.startswith(named[1]):
        tell(
            f"the name of {Path(file).name} promises contents whose sha256 begins with {named[1]}, but it begins with "
            f"{sha256[:8]}: these are not the official weights, or they were damaged on the way"
        )
