"""The signals that stop a service: SIGTERM, SIGINT and SIGHUP. It stops nothing itself."""

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator

HANGUP: signal.Signals | None = getattr(signal, "SIGHUP", None)
"""A terminal that closes sends it twice, from the kernel and from its shell. Windows has none."""


@contextlib.contextmanager
def handled(stop: Callable[[int], None]) -> Iterator[None]:
    """Call `stop` with the number of each such signal, on the running loop, until the block is left.

    A SIGHUP that was ignored at the start (nohup) stays ignored: the process is meant to outlive its terminal.
    """
    numbers = [signal.SIGINT, signal.SIGTERM]
    if HANGUP is not None and signal.getsignal(HANGUP) is not signal.SIG_IGN:
        numbers.append(HANGUP)
    loop = asyncio.get_running_loop()
    before = {each: signal.getsignal(each) for each in numbers}
    for each in numbers:
        signal.signal(each, lambda number, _: loop.call_soon_threadsafe(stop, number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
