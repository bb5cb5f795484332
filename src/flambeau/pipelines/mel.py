"""A waveform to its log-mel spectrogram, by the formula of torchaudio's MelSpectrogram. Every number of it is in the
config, because a network that was trained with another hears another sound.
"""

import numpy as np
import numpy.typing as npt

from flambeau.bundle.pipeline_config import MelConfig

_FRAMES = 1024  # transformed at a time


def log_mel(wave: npt.NDArray[np.float32], rate: int, config: MelConfig) -> npt.NDArray[np.float32]:
    """The spectrogram of a waveform (samples,) at `rate` Hz: float32 (mels, 1 + samples // hop).

    The wave is reflected at both ends by half a window, so that it needs more than `n_fft` / 2 samples. A frame is the
    power of the Fourier transform of a window with Hann's weights (periodic); mels are triangles over its frequencies.
    """
    padded = np.pad(wave.astype(np.float64), config.n_fft // 2, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, config.n_fft)[:: config.hop]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(config.n_fft) / config.n_fft)
    triangles = filters(rate, config)
    found = np.empty((config.mels, len(windows)), np.float32)
    for start in range(0, len(windows), _FRAMES):
        part = slice(start, start + _FRAMES)
        power = np.abs(np.fft.rfft(windows[part] * hann)) ** 2
        found[:, part] = _logarithm((power @ triangles).T, config)
    return found


def filters(rate: int, config: MelConfig) -> npt.NDArray[np.float64]:
    """The weight of each frequency in each mel, (1 + n_fft // 2, mels)."""
    high = config.high or rate // 2
    frequencies = np.linspace(0, rate // 2, 1 + config.n_fft // 2)
    first, last = _mel(np.array([config.low, high]), config.scale).tolist()
    ends = _hertz(np.linspace(first, last, config.mels + 2), config.scale)
    widths = np.diff(ends)
    slopes = ends[None] - frequencies[:, None]
    rising, falling = -slopes[:, :-2] / widths[:-1], slopes[:, 2:] / widths[1:]
    triangles: npt.NDArray[np.float64] = np.maximum(0.0, np.minimum(rising, falling))
    return triangles * (2.0 / (ends[2:] - ends[:-2])) if config.norm == "slaney" else triangles


def _logarithm(power: npt.NDArray[np.float64], config: MelConfig) -> npt.NDArray[np.float64]:
    if config.log == "none":
        return power
    bounded = np.maximum(power + config.offset, config.floor)
    if config.log == "ln":
        return np.log(bounded)
    return np.log10(bounded) * (10.0 if config.log == "db" else 1.0)


# The scale of Slaney's Auditory Toolbox: linear up to 1000 Hz, which is 15 mels, and logarithmic above.
_LINEAR, _BREAK, _STEP = 200.0 / 3, 1000.0, np.log(6.4) / 27.0


def _mel(hertz: npt.NDArray[np.float64], scale: str) -> npt.NDArray[np.float64]:
    if scale == "htk":
        return 2595.0 * np.log10(1.0 + hertz / 700.0)
    above = _BREAK / _LINEAR + np.log(np.maximum(hertz, _BREAK) / _BREAK) / _STEP
    return np.where(hertz >= _BREAK, above, hertz / _LINEAR)


def _hertz(mels: npt.NDArray[np.float64], scale: str) -> npt.NDArray[np.float64]:
    if scale == "htk":
        return 700.0 * (10.0 ** (mels / 2595.0) - 1.0)
    first = _BREAK / _LINEAR
    return np.where(mels >= first, _BREAK * np.exp(_STEP * (np.maximum(mels, first) - first)), mels * _LINEAR)
