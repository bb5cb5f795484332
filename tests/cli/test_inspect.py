"""`flambeau inspect`: what a file is, whether it is safe and why, and what would be done with it; nothing is loaded."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from flambeau.architectures import torchvision_compat
from flambeau.bundle.storage import Bundle
from tests.support import hostile
from tests.support.warm import run_with_torch

FEW = ("T-01", "T-02", "T-04", "T-05", "T-25")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with averaged weights and class names."""
    torchvision_compat.declare_missing()
    from torchvision import models

    file = tmp_path_factory.mktemp("inspect") / "flowers.ckpt"
    state = models.shufflenet_v2_x0_5(num_classes=3).half().state_dict()
    wrapped = {"model." + key: tensor for key, tensor in state.items()}
    averaged = {key: tensor.clone() for key, tensor in wrapped.items()}
    torch.save({"state_dict": wrapped, "ema": averaged, "epoch": 7, "classes": ["rose", "lily", "fern"]}, file)
    return file


def test_a_checkpoint_is_described_whole(checkpoint: Path) -> None:
    done = run_with_torch("inspect", checkpoint)
    assert done.returncode == 0
    lines = {line[:14].strip(): line[14:] for line in done.stdout.splitlines()}
    assert lines["format"] == "torch.save, a zip archive"
    assert lines["safe"] == "yes: it holds data only"
    assert "of float16" in lines["tensors"]
    assert "under ema" in lines["tensors"]
    assert lines["architecture"].startswith("shufflenet_v2_x0_5")
    assert lines["classes"] == "3: rose, lily, fern"
    assert lines["prepared"].startswith("Resize(255), CenterCrop(224)")
    assert lines["serve"] == f"flambeau serve {checkpoint}"
    assert "--weights-key state_dict takes the plain ones" in done.stdout


def test_a_checkpoint_whose_tensors_were_damaged_on_their_way_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    """torch loads it without a word, and its answers would be wrong."""
    data = bytearray(checkpoint.read_bytes())
    with zipfile.ZipFile(checkpoint) as archive:
        largest = max(archive.infolist(), key=lambda member: member.file_size)
    place = largest.header_offset + 200 + largest.file_size // 2
    data[place] ^= 1
    damaged = tmp_path / "flowers.ckpt"
    damaged.write_bytes(data)
    torch.load(damaged, weights_only=True)
    told = f"it holds a {largest.filename} that is damaged: its contents do not fit its size and checksum"
    done = run_with_torch("inspect", damaged)
    assert done.returncode == 1
    assert told in done.stdout
    assert "download or copy it again" in done.stdout
    refused = run_with_torch("build", damaged, "-o", tmp_path / "bundle")
    assert refused.returncode == 1
    assert told.removeprefix("it ") in refused.stderr
    assert not (tmp_path / "bundle").exists()


def test_a_storage_that_was_filled_in_later_has_no_checksum_to_compare(tmp_path: Path) -> None:
    file = tmp_path / "later.pth"
    with torch.serialization.skip_data():
        torch.save({"weight": torch.ones(3, 4), "bias": torch.ones(3)}, file)
    assert run_with_torch("inspect", file).returncode == 0


def test_a_file_without_checksums_is_told_how_to_get_them(tmp_path: Path) -> None:
    file = tmp_path / "bare.pth"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"weight": torch.ones(3, 4), "bias": torch.ones(3)}, file)
    finally:
        torch.serialization.set_crc32_options(True)
    done = run_with_torch("inspect", file)
    assert done.returncode == 1
    assert "save it again after torch.serialization.set_crc32_options(True)" in done.stdout
    torch.save(torch.load(file, weights_only=True), file)
    assert run_with_torch("inspect", file).returncode == 0


def test_the_code_of_a_network_is_not_taken_for_a_name_of_one(checkpoint: Path) -> None:
    done = run_with_torch("inspect", checkpoint, "--arch", "net.py:Net")
    assert done.returncode == 1
    assert "there is no architecture named" not in done.stdout
    advice = f"flambeau build {checkpoint} --arch net.py:Net --allow-code -o FOLDER"
    assert f"--arch net.py:Net is code, and inspect runs none: leave it out here, and build it with {advice}" in (
        done.stdout
    )


def test_json_says_the_same_to_programs(checkpoint: Path) -> None:
    found = json.loads(run_with_torch("inspect", checkpoint, "--json", "--weights-key", "state_dict").stdout)
    assert found["report"]["verdict"] == "data"
    assert found["weights"]["where"] == "state_dict"
    assert (found["architecture"], found["classes"]) == ("shufflenet_v2_x0_5", 3)
    assert found["preprocessing"]["crop"] == 224


def test_inspecting_needs_no_torch(checkpoint: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from flambeau.sources.inspection import inspect;"
        "found = inspect(Path(sys.argv[1])); assert found.architecture; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script, checkpoint], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_an_architecture_is_held_against_the_weights(checkpoint: Path) -> None:
    done = run_with_torch("inspect", checkpoint, "--arch", "shufflenet_v2_x1_0")
    assert "none that is known" in done.stdout
    assert "nearest       shufflenet_v2_x1_0: 0 keys missing" in done.stdout


def test_a_bundle_is_described(default_bundle: Bundle) -> None:
    done = run_with_torch("inspect", default_bundle.path)
    assert "bundle of flambeau build" in done.stdout
    assert f"flambeau serve {default_bundle.path}" in done.stdout


def test_what_is_not_there_is_said_in_one_line(tmp_path: Path) -> None:
    done = run_with_torch("inspect", tmp_path / "absent.pth")
    assert done.returncode == 1
    assert done.stderr.startswith("flambeau: ")
    assert "absent.pth" in done.stderr


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], Path]:
    """The hostile files, and the canary that none may touch."""
    folder, canary = tmp_path_factory.mktemp("hostile"), tmp_path_factory.mktemp("canary") / "canary"
    return hostile.write_corpus(folder, canary), canary


@pytest.mark.parametrize("fault", FEW)
def test_a_hostile_file_is_refused_by_inspect_and_by_serve(corpus: tuple[dict[str, Path], Path], fault: str) -> None:
    """T-01, T-02, T-04, T-05, T-25 at the command line: the reason stands there, the canary does not."""
    files, canary = corpus
    case = next(each for each in hostile.CORPUS if each.fault == fault)
    file = files[case.name]
    shown, served = run_with_torch("inspect", file), run_with_torch("serve", file, "--port", 0)
    assert "safe          no: it " in shown.stdout
    assert shown.returncode == (0 if case.code else 1)
    assert served.returncode == (78 if case.code else 1)
    for words in case.words:
        assert words in shown.stdout
        assert words in served.stderr
    assert "Traceback" not in served.stderr + shown.stderr
    assert not canary.exists()
