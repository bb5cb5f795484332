"""What the losses of a model's workers say of the model: whether it only crashes, and how long a start has to wait.

It knows no worker. The runners over processes and over Ray keep one for each model.
"""

import logging
import time
from collections import deque

from flambeau.runners.base import Loss
from flambeau.telemetry import logs

_FIRST_BACKOFF, _LONGEST_BACKOFF = 0.1, 30.0  # seconds
_CRASHES_TO_FAIL, _CRASH_WINDOW = 5, 60.0  # this many crashes in this many seconds, without an answer in between
_MODELS_OWN = ("crashed", "out_of_memory")  # losses that suggest a broken model, as a failed start does
"""A hang is not among them: it says something about its input alone, and a client that sends many such inputs must not
take the model out of service for everybody else. A model that hangs on every input also hangs on the examples of its
next start; if it has none, the log says so. No pause is needed after a hang: it took its time already.
"""
_HANGS_TO_TELL = 5  # without an answer in between


class LossHistory:
    """The losses of one model since its last answer."""

    def __init__(self, model: str) -> None:
        self.failed = False
        """Whether it only crashes: it is unavailable until a worker is warm or answers."""
        self._model = model
        self._crashes: deque[float] = deque(maxlen=_CRASHES_TO_FAIL)
        self._crashes_in_a_row = 0
        self._hangs_in_a_row = 0

    def note_loss(self, how: Loss) -> None:
        """A worker was lost."""
        if how in _MODELS_OWN:
            self.note_crash()
        elif how == "hung":
            self._note_hang()

    def note_crash(self) -> None:
        """A worker crashed, or could not start."""
        now = time.monotonic()
        self._crashes.append(now)
        self._crashes_in_a_row += 1
        if len(self._crashes) == _CRASHES_TO_FAIL and now - self._crashes[0] < _CRASH_WINDOW and not self.failed:
            self.failed = True
            logs.event("the model only crashes: it is unavailable", level=logging.ERROR, model=self._model)

    def _note_hang(self) -> None:
        self._hangs_in_a_row += 1
        if self._hangs_in_a_row == _HANGS_TO_TELL:
            logs.event(
                "the model only hangs: it has answered nothing since", level=logging.ERROR, model=self._model,
                hangs=_HANGS_TO_TELL,
            )  # fmt: skip

    def note_answer(self) -> None:
        """A worker answered a batch."""
        if self._hangs_in_a_row >= _HANGS_TO_TELL:
            logs.event("the model answers again", model=self._model)
        self._hangs_in_a_row = 0
        self._crashes.clear()
        self._crashes_in_a_row = 0
        self.failed = False

    def pause(self) -> float:
        """Seconds to wait before the next start: they grow with the crashes since the last answer."""
        if self._crashes_in_a_row < 2:
            return 0.0
        return min(_FIRST_BACKOFF * 2.0 ** min(self._crashes_in_a_row - 2, 20), _LONGEST_BACKOFF)
