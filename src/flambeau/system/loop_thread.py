"""An event loop in a thread of its own, for callers without one; and resources that a forked child must not inherit."""

import asyncio
import concurrent.futures
import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Coroutine
from typing import Any, Generic, Protocol, TypeVar

from flambeau.errors import RequestError

T = TypeVar("T")

_END_SECONDS = 5.0  # for cancelled tasks on the loop to end


class LoopThread:
    """A running loop. Any number of threads may run coroutines on it; when it closes, none waits for ever."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._loop = asyncio.new_event_loop()
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, step: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end, and return its result or raise what it raised.

        Raises `RequestError` (`draining`) when the loop is closed, or is closed meanwhile. If the caller is interrupted
        (Ctrl-C, a gevent timeout), the coroutine is cancelled.
        """
        future = self._begin(step)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise _closed(self._name) from None
        finally:
            future.cancel()

    def _begin(self, step: Coroutine[Any, Any, T]) -> "concurrent.futures.Future[T]":
        with self._lock:
            if self._closed:
                step.close()
                raise _closed(self._name)
            return asyncio.run_coroutine_threadsafe(step, self._loop)

    async def wait(self, step: Coroutine[Any, Any, T]) -> T:
        """As `run`, for a caller on another loop, without blocking it. Cancelling the caller cancels the coroutine."""
        future = self._begin(step)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if caller is not None and caller.cancelling():
                raise
            raise _closed(self._name) from None

    def close(self) -> None:
        """End the loop within seconds: tasks that still run are cancelled. A second call does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            ended = asyncio.run_coroutine_threadsafe(_cancel_all(), self._loop)
        with contextlib.suppress(TimeoutError, concurrent.futures.TimeoutError):
            ended.result(_END_SECONDS + 1)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_END_SECONDS)
        if not self._thread.is_alive():
            self._loop.close()


async def _cancel_all() -> None:
    if tasks := asyncio.all_tasks() - {asyncio.current_task()}:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=_END_SECONDS)


def _closed(name: str) -> RequestError:
    return RequestError(f"{name} is closed", code="draining")


class PerProcess(Generic[T]):
    """A value that belongs to one process, such as threads: a forked child (gunicorn --preload) makes its own at first
    use.

    While one thread makes it, the others wait: none sees the parent's value, whose threads the child does not have.
    """

    def __init__(self, name: str, make: Callable[[], T]) -> None:
        self._name = name
        self._make = make
        self._closed = False
        self._lock = threading.Lock()
        self._made = (os.getpid(), make())
        renew_lock_in_children(self)

    def get(self) -> T:
        """This process's value. Raises `RequestError` (`draining`) when it is closed, here or before the fork."""
        if self._closed:
            raise _closed(self._name)
        process, made = self._made
        if process == os.getpid():
            return made
        with self._lock:
            if self._made[0] != os.getpid():
                self._made = (os.getpid(), self._make())
            return self._made[1]

    def close(self) -> T | None:
        """Hand this process's value to the caller, who ends it; `None` if there is none, or it was closed before."""
        with self._lock:
            closed, self._closed = self._closed, True
            process, made = self._made
            return None if closed or process != os.getpid() else made


class Locked(Protocol):
    """An object with a lock of its own."""

    _lock: threading.Lock


def renew_lock_in_children(owner: Locked) -> None:
    """Give forked children a fresh lock: the old one may be held for ever by a thread that the child does not have."""
    reference = weakref.ref(owner)

    def renew() -> None:
        if (found := reference()) is not None:
            found._lock = threading.Lock()

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=renew)
