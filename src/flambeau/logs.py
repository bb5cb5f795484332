"""One readable line per event: time, level, message, then `key=value` pairs.

Nothing a client sends can forge a line: control characters are escaped and long values cut. Only `cli` calls
`configure`; importing flambeau sets up nothing.
"""

import functools
import logging
import sys
import time
import traceback
from pathlib import Path

LOGGER = logging.getLogger("flambeau")
_LONGEST_VALUE = 256


def event(message: str, /, *, level: int = logging.INFO, **pairs: object) -> None:
    """Log one event. `pairs` are appended as `key=value`, except those that are `None`; blanks are quoted."""
    if LOGGER.isEnabledFor(level):
        line = " ".join([message, *[f"{key}={_render(value)}" for key, value in pairs.items() if value is not None]])
        # Not `LOGGER.log`: for every request it would look through the stack for a caller that no line shows.
        LOGGER.handle(logging.LogRecord(LOGGER.name, level, "", 0, line, None, None))


def failure(message: str, error: BaseException, /, **pairs: object) -> None:
    """Log an unexpected exception in one line, with the place it was raised at; the traceback follows with DEBUG."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
    event(message, level=logging.ERROR, error=f"{type(error).__name__}: {error}", at=place, **pairs)
    LOGGER.debug("%s", message, exc_info=error)


def _render(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.1f}"
    text = str(value)
    if len(text) > _LONGEST_VALUE:
        text = text[: _LONGEST_VALUE - 1] + "…"
    if not text.isprintable():
        text = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    return f'"{text}"' if " " in text or not text else text


class _LineFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = f"{_clock(int(record.created))}.{int(record.msecs):03d} {record.levelname:<7} {record.getMessage()}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


@functools.lru_cache(maxsize=1)
def _clock(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(second))


def configure(level: str = "info") -> None:
    """Send the events of that level and above to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_LineFormatter())
    LOGGER.handlers[:] = [handler]
    LOGGER.setLevel(level.upper())
    LOGGER.propagate = False
