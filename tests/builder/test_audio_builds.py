"""Networks over sound from a file of weights to an answer: asked for their rate, and read by foreign clients."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import flambeau
from flambeau.bundle.pipeline_config import AudioConfig, MelConfig
from flambeau.bundle.storage import Bundle
from flambeau.errors import SourceError
from flambeau.pipelines.mel import log_mel
from flambeau.settings.source import SourceOptions
from flambeau.sources import build_cache
from tests.networks.sound_nets import Bands, Pitch
from tests.support.server import Serve, ServerProcess, answer_examples
from tests.support.warm import run_with_torch
from tests.unit.test_audio_pipeline import RATE, tone, written

pytestmark = pytest.mark.usefixtures("warm_builds")

NETWORKS = Path(__file__).parents[1] / "networks" / "sound_nets.py"
NAMES = ("low", "middle", "high")


def build(source: Path, **options: Any) -> Bundle:
    own: dict[str, Any] = {"arch": f"{NETWORKS}:Pitch", "allow_code": True, **options}
    return build_cache.open_source(SourceOptions(source=str(source), **own), progress=lambda event: None)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pitch")
    torch.save(Pitch().state_dict(), folder / "pitch.pth")
    (folder / "names.txt").write_text("\n".join(NAMES))
    return folder / "pitch.pth"


@pytest.fixture(scope="module")
def made(file: Path, warm_builds: None) -> Bundle:
    labels = str(file.parent / "names.txt")
    return build(file, task="audio-classification", sample_rate=RATE, max_seconds=2.0, labels=labels)


@pytest.fixture(scope="module")
def server(serve: Serve, made: Bundle) -> Iterator[ServerProcess]:
    arguments = ("--replicas", "1", "--platform", "huggingface", "--host", "127.0.0.1", "--name", "pitch")
    with serve(made.path, *arguments) as running:
        yield running


def scores(wave: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        found: np.ndarray = Pitch().eval()(torch.from_numpy(wave)[None, None])[0].softmax(0).numpy()
    return found


def test_a_waveform_of_any_length_is_classified_as_by_pytorch(made: Bundle, server: ServerProcess) -> None:
    assert made.manifest.task == "classification"
    assert made.manifest.pipeline == AudioConfig(RATE, 2.0)
    assert made.manifest.inputs[0].shape == (1, -1)
    for name, hertz in zip(NAMES, (300, 1000, 3000), strict=True):
        sound = tone(0.7, hertz=hertz)
        for kind in ("WAV", "FLAC"):
            answer = server.post(
                "/predict?top_k=3", data=written(sound, kind=kind), headers={"Content-Type": "audio/wav"}
            )
            ranked = answer.json()["predictions"]
            assert ranked[0]["class_name"] == name
            expected = scores(sound[:, 0])
            assert [each["probability"] for each in ranked] == pytest.approx(sorted(expected, reverse=True), abs=1e-3)
        other = tone(0.7, rate=44_100, hertz=hertz, channels=2)
        resampled = server.post("/predict", files={"file": written(other, rate=44_100)}).json()
        assert resampled["class_name"] == name


def test_hugging_faces_client_classifies_sound(server: ServerProcess) -> None:
    client = server.hugging_face()
    data = written(tone(0.5, hertz=1000))
    found = client.audio_classification(data)
    assert found[0].label == "middle"
    assert len(client.audio_classification(data, top_k=2)) == 2


@pytest.mark.long
def test_other_protocols_and_tables_take_sound_too(server: ServerProcess, made: Bundle, tmp_path: Path) -> None:
    data = written(tone(0.5, hertz=3000))
    text = base64.b64encode(data).decode()
    assert server.post("/predict", json={"input": text}).json()["class_name"] == "high"
    [v1] = server.post("/v1/models/pitch:predict", json={"instances": [{"b64": text}]}).json()["predictions"]
    assert v1["class_name"] == "high"
    tensor = {"name": "audio", "shape": [1], "datatype": "BYTES", "data": [text]}
    outputs = server.post("/v2/models/pitch/infer", json={"inputs": [tensor]}).json()["outputs"]
    assert "high" in str(outputs)
    both = server.post("/predict", files=[("file", data), ("file", b"none")]).json()["predictions"]
    assert (both[0]["class_name"], both[1]["code"]) == ("high", "unsupported_media_type")
    (tmp_path / "sounds").mkdir()
    (tmp_path / "sounds" / "a.wav").write_bytes(data)
    (tmp_path / "sounds" / "b.txt").write_text("passed over")
    done = run_with_torch("predict", made.path, tmp_path / "sounds")
    assert (done.returncode, '"class_name":"high"' in done.stdout) == (0, True), done.stderr


def test_torchserves_clients_send_sound_in_every_form(server: ServerProcess) -> None:
    """A body without the type of JSON was taken for JSON."""
    data = written(tone(0.5, hertz=3000))
    text = base64.b64encode(data).decode()
    told = {"Content-Type": "audio/wav"}
    forms: list[dict[str, Any]] = [
        {"data": data}, {"data": data, "headers": told}, {"data": written(tone(0.5, hertz=3000), kind="FLAC")},
        {"data": data, "headers": {"Content-Type": "application/octet-stream"}},
        {"files": {"data": data}}, {"files": {"body": ("a.wav", data, "audio/wav")}},
        {"files": {"data": (None, text, "text/plain")}},
        {"files": {"data": (None, json.dumps({"data": text}), "application/json")}},
        {"json": text}, {"json": {"data": text}}, {"data": json.dumps({"data": {"b64": text}})},
    ]  # fmt: skip
    for form in forms:
        found = server.post("/predictions/pitch", **form)
        assert (found.status_code, next(iter(found.json()))) == (200, "high"), found.text
    for refused, status in (
        ({"data": b"no sound"}, 415), ({"json": [1]}, 415), ({"files": {"data": b""}}, 400), ({"data": b"{"}, 400),
        ({"data": data, "headers": {"Content-Encoding": "gzip"}}, 415),
    ):  # fmt: skip
        found = server.post("/predictions/pitch", **refused)
        assert (found.status_code, found.json()["code"]) == (status, status), found.text


@pytest.mark.parametrize(
    ("data", "status", "told"),
    [
        (b"text", 415, "send a WAV or FLAC file"), (written(tone(2.2)), 400, "longer than the 2 seconds"),
        (written(tone(1))[:5000], 400, "its end is missing"),
    ],
)  # fmt: skip
def test_what_is_no_sound_is_refused(server: ServerProcess, data: bytes, status: int, told: str) -> None:
    answer = server.post("/predict", data=data, headers={"Content-Type": "audio/wav"})
    assert (answer.status_code, told in answer.json()["error"]) == (status, True), answer.text
    refused = server.post("/predict", json={"input": [1, 2]})
    assert (refused.status_code, "no sound file in base64" in refused.json()["error"]) == (415, True)


def test_the_page_takes_a_sound_file(server: ServerProcess) -> None:
    page = server.get("/").text
    assert 'accept="audio/wav' in page
    assert "a waveform of one channel at 16,000 Hz, of at most 2 seconds" in page
    document = server.get("/openapi.json").json()["paths"]["/predict"]["post"]["requestBody"]["content"]
    assert "audio/*" in document
    assert "image/*" not in document
    assert answer_examples(server) >= {"/predict", "/v1/models/pitch:predict", "/v2/models/pitch/infer"}


@pytest.fixture(scope="module")
def bands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of a network over a spectrogram of 24 bands."""
    file = tmp_path_factory.mktemp("bands") / "bands.pth"
    torch.save(Bands().state_dict(), file)
    return file


