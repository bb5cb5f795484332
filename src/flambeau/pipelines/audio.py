"""Sound files to what a network takes: decoded, mixed to one channel, and at the network's sampling rate; the waveform,
or its spectrogram.

WAV and FLAC files are taken, told by their first bytes. What a file says of itself is checked before it is
decoded, and it is decoded no further than the limit: a small FLAC file can hold hours of silence.
"""

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from flambeau.bundle.pipeline_config import AudioConfig
from flambeau.errors import BundleError, InvalidInput
from flambeau.items import FREE
from flambeau.pipelines.mel import log_mel
from flambeau.pipelines.resampling import resampled
from flambeau.system.machine import pip_install
from flambeau.tasks import Postprocess
from flambeau.types import Payload, Tensors, TensorSpec

if TYPE_CHECKING:
    from types import ModuleType

RATES = (4_000, 192_000)
"""Sampling rates of files, in Hz."""

MOST_CHANNELS = 8

_BEGINS = {b"RIFF": "WAV", b"fLaC": "FLAC"}
_SEND = "send a WAV or FLAC file"
_UNKNOWN = 0x7FFFF000  # from here on the length in a WAV file says that it was written to a pipe
_SHARE, _LITTLE = 8, 4096  # an eighth of the samples, or so many bytes, may be what some programs add behind them
_BLOCK = 1 << 16  # frames decoded together


def require() -> "ModuleType":
    """The library that decodes. Raises `BundleError` that names the extra if it is missing."""
    try:
        import soundfile
    except (ImportError, OSError):  # the latter without its own library
        told = f"sound needs the package soundfile, which is not installed: {pip_install('audio')}"
        raise BundleError(told) from None
    found: ModuleType = soundfile
    return found


