"""U11, U12: files and folders that hold a model in another way than we read are told for what they are, with the way
from there: inspect and serve are one judgement, and each way is gone here.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from flambeau import checkpoints
from tests.support.warm import run_with_torch


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


def both(file: Path) -> str:
    """What inspect and serve say of a file, which is the same, with the exit code of a refusal."""
    looked, served = run_with_torch("inspect", file), run_with_torch("serve", file, "--port", 0)
    assert (looked.returncode, served.returncode) == (1, 1)
    report = checkpoints.examine(file)
    assert report.verdict == "refused"
    assert report.reason in looked.stdout
    assert report.reason in served.stderr
    assert "serve " not in looked.stdout
    return f"{report.reason}: {report.remedy}"


@pytest.mark.long
def test_parameters_without_names_are_told_with_the_way_back_u11(tmp_path: Path) -> None:
    torch.save(list(network().parameters()), tmp_path / "m.pth")
    said = both(tmp_path / "m.pth")
    assert "a list of 4 tensors without names" in said
    loop = said.partition("make the model, then: ")[2].partition("; and save ")[0].replace("PATH", "m.pth")
    script = (
        "import torch; from torch import nn\n"
        "model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))\n"
        f"{loop}\n"
        "torch.save(model.state_dict(), 'NEW')\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)
    again = torch.load(tmp_path / "NEW")
    assert all(torch.equal(again[name], value) for name, value in network().state_dict().items())


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        (lambda: torch.zeros(2, 3), "a single tensor of shape [2, 3]"),
        (lambda: {"epoch": 3, "accuracy": 0.5}, "a dict of epoch, accuracy"),
        (lambda: torch.optim.SGD(network().parameters(), momentum=0.9).state_dict(), "the state of an optimiser"),
        (list, "a list"),
    ],
)
def test_what_holds_no_weights_is_refused_alike_u11(tmp_path: Path, contents: Callable[[], object], words: str) -> None:
    torch.save(contents(), tmp_path / "m.pth")
    assert words in both(tmp_path / "m.pth")


@pytest.mark.long
def test_a_distributed_checkpoint_is_told_with_the_command_that_joins_it_u12(tmp_path: Path) -> None:
    from torch.distributed.checkpoint import state_dict_saver as checkpoint

    checkpoint.save(network().state_dict(), checkpoint_id=str(tmp_path / "dcp"), no_dist=True)
    said = both(tmp_path / "dcp")
    assert "torch.distributed.checkpoint" in said
    command = said.partition("that unpickles: python ")[2].partition(", and give")[0]
    words = [word.replace("FOLDER", "dcp").replace("NEW.pth", "new.pth") for word in command.split()]
    subprocess.run([sys.executable, "-W", "ignore", *words], check=True, cwd=tmp_path, capture_output=True)
    assert checkpoints.examine(tmp_path / "new.pth").verdict == "data"
    part = next((tmp_path / "dcp").glob("*.distcp"))
    assert "one part of a checkpoint" in both(part)


@pytest.mark.long
def test_torchscript_is_told_with_the_way_to_its_weights_u12(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(network(), torch.zeros(1, 4)), tmp_path / "PATH")
    report = checkpoints.examine(tmp_path / "PATH")
    assert (report.format, report.verdict) == ("torchscript", "code")
    save = report.remedy.partition("save its weights alone, ")[2].partition(", and give")[0]
    subprocess.run([sys.executable, "-W", "ignore", "-c", f"import torch; {save}"], check=True, cwd=tmp_path)
    assert set(checkpoints.examine(tmp_path / "NEW").entries[0].tensors) == set(network().state_dict())


def test_weights_in_several_files_are_told_u12(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text('{"metadata": {}, "weight_map": {}}')
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"")
    assert "a checkpoint in several files" in both(tmp_path)
