"""One line per event: time, level, message and `key=value` pairs for people, or one JSON object for machines.

Nothing a client sends can forge a line: control characters are escaped and long values cut. Only `cli` and the workers
call `configure`; importing flambeau sets up nothing. If lines go to a `LineSink`, logging never waits
(`flambeau.telemetry.log_writer`).
"""

import functools
import json
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import msgspec

from flambeau.telemetry.log_writer import LineSink, LogEvent, LogWriter

LOGGER = logging.getLogger("flambeau")
_LONGEST_VALUE = 256
_LONGEST_TEXT = 2000  # of a captured line
_LONGEST_TRACEBACK = 3000  # with the rest of its line, less than a pipe takes at once


class _Event(logging.LogRecord):
    """An event as a record of the standard library, so that any handler can take it."""

    pairs: dict[str, object]

    def getMessage(self) -> str:  # noqa: N802  # the standard library's name
        """The event as text: the message, then its pairs."""
        return _in_words(self.msg, self.pairs)


def _in_words(message: str, pairs: Mapping[str, object]) -> str:
    told = [f"{key}={_render(value)}" for key, value in pairs.items() if value is not None]
    return " ".join([_printable(message), *told])


def event(message: str, /, *, level: int = logging.INFO, **pairs: object) -> None:
    """Log one event. `pairs` are appended as `key=value`, except those that are `None`; blanks are quoted.

    Under `send_to` with a `LogWriter`, an event of the level INFO becomes a line in the writer's thread.
    """
    if not LOGGER.isEnabledFor(level):
        return
    if _front is not None:
        pairs["front"] = _front
    if _writer is not None and level == logging.INFO and "text" not in pairs:  # which may be long
        _writer.put_event(LogEvent(time.time(), message, pairs))
    else:
        # Not `LOGGER.log`: that would search the stack, for every event, for a caller that no line shows.
        LOGGER.handle(_record(message, level, pairs))


def cannot_accept(error: OSError) -> None:
    """Log that connections wait, because this process can open no more files for them."""
    event("a connection cannot be accepted", level=logging.ERROR, error=error.strerror)


def _record(message: str, level: int, pairs: dict[str, object]) -> _Event:
    record = _Event(LOGGER.name, level, "", 0, message, None, None)
    record.pairs = pairs
    return record