class AudioPipeline:
    """One sound file to a waveform, float32 (1, samples) or (1, 1, samples) on the scale [-1, 1], or to a spectrogram,
    (1, mels, frames) or (1, 1, mels, frames); and its row of the outputs to the task's answer."""

    def __init__(self, config: AudioConfig, *, postprocess: Postprocess, inputs: Sequence[TensorSpec]) -> None:
        self.postprocess = postprocess
        self._config = config
        [self._input] = inputs
        self._library = require()

    def preprocess(self, payload: Payload) -> Tensors:
        """Raises `InvalidInput` for what is no sound file, is broken, or is too long or too short."""
        if payload.kind != "file":
            raise InvalidInput(
                f"this model takes sound, not JSON: {_SEND} as multipart field 'file', or as the body",
                code="unsupported_media_type",
            )
        sound, rate = self._decoded(bytes(payload.data))
        wave = resampled(sound, rate=rate, to=self._config.rate)
        taken = self._fitted(wave)
        if self._config.mel is not None:
            taken = log_mel(taken, self._config.rate, self._config.mel)
        return {self._input.name: taken.reshape(1, *self._input.shape[:-1], -1)}

    def example(self) -> Payload:
        """A WAV file of a quiet tone, as long as the network needs at least."""
        count = max(self._least, self._config.rate // 10)
        tone = 0.1 * np.sin(np.arange(min(count, self._most)) * 2 * np.pi * 440 / self._config.rate)
        file = io.BytesIO()
        self._library.write(file, tone.astype(np.float32), self._config.rate, format="WAV", subtype="PCM_16")
        return Payload("file", file.getvalue())

    @property
    def _most(self) -> int:
        """The most samples at the network's own rate."""
        return _samples(self._config.seconds, self._config.rate)

    @property
    def _least(self) -> int:
        """The fewest samples that the network, or its spectrogram, can be made of."""
        [*_, length] = self._input.shape
        least = self._input.least if length == FREE else length
        mel = self._config.mel
        return least if mel is None else max((least - 1) * mel.hop, mel.n_fft // 2 + 1)

    def _decoded(self, data: bytes) -> "tuple[npt.NDArray[np.float32], int]":
        """The sound mixed to one channel, and its rate."""
        kind = _BEGINS.get(data[:4])
        if kind is None:
            raise InvalidInput(
                f"this is not a sound file that this model reads: {_SEND}", code="unsupported_media_type"
            )
        try:
            with self._library.SoundFile(io.BytesIO(data)) as file:
                rate, channels = int(file.samplerate), int(file.channels)
                if not RATES[0] <= rate <= RATES[1] or channels > MOST_CHANNELS:
                    raise InvalidInput(
                        f"the file has {channels} channels at {rate:,} Hz, and files of at most {MOST_CHANNELS} "
                        f"channels at {RATES[0]:,} to {RATES[1]:,} Hz are read: convert it",
                        code="input_rejected",
                    )
                most = _samples(self._config.seconds, rate)
                parts, count = [], 0
                while len(block := file.read(_BLOCK, dtype="float32", always_2d=True)):
                    parts.append(block.mean(axis=1, dtype=np.float32))
                    count += len(block)
                    if count > most:
                        raise self._too_long()
                told = int(file.frames)
        except self._library.SoundFileError:
            raise InvalidInput(f"this {kind} file is broken: send it again whole", code="input_rejected") from None
        if _is_longer(data):
            raise InvalidInput(
                f"this {kind} file holds more than the {count / rate:.3g} seconds that it says, as if the program that "
                "wrote it had not ended: write it again",
                code="input_rejected",
            )
        if not count:
            raise InvalidInput(f"this {kind} file holds no sound", code="input_rejected")
        if count < told or _cut(data):
            raise InvalidInput(f"this {kind} file is broken: its end is missing", code="input_rejected")
        sound = np.concatenate(parts)
        if not np.isfinite(sound).all():
            raise InvalidInput("the file holds numbers that are not finite", code="input_rejected")
        return sound, rate

    def _too_long(self) -> InvalidInput:
        return InvalidInput(
            f"the sound is longer than the {self._config.seconds:g} seconds that the model takes: send it in parts",
            code="input_rejected",
        )

    def _fitted(self, wave: "npt.NDArray[np.float32]") -> "npt.NDArray[np.float32]":
        """The waveform at a length that the network takes: a shorter one is filled up with silence at its end."""
        [*_, length] = self._input.shape
        hop = 1 if self._config.mel is None else self._config.mel.hop
        if length != FREE and len(wave) // hop > self._least // hop:
            raise self._too_long()
        missing = self._least - len(wave)
        return np.concatenate([wave, np.zeros(missing, np.float32)]) if missing > 0 else wave


def _samples(seconds: float, rate: int) -> int:
    """How many samples those seconds have. 1001 / 16000 seconds at 16 kHz have 1001: floats make 1000.99… of them."""
    return math.floor(seconds * rate + 1e-6)


def _cut(data: bytes) -> bool:
    """Whether a WAV file is shorter than it says. The library reads such a file to its end without a word.

    Both lengths are asked, the file's own and that of its samples: a tool that cuts a file may mend one of them.
    """
    if data[:4] != b"RIFF":
        return False
    told = int.from_bytes(data[4:8], "little")
    if 0 < told < _UNKNOWN and told + 8 > len(data) + 1:
        return True
    start, length = _samples_in(data)
    return length < _UNKNOWN and start + length > len(data)


def _is_longer(data: bytes) -> bool:
    """Whether a WAV file goes on behind the samples that it says it has, with more than chunks and a little."""
    if data[:4] != b"RIFF":
        return False
    start, length = _samples_in(data)
    end = start + length + length % 2
    while end + 8 <= len(data):
        following = int.from_bytes(data[end + 4 : end + 8], "little")
        if not data[end : end + 4].isascii() or end + 8 + following > len(data) + 1:
            break
        end += 8 + following + following % 2
    return len(data) - end > max(length // _SHARE, _LITTLE)


def _samples_in(data: bytes) -> tuple[int, int]:
    """Where the samples of a WAV file begin, and how many bytes it says they take; its end and 0 if it has none."""
    start = 12
    while start + 8 <= len(data):
        length = int.from_bytes(data[start + 4 : start + 8], "little")
        if data[start : start + 4] == b"data":
            return start + 8, length
        start += 8 + length + length % 2
    return len(data), 0
