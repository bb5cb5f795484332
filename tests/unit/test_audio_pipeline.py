"""Sound files to waveforms: decoded, mixed, resampled; and what is no sound, broken, or too much of it."""

import io
import math
import struct
from collections.abc import Callable

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flambeau.bundle.pipeline_config import AudioConfig, MelConfig
from flambeau.errors import InvalidInput
from flambeau.items import FREE
from flambeau.pipelines.audio import AudioPipeline
from flambeau.pipelines.mel import log_mel
from flambeau.pipelines.resampling import resampled
from flambeau.types import Item, Payload, Tensors, TensorSpec

RATE = 16_000


def no_answer(outputs: Tensors, item: Item) -> object:
    raise AssertionError


def pipeline(*shape: int, seconds: float = 2.0, least: int = 1) -> AudioPipeline:
    spec = TensorSpec("input", "float32", shape, least)
    return AudioPipeline(AudioConfig(RATE, seconds), postprocess=no_answer, inputs=(spec,))  # type: ignore[arg-type]


def tone(seconds: float, *, rate: int = RATE, hertz: float = 440, channels: int = 1) -> np.ndarray:
    wave = 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)
    return np.stack([wave * (1 + place) / channels for place in range(channels)], axis=1).astype(np.float32)


def written(sound: np.ndarray, *, rate: int = RATE, kind: str = "WAV", subtype: str = "PCM_16") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, sound, rate, format=kind, subtype=subtype)
    return file.getvalue()


