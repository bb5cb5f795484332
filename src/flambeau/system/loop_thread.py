"""An event loop in a thread of its own, for callers that have none; and what is to live in one process and no child."""

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

_END_SECONDS = 5.0  # for what runs on the loop to take notice that it ends


class LoopThread:
    """A running loop. Any number of threads may have it run coroutines; none waits for one that cannot end."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._loop = asyncio.new_event_loop()
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, step: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine to its end, and return its result or raise what it raised.

        Raises `RequestError` (`draining`) when the loop is closed, or is closed meanwhile. A caller that is interrupted
        (Ctrl-C, a timeout of gevent's) takes the coroutine along.
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
        """The same for a caller on another loop, which does not stand still meanwhile. Cancelled, it takes it along."""
        future = self._begin(step)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if caller is not None and caller.cancelling():
                raise
            raise _closed(self._name) from None

    def close(self) -> None:
        """End the loop, within seconds: what still runs on it is cancelled. A second call does nothing."""
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
    """What belongs to one process, such as threads: a forked child (gunicorn --preload) makes its own at first use.

    While one thread makes it, the others wait: none sees the parent's, of which the child has but the shell.
    """

    def __init__(self, name: str, make: Callable[[], T]) -> None:
        self._name = name
        self._make = make
        self._closed = False
        self._lock = threading.Lock()
        self._made = (os.getpid(), make())
        renew_lock_in_children(self)

    def get(self) -> T:
        """This process's own. Raises `RequestError` (`draining`) when it is closed, here or before the fork."""
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
        """Give away this process's own, for the caller to end; `None` when it has none, or it was given away before."""
        with self._lock:
            closed, self._closed = self._closed, True
            process, made = self._made
            return None if closed or process != os.getpid() else made


class Locked(Protocol):
    """What is guarded by a lock of its own."""

    _lock: threading.Lock


def renew_lock_in_children(owner: Locked) -> None:
    """Give forked children a lock that is free: a thread that they do not have may hold the parent's for ever."""
    reference = weakref.ref(owner)

    def renew() -> None:
        if (found := reference()) is not None:
            found._lock = threading.Lock()

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=renew)
