"""A model store of TorchServe's, with an archive for each style of handler."""

import io
from pathlib import Path
from typing import Any

import torch

from tests.support import archives
from tests.support.archives import write_mar, write_tar

_CONFIG = "batchSize: 4\nmaxBatchDelay: 300\nminWorkers: 1\nmaxWorkers: 1\nresponseTimeout: 30\nhandler:\n  scale: 2\n"


def custom_network() -> torch.nn.Module:
    """The network of the archives' own class; its weights are always the same."""
    names: dict[str, Any] = {}
    exec(archives.NETWORK, names)
    torch.manual_seed(3)
    return names["Net"]().eval()


def _weights(network: torch.nn.Module) -> bytes:
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    return file.getvalue()


def write_store(folder: Path, network: torch.nn.Module) -> Path:
    """A model store with an archive for each style of handler."""
    rows = {"handler": "rows.py", "modelFile": "net.py", "serializedFile": "w.pth", "configFile": "c.yaml"}
    write_mar(folder / "rows.mar", {"modelName": "rows", "modelVersion": "2.0", **rows}, {
        "rows.py": archives.SUBCLASS, "net.py": archives.NETWORK, "w.pth": _weights(network), "c.yaml": _CONFIG,
        "shared/words.py": 'WORDS = ["hello"]\n', "settings.json": '{"a": 1}',
        "index_to_name.json": '{"0": ["n01", "cat"]}',
    })  # fmt: skip
    write_mar(folder / "functions.mar", {"modelName": "functions", "handler": "functions.py:handle"},
              {"functions.py": archives.FUNCTIONS})  # fmt: skip
    write_mar(folder / "plain.mar", {"modelName": "plain", "handler": "plain.py"}, {"plain.py": archives.PLAIN_CLASS})
    write_mar(folder / "enveloped.mar", {"modelName": "enveloped", "handler": "rows.py", "envelope": "json"},
              {"rows.py": archives.ROWS})  # fmt: skip
    write_mar(folder / "broken.mar", {"modelName": "broken", "handler": "broken.py"}, {"broken.py": "1 / 0\n"})
    write_tar(folder / "model.tar.gz", {
        "code/inference.py": archives.SCRIPT.encode(), "factor.json": b"3",
        "code/times.py": b"def times(data, factor):\n    return data * factor\n",
    }, top="")  # fmt: skip
    return folder