@pytest.mark.long
@pytest.mark.parametrize(
    "rates", [(44_100, 16_000), (48_000, 16_000), (8_000, 16_000), (16_000, 44_100), (44_101, 8_000)]
)
def test_the_rate_is_changed_as_scipy_does(rates: tuple[int, int]) -> None:
    import scipy.signal  # which takes seconds, and so not while tests are collected

    rate, to = rates
    sound = np.random.default_rng(1).standard_normal(rate // 2).astype(np.float32)
    common = math.gcd(rate, to)
    expected = scipy.signal.resample_poly(sound.astype(np.float64), to // common, rate // common)
    found = resampled(sound, rate=rate, to=to)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 2e-6


def test_a_tone_that_the_lower_rate_cannot_hold_is_gone_and_another_one_stays() -> None:
    high = resampled(tone(1, rate=48_000, hertz=15_000)[:, 0], rate=48_000, to=RATE)
    assert np.abs(high[200:-200]).max() < 0.003
    low = resampled(tone(1, rate=48_000)[:, 0], rate=48_000, to=RATE)
    assert np.abs(low - tone(1)[:, 0])[200:-200].max() < 0.001


@pytest.mark.parametrize(
    ("kind", "subtype", "near"),
    [
        ("WAV", "PCM_16", 1e-4), ("WAV", "PCM_24", 1e-6), ("WAV", "FLOAT", 1e-7), ("WAV", "PCM_U8", 1e-2),
        ("FLAC", "PCM_16", 1e-4),
    ],
)  # fmt: skip
def test_files_are_decoded_and_mixed(kind: str, subtype: str, near: float) -> None:
    for channels in (1, 2):
        sound = tone(0.5, channels=channels)
        found = pipeline(1, FREE).preprocess(Payload("file", written(sound, kind=kind, subtype=subtype)))["input"]
        assert found.shape == (1, 1, RATE // 2)
        assert np.abs(found[0, 0] - sound.mean(1)).max() <= near


def test_a_short_sound_is_filled_up_with_silence() -> None:
    found = pipeline(RATE).preprocess(Payload("file", written(tone(0.25))))["input"]
    assert found.shape == (1, RATE)
    assert not found[0, RATE // 4 :].any()
    assert pipeline(FREE, least=9_000).preprocess(Payload("file", written(tone(0.25))))["input"].shape == (1, 9_000)


def by_torchaudios_formula(wave: np.ndarray, config: MelConfig) -> np.ndarray:
    """torchaudio.functional.spectrogram and melscale_fbanks, with torch's own Fourier transform and loops."""
    found = torch.stft(
        torch.from_numpy(wave), config.n_fft, config.hop, window=torch.hann_window(config.n_fft), center=True,
        pad_mode="reflect", normalized=False, return_complex=True,
    )  # fmt: skip
    power = (found.abs() ** 2).numpy().astype(np.float64)

    def to_mel(hertz: float) -> float:
        if config.scale == "htk":
            return 2595 * math.log10(1 + hertz / 700)
        return hertz * 3 / 200 if hertz < 1000 else 15 + 27 * math.log(hertz / 1000) / math.log(6.4)

    def to_hertz(mel: float) -> float:
        if config.scale == "htk":
            return 700 * (10 ** (mel / 2595) - 1)
        return mel * 200 / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)

    low, high = to_mel(config.low), to_mel(config.high or RATE / 2)
    ends = [to_hertz(low + (high - low) * place / (config.mels + 1)) for place in range(config.mels + 2)]
    bands = np.zeros((config.mels, power.shape[1]))
    for band, (left, top, right) in enumerate(zip(ends, ends[1:], ends[2:], strict=False)):
        for place in range(len(power)):
            hertz = place * RATE / config.n_fft
            weight = max(0.0, min((hertz - left) / (top - left), (right - hertz) / (right - top)))
            bands[band] += weight * (2 / (right - left) if config.norm == "slaney" else 1) * power[place]
    bounded = np.maximum(bands + config.offset, config.floor)
    kinds: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "ln": np.log, "log10": np.log10, "db": lambda each: 10 * np.log10(each), "none": lambda each: bands,
    }  # fmt: skip
    made: np.ndarray = kinds[config.log](bounded)
    return made


@pytest.mark.parametrize(
    "config",
    [
        MelConfig(400, 160, 40), MelConfig(512, 128, 80, scale="slaney", norm="slaney", log="log10"),
        MelConfig(402, 97, 20, low=60, high=7600, log="db", floor=1e-6), MelConfig(256, 256, 8, offset=1e-6),
        MelConfig(300, 100, 16, log="none"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("length", [401, 16_000, 23_457])
def test_a_spectrogram_is_that_of_torchaudios_formula(config: MelConfig, length: int) -> None:
    numbers = np.random.default_rng(length)
    wave = (tone(2, hertz=700)[:length, 0] + 0.05 * numbers.standard_normal(length)).astype(np.float32)
    found, expected = log_mel(wave, RATE, config), by_torchaudios_formula(wave, config)
    assert found.shape == expected.shape == (config.mels, 1 + length // config.hop)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= 1e-4 * max(1.0, np.abs(expected).max())


def over_bands(*shape: int, mel: MelConfig, seconds: float = 2.0, least: int = 1) -> AudioPipeline:
    spec = TensorSpec("input", "float32", shape, least)
    config = AudioConfig(RATE, seconds, mel=mel)
    return AudioPipeline(config, postprocess=no_answer, inputs=(spec,))  # type: ignore[arg-type]


def test_a_network_over_bands_is_given_them() -> None:
    mel = MelConfig(400, 160, 24)
    sound = tone(0.5)
    file = Payload("file", written(sound, subtype="FLOAT"))
    expected = log_mel(sound[:, 0], RATE, mel)
    for shape in ((24, FREE), (1, 24, FREE)):
        found = over_bands(*shape, mel=mel).preprocess(file)["input"]
        assert found.shape == (1, *shape[:-1], 51)
        assert np.array_equal(found.reshape(24, 51), expected)
    fixed = over_bands(24, 100, mel=mel, seconds=(100 * 160 - 1) / RATE)
    filled = fixed.preprocess(file)["input"]
    assert filled.shape == (1, 24, 100)
    assert np.array_equal(filled[0, :, :48], expected[:, :48])  # and silence at the end
    for length in (15_840, 15_999):
        data = written(np.full((length, 1), 0.1, np.float32))
        assert fixed.preprocess(Payload("file", data))["input"].shape == (1, 24, 100)
    with pytest.raises(InvalidInput, match="longer than"):
        fixed.preprocess(Payload("file", written(np.full((16_000, 1), 0.1, np.float32))))
    short = over_bands(24, FREE, mel=mel).preprocess(Payload("file", written(tone(0.005))))["input"]
    assert short.shape == (1, 24, 1 + 201 // 160)
    for made in (fixed, over_bands(24, FREE, mel=mel), over_bands(1, 24, 3, mel=mel, seconds=479 / RATE)):
        assert made.preprocess(made.example())["input"].shape[1:] in ((24, 100), (24, 11), (1, 24, 3))


def test_the_example_can_be_prepared() -> None:
    for made in (pipeline(FREE), pipeline(1, FREE, least=20_000), pipeline(RATE)):
        assert made.preprocess(made.example())["input"].any()


WAV, FLAC = written(tone(0.5)), written(tone(0.5), kind="FLAC")


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "not a sound file"), (b"hello", "not a sound file"), (b"\x89PNG\r\n\x1a\n", "not a sound file"),
        (b"RIFF", "this WAV file is broken"), (b"fLaC", "this FLAC file is broken"), (WAV[:40], "this WAV file"),
        (WAV[:9000], "this WAV file is broken: its end is missing"),
        (FLAC[: len(FLAC) // 2], "this FLAC file is broken"),
        (FLAC[:200] + b"\0" * 400 + FLAC[600:], "FLAC file"), (written(tone(0.5)[:0]), "holds no sound"),
        (written(tone(2.1)), "longer than the 2 seconds"), (written(tone(0.1, channels=9)), "9 channels"),
        (written(np.full((100, 1), np.inf, np.float32), subtype="FLOAT"), "not finite"),
        (written(tone(0.1, rate=1000), rate=1000), "at 1,000 Hz"),
    ],
)  # fmt: skip
def test_what_is_no_sound_or_broken_is_refused_with_a_sentence(data: bytes, told: str) -> None:
    with pytest.raises(InvalidInput, match=told):
        pipeline(FREE).preprocess(Payload("file", data))


def test_hours_in_a_small_file_are_not_decoded() -> None:
    silence = written(np.zeros((RATE * 600, 1), np.float32), kind="FLAC")
    assert len(silence) < 100_000
    with pytest.raises(InvalidInput, match="longer than the 2 seconds"):
        pipeline(FREE).preprocess(Payload("file", silence))


@pytest.mark.parametrize("length", [1001, 16_001, 22_051])
def test_a_sound_of_just_the_networks_length_is_not_too_long(length: int) -> None:
    sound = np.full(length, 0.25, np.float32)
    file = Payload("file", written(sound, subtype="FLOAT"))
    found = pipeline(length, seconds=length / RATE).preprocess(file)["input"]
    assert np.array_equal(found, sound[None])
    longer = Payload("file", written(np.full(length + 1, 0.25, np.float32)))
    with pytest.raises(InvalidInput, match="longer than"):
        pipeline(length, seconds=length / RATE).preprocess(longer)


@pytest.mark.parametrize("told", [0, 4000, len(WAV) // 2])
@pytest.mark.parametrize("whole", [True, False])
def test_samples_behind_those_that_a_wav_file_promises_are_missed(told: int, whole: bool) -> None:
    """The program that wrote it had not ended; the library reads what is promised, without a word."""
    file = bytearray(WAV)
    file[40:44] = struct.pack("<I", told)
    if not whole:
        file[4:8] = struct.pack("<I", told + 36)
    with pytest.raises(InvalidInput, match=r"this WAV file holds more than the [\d.]+ seconds that it says"):
        pipeline(FREE).preprocess(Payload("file", bytes(file)))


@pytest.mark.parametrize(
    "behind", [b"TAG" + b"x" * 125, b"LIST\x04\0\0\0INFO", b"id3 \x00\x40\0\0" + b"\0" * 0x4000, b"\0" * 900]
)
def test_what_programs_add_behind_the_samples_is_passed_over(behind: bytes) -> None:
    """A tag, chunks, and what fills a file up."""
    found, plain = (pipeline(FREE).preprocess(Payload("file", WAV + more))["input"] for more in (behind, b""))
    assert np.array_equal(found, plain)


@pytest.mark.parametrize(("kept", "riff"), [(-1, None), (-500, 0), (-500, len(WAV) - 508), (None, None)])
def test_samples_that_a_wav_file_promises_and_lacks_are_missed(kept: int | None, riff: int | None) -> None:
    """Whatever the length of the whole file says: a tool that cuts may mend that alone."""
    file = bytearray(WAV[:kept])
    if riff is not None:
        file[4:8] = struct.pack("<I", riff)
    if kept is None:  # nothing is cut, but more is promised
        file[40:44] = struct.pack("<I", len(WAV) - 44 + 1000)
    with pytest.raises(InvalidInput, match="its end is missing"):
        pipeline(FREE).preprocess(Payload("file", bytes(file)))


def test_a_length_of_a_pipe_is_no_broken_file() -> None:
    for length in (0, 0xFFFFFFFF):
        piped = WAV[:4] + struct.pack("<I", length) + WAV[8:]
        assert pipeline(FREE).preprocess(Payload("file", piped))["input"].shape == (1, RATE // 2)
    piped = WAV[:4] + b"\xff" * 4 + WAV[8:40] + b"\xff" * 4 + WAV[44:]
    assert pipeline(FREE).preprocess(Payload("file", piped))["input"].shape == (1, RATE // 2)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_damage_raises_anything_else(data: st.DataObject) -> None:
    file = bytearray(data.draw(st.sampled_from([WAV[:600], FLAC[:900]])))
    for _ in range(data.draw(st.integers(1, 6))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = pipeline(FREE).preprocess(Payload("file", bytes(file)))["input"]
    except InvalidInput:
        return
    assert found.dtype == np.float32
