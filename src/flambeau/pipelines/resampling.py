"""Changes the sampling rate of sound by a polyphase filter with a Kaiser window, as `scipy.signal.resample_poly` does.

It knows no files. What a lower rate cannot hold is filtered out first, so that no tone turns into another one.
"""

import functools
import math

import numpy as np
import numpy.typing as npt

_BETA = 5.0
"""Of the Kaiser window: what is filtered out is 54 dB lower."""

_HALF_PERIODS = 10
_AT_ONCE = 1 << 14  # numbers computed together, which bounds the memory


def resampled(sound: npt.NDArray[np.float32], *, rate: int, to: int) -> npt.NDArray[np.float32]:
    """The sound, shape (samples,), at the rate `to`, with ceil(samples * to / rate) samples. Rates are in Hz."""
    common = math.gcd(rate, to)
    up, down = to // common, rate // common
    if up == down or not len(sound):
        return sound
    phases, reach = _filter(up, down)
    count = -(-len(sound) * up // down)
    taps = phases.shape[1]
    padded = np.concatenate([np.zeros(taps, np.float32), sound, np.zeros(taps, np.float32)])
    found = np.empty(count, np.float32)
    back = np.arange(taps)
    for start in range(0, count, _AT_ONCE):
        places = np.arange(start, min(start + _AT_ONCE, count), dtype=np.int64) * down + reach
        rows = padded[(places // up + taps)[:, None] - back]
        found[start : start + len(places)] = np.einsum("nt,nt->n", rows, phases[places % up])
    return found


@functools.lru_cache(maxsize=4)  # each may have 15 MB, for rates without a common divisor
def _filter(up: int, down: int) -> tuple[npt.NDArray[np.float32], int]:
    """The filter by phase, shape (up, taps), and how many samples it reaches into the future at the rate times `up`."""
    most = max(up, down)
    reach = _HALF_PERIODS * most
    places = np.arange(-reach, reach + 1)
    window = np.sinc(places / most) / most * np.kaiser(2 * reach + 1, _BETA)
    window *= up / window.sum()
    taps = -(-len(window) // up)
    whole = np.zeros(taps * up)
    whole[: len(window)] = window
    return whole.reshape(taps, up).T.astype(np.float32), reach
