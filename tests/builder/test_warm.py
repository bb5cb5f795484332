"""What a build forked from a process with torch loaded writes is what one writes that begins from nothing."""

from pathlib import Path

import onnx
import pytest
import torch

from flambeau.bundle import storage
from flambeau.settings.source import SourceOptions
from flambeau.sources import build_cache, request
from tests.support import warm

NET = """
import torch
from torch import nn


class Net(nn.Module):
    \"\"\"Of layers that the exporter takes apart in more ways than one.\"\"\"

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding="same")
        self.mix = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.GroupNorm(2, 8)
        self.last = nn.Linear(8, 5)

    def forward(self, images):
        seen = self.norm(nn.functional.interpolate(self.first(images), scale_factor=0.5, mode="bilinear"))
        rows = seen.flatten(2).transpose(1, 2)
        mixed, _ = self.mix(rows, rows, rows)
        steps = torch.diff(rows, dim=1).mean(1) * nn.functional.cosine_similarity(rows[:, 0], rows[:, 1])[:, None]
        return self.last(nn.functional.gelu(mixed.mean(1)) + torch.einsum("nij->nj", rows) + steps)
"""


@pytest.mark.slow
def test_a_forked_build_writes_the_graph_of_one_that_begins_from_nothing(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    scope: dict[str, type[torch.nn.Module]] = {}
    exec(NET, scope)
    torch.save(scope["Net"]().state_dict(), tmp_path / "net.pth")
    source = SourceOptions(
        source=str(tmp_path / "net.pth"), arch=f"{tmp_path / 'net.py'}:Net", allow_code=True, crop=16, resize=16
    )
    order = request.build_request(source)
    graphs = []
    for name, run in (("warm", warm.run_build), ("cold", build_cache._run_build_process)):
        (tmp_path / name).mkdir()
        failure, imported = run(order, tmp_path / name, lambda event: None)
        assert failure is None
        assert str(tmp_path / "net.py") in imported
        graph = onnx.load(tmp_path / name / storage.ONNX).graph
        graphs.append([(node.op_type, list(node.input), list(node.output)) for node in graph.node])
    assert graphs[0] == graphs[1]
    assert len(graphs[0]) > 10