def test_a_network_over_a_spectrogram_is_answered_as_by_pytorch(bands: Path) -> None:
    asked = {"arch": f"{NETWORKS}:Bands", "input_shape": (24, "frames"), "sample_rate": RATE}
    made = build(bands, task="audio-classification", log_mel="n_fft=400,hop=160,mels=24,log=log10", **asked)
    mel = MelConfig(400, 160, 24, log="log10")
    assert made.manifest.pipeline == AudioConfig(RATE, mel=mel)
    assert "24 mels from 0 Hz to half the rate (htk, norm none), windows of 400 samples every 160" in str(mel)
    with flambeau.load(made.path) as model:
        for place, hertz in enumerate((300, 1800, 6000)):
            sound = tone(0.7, hertz=hertz)
            answer = model.predict(written(sound, subtype="FLOAT"))
            with torch.inference_mode():
                expected = Bands()(torch.from_numpy(log_mel(sound[:, 0], RATE, mel))[None])[0].softmax(0)
            assert answer.top[0].index == int(expected.argmax()) == place
            assert answer.top[0].probability == pytest.approx(float(expected.max()), abs=1e-4)


@pytest.mark.parametrize(
    ("log_mel", "told"),
    [
        ("n_fft=400,hop=160", "missing required field `mels`"), ("n_fft=401,hop=160,mels=24", "multiple of 2"),
        ("n_fft=400,hop=160,mels=24,power=2", "unknown field `power`"), ("n_fft", "is not understood"),
        ("n_fft=400,hop=160,mels=24,mels=25", "a name stands there twice"),
        ("n_fft=400,hop=160,mels=40", "makes float32 of shape 40,frames"),
        ("n_fft=400,hop=160,mels=24,high=9000", "from 0 to 9000 Hz; of a sound at 16000 Hz, they go up to 8000 Hz"),
    ],
)  # fmt: skip
def test_a_spectrogram_that_cannot_be_is_refused(bands: Path, log_mel: str, told: str) -> None:
    asked = {"arch": f"{NETWORKS}:Bands", "input_shape": (24, "frames"), "sample_rate": RATE}
    with pytest.raises(SourceError, match=told):
        build(bands, task="audio-classification", log_mel=log_mel, **asked)


def test_the_rate_is_asked_for(file: Path) -> None:
    with pytest.raises(SourceError, match="say --sample-rate"):
        build(file, task="audio-classification")
    with pytest.raises(SourceError, match="--task audio-classification is of audio, and --pipeline tensor is not"):
        build(file, task="audio-classification", pipeline="tensor")
