"""Read the tensors of a weights file safely.

A file that `torch.save` wrote is read by the throw-away process of `flambeau.builder.sandbox.reader`, and comes back as
safetensors. A safetensors file is plain data and is mapped directly. Either way the tensors lie in a mapped file, and
take memory only where they are used. Knows no architecture.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flambeau import checkpoints
from flambeau.builder.sandbox import reader
from flambeau.bundle import storage
from flambeau.checkpoints import prepared
from flambeau.checkpoints.report import Report, TensorMapping
from flambeau.errors import SourceError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Weights:
    """The tensors of a file by its own keys, on the CPU, and what else the file contained.

    `note` says which of several sets of weights was chosen, `sandbox` which sandbox the file was read in. `classes` are
    the class names stored beside the weights, if any, and `stated` the arguments that the file says its network was
    made with, by the key under which it has them. `prepares` are constants beside the weights by which inputs were
    prepared.
    """

    tensors: "dict[str, torch.Tensor]"
    entry: TensorMapping
    sha256: str
    note: str | None = None
    sandbox: str | None = None
    classes: tuple[str, ...] | None = None
    stated: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    prepares: Mapping[str, tuple[float, ...] | None] = field(default_factory=dict)


class Opening:
    """A weights file being read: in another process where necessary, while this one goes on."""

    def __init__(self, file: Path, folder: Path, *, weights_key: str | None) -> None:
        """`folder` may hold the converted file until `result` has mapped it. Raises `SourceError`."""
        self.name = file.name
        self._file = file
        report = _examined(file)
        self._report = report
        self._entry, self._note = checkpoints.choose(report, weights_key)
        torch_wrote_it = report.format != "safetensors"
        self._reading = reader.start(file, folder=folder, where=self._entry.where) if torch_wrote_it else None

    def result(self, *, progress: Callable[[int, int], None]) -> Weights:
        """Wait for the tensors. `progress` is called with (bytes read, bytes in total). Raises `SourceError`."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        file = self._reading.result(progress=progress) if self._reading else self._file
        try:
            tensors = load_file(file)
        except (SafetensorError, OSError) as error:
            raise SourceError(f"{self._file.name} cannot be read: {error}: fetch or save it again") from error
        if self._reading:
            file.unlink()  # the mapping outlives the name, and nothing is left behind if the build fails later
        return Weights(
            tensors=tensors,
            entry=self._entry,
            sha256=storage.sha256_of(self._file),
            note=self._note,
            sandbox=f"read in a sandbox: {self._reading.sandbox}" if self._reading else None,
            classes=self._report.classes,
            stated=self._report.stated,
            prepares=prepared.beside(self._report.prepares, self._entry.where),
        )

    def close(self) -> None:
        """End the other process, if it still runs."""
        if self._reading:
            self._reading.close()


def _examined(file: Path) -> Report:
    """The report on the file. The front examined it too, but the file may have been replaced since."""
    report = checkpoints.examine(file)
    if report.verdict != "data":
        raise SourceError(f"{file.name} {report.reason}: {report.remedy}")
    return report
