"""A weights file to tensors: opened by whoever is safe to open it.

What `torch.save` wrote is read by the throw-away process of `flambeau.builder.sandbox.reader`, and comes back as
safetensors; safetensors are data, and are mapped as they are. Either way the tensors lie in a mapped file: they take
memory only where they are used. It knows no architecture.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flambeau import checkpoints
from flambeau.builder.sandbox import reader
from flambeau.bundle import storage
from flambeau.checkpoints.report import Report, TensorMapping
from flambeau.errors import SourceError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Weights:
    """The tensors of a file by its own keys, on the CPU, and what else the file said.

    `note` tells which of several sets of weights was taken, `sandbox` what the file was read in. `classes` are the
    names that lay beside them, if any.
    """

    tensors: "dict[str, torch.Tensor]"
    entry: TensorMapping
    sha256: str
    note: str | None = None
    sandbox: str | None = None
    classes: tuple[str, ...] | None = None


class Opening:
    """A weights file that is being read: by another process where that is needed, so that this one can go on."""

    def __init__(self, file: Path, folder: Path, *, weights_key: str | None) -> None:
        """`folder` is where what is read may be kept for as long as it is used. Raises `SourceError`."""
        self.name = file.name
        self._file = file
        report = _examined(file)
        self._report = report
        self._entry, self._note = checkpoints.choose(report, weights_key)
        torch_wrote_it = report.format != "safetensors"
        self._reading = reader.start(file, folder=folder, where=self._entry.where) if torch_wrote_it else None

    def result(self, *, progress: Callable[[int, int], None]) -> Weights:
        """Wait for the tensors. `progress` is told (bytes read, bytes in all). Raises `SourceError`."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        file = self._reading.result(progress=progress) if self._reading else self._file
        try:
            tensors = load_file(file)
        except (SafetensorError, OSError) as error:
            raise SourceError(f"{self._file.name} cannot be read: {error}: fetch or save it again") from error
        if self._reading:
            file.unlink()  # the mapping outlives the name, and nothing is left behind whatever happens next
        return Weights(
            tensors=tensors,
            entry=self._entry,
            sha256=storage.sha256_of(self._file),
            note=self._note,
            sandbox=f"read in a sandbox: {self._reading.sandbox}" if self._reading else None,
            classes=self._report.classes,
        )

    def close(self) -> None:
        """End the other process, if it still runs."""
        if self._reading:
            self._reading.close()


def _examined(file: Path) -> Report:
    """Once more after the front did: the file may have been exchanged in between."""
    report = checkpoints.examine(file)
    if report.verdict != "data":
        raise SourceError(f"{file.name} {report.reason}: {report.remedy}")
    return report