def failure(message: str, error: BaseException, /, **pairs: object) -> None:
    """Log an unexpected exception in one line, with the place where it was raised; the traceback is logged at DEBUG."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
    event(message, level=logging.ERROR, error=f"{type(error).__name__}: {error}", at=place, **pairs)
    LOGGER.debug("%s", message, exc_info=error)


def configure(level: str = "info", form: str = "text", *, stream: TextIO | None = None) -> None:
    """Send the events of this level and above, and warnings of other libraries, to standard error or to `stream`.

    `form` is `text`, `json`, or `auto`: text on a terminal, JSON elsewhere.
    """
    stream = stream or sys.stderr
    _install(logging.StreamHandler(stream), level, as_json=is_json(form, stream))


def send_to(
    sink: LineSink, level: str, *, as_json: bool, descriptor: int | None = None, front: int | None = None
) -> None:
    """Send the events of this level and above to a sink.

    `descriptor` is the sending end of a channel for the events of other processes
    (`flambeau.telemetry.log_writer.channel`). `front`: the number that each event gets, where there are several fronts.
    """
    global _writer, _front  # which follow the one handler that a process has
    _install(_SinkHandler(sink, descriptor), level, as_json=as_json)
    _writer = sink if isinstance(sink, LogWriter) else None
    _front = front


_writer: LogWriter | None = None  # the sink of this process, where it takes events
_front: int | None = None


def _install(handler: logging.Handler, level: str, *, as_json: bool) -> None:
    handler.setFormatter(_formatter(as_json=as_json))
    foreign = logging.getLogger()
    for ours in LOGGER.handlers:
        foreign.removeHandler(ours)
    foreign.addHandler(handler)
    LOGGER.handlers[:] = [handler]
    LOGGER.setLevel(level.upper())
    LOGGER.propagate = False
    if as_json:
        logging.captureWarnings(True)
        sys.excepthook = _uncaught
        threading.excepthook = lambda given: _uncaught(given.exc_type, given.exc_value, given.exc_traceback)


def is_json(form: str, stream: TextIO | None) -> bool:
    """Whether a log of this form is JSON on `stream`, which is `None` if it is closed."""
    return form == "json" or (form == "auto" and not (stream is not None and stream.isatty()))


def _formatter(*, as_json: bool) -> logging.Formatter:
    return _JsonFormatter() if as_json else _LineFormatter()


def gap_line(lines: int, *, as_json: bool) -> bytes:
    """The line in place of `lines` dropped lines."""
    record = _record("lines of the log were dropped", logging.WARNING, {"dropped": lines})
    return _encoded(_formatter(as_json=as_json).format(record))


def rendered(event: LogEvent, *, as_json: bool) -> bytes:
    """The line of an event of the level INFO."""
    created, message, pairs = event
    try:
        if as_json:
            return _one_line(_told(created, "info", message, pairs))
        return _encoded(f"{_now(created, _clock)} INFO    {_in_words(message, pairs)}")
    except Exception as error:  # whatever a pair's text is made by
        return rendered(LogEvent(created, "an event cannot be shown", {"error": type(error).__name__}), as_json=as_json)


def in_json() -> bool:
    """Whether the log is JSON."""
    return any(isinstance(handler.formatter, _JsonFormatter) for handler in LOGGER.handlers)


def descriptor() -> int | None:
    """The descriptor to which our other processes send their events; `None` if they write them themselves."""
    return next((handler.descriptor for handler in LOGGER.handlers if isinstance(handler, _SinkHandler)), None)


def front() -> int | None:
    """The number of the front that this process is, or works for; `None` where there is one front."""
    return _front


def dropped() -> int:
    """How many log lines were lost so far, by this process and by those that send it their events."""
    return sum(handler.sink.dropped for handler in LOGGER.handlers if isinstance(handler, _SinkHandler))


def flush(seconds: float) -> None:
    """Wait for at most `seconds` until everything logged so far is written or lost."""
    for handler in LOGGER.handlers:
        if isinstance(handler, _SinkHandler):
            handler.sink.flush(seconds)


class _SinkHandler(logging.Handler):
    """Gives lines to a sink. It never raises, and prints nothing of its own."""

    def __init__(self, sink: LineSink, descriptor: int | None) -> None:
        super().__init__()
        self.sink = sink
        self.descriptor = descriptor

    def emit(self, record: logging.LogRecord) -> None:
        if self.sink.full():
            self.sink.lose(1)
            return
        try:
            line = self.format(record)
        except Exception as error:  # of another library: its arguments do not fit its message
            line = self.format(
                _record("an event cannot be shown", logging.ERROR, {"logger": record.name, "error": error})
            )
        self.sink.put(_encoded(line))


def _uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    if error is not None:
        LOGGER.critical("unexpected end", exc_info=(kind, error, trace))


class _LineFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = f"{_now(record.created, _clock)} {record.levelname:<7} {_message(record)}"
        if record.exc_info:  # the text may contain a client's data, and must not look like a line of ours
            shown = self.formatException(record.exc_info)
            line += "".join(f"\n    | {_printable(each)}" for each in shown.split("\n"))
        return line


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        if isinstance(record, _Event):
            found = _told(record.created, record.levelname.lower(), str(record.msg), record.pairs)
        else:
            found = _told(record.created, record.levelname.lower(), "message", {})
            found |= {"logger": record.name, "text": _cut(record.getMessage(), _LONGEST_TEXT)}
        if record.exc_info:
            found["traceback"] = self.formatException(record.exc_info)[-_LONGEST_TRACEBACK:]
        return _one_line(found).decode().removesuffix("\n")


def _told(created: float, level: str, message: str, pairs: Mapping[str, object]) -> dict[str, Any]:
    """What the JSON of an event says."""
    found: dict[str, Any] = {
        "time": f"{_now(created, _utc)}Z", "level": level, "event": message
    }  # fmt: skip
    for key, value in pairs.items():
        if value is not None:
            kind = type(value)
            plain = kind is int or (kind is str and len(value) <= _LONGEST_VALUE)  # type: ignore[arg-type]  # a str
            found[key] = value if plain else _json_value(value, _LONGEST_TEXT if key == "text" else _LONGEST_VALUE)
    return found


def _one_line(found: dict[str, Any]) -> bytes:
    """A JSON object in one line, with its end, printable whatever its texts contain."""
    try:
        line = msgspec.json.encode(found)
    except UnicodeEncodeError:  # half of a surrogate pair, which cannot be encoded
        whole = {key: _encodable(value) if isinstance(value, str) else value for key, value in found.items()}
        line = msgspec.json.encode(whole)
    if line.isascii() and b"\x7f" not in line:  # JSON escapes every other control character of ASCII
        return line + b"\n"
    # What may be left: 8-bit control codes for terminals, line ends of other alphabets and the like.
    text = line.decode()
    return _encoded(
        text if text.isprintable() else "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)
    )


def _encoded(line: str) -> bytes:
    return f"{line}\n".encode("utf-8", "backslashreplace")


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _json_value(value: object, longest: int) -> float | str:
    if isinstance(value, int):
        return value
    return round(value, 3) if isinstance(value, float) else _cut(str(value), longest)


def _cut(text: str, longest: int = _LONGEST_VALUE) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _message(record: logging.LogRecord) -> str:
    """The record's message. One of another library gets its name, and is cut and escaped: it may contain anything."""
    if isinstance(record, _Event):
        return record.getMessage()
    return f"{_render(record.getMessage())} logger={record.name}"


def _render(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.1f}"
    text = _printable(_cut(str(value)))
    if text and " " not in text and '"' not in text:
        return text
    escaped = text.replace('"', '\\"')
    return f'"{escaped}"'


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _now(created: float, in_seconds: Callable[[int], str]) -> str:
    second = int(created)
    return f"{in_seconds(second)}.{int(1000 * (created - second)):03d}"


@functools.lru_cache(maxsize=1)
def _clock(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(second))


@functools.lru_cache(maxsize=1)
def _utc(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
