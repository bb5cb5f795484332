"""This process's connection to a Ray cluster: one for all of its runners, joined by the first and left by the last.

Whatever of Ray may block (joining, starting and killing actors, filling the object store) runs in threads that nobody
waits for at exit: a cluster whose head is gone must not keep a service from ending.
"""

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from flambeau.errors import ConfigError, EngineError
from flambeau.telemetry import logs

T = TypeVar("T")

NAMESPACE = "flambeau"
LOCAL = "local"
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is reported to anybody
    "RAY_COLOR_PREFIX": "0",  # what replicas print comes through Ray into our log
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "86400",  # a front outlives the cluster's head for so long, not a minute
}
_JOIN_SECONDS = 40.0  # for the cluster to let us in
_CONNECT_SECONDS = 5.0
_LEAVE_SECONDS = 30.0
_LOCAL_SECONDS = 120.0  # for a cluster of our own to start
_END_SECONDS = 20.0  # for it to end


async def in_thread(step: Callable[[], T]) -> T:
    """Run a step that may block for ever, in a daemon thread. If the caller is cancelled, its result is dropped."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result: T | None = None
        failed: BaseException | None = None
        try:
            result = step()
        except BaseException as error:
            failed = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(settle, result, failed)

    threading.Thread(target=run, name="ray", daemon=True).start()
    return await done


class RayConnection:
    """The connection. `ray` is the module, once somebody has joined."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._address: str | None = None
        self._joined = False  # by us: a program that has joined already stays in its cluster
        self._local: subprocess.Popen[str] | None = None

    async def join(self, address: str) -> Any:
        """The module `ray`, connected to the cluster at `address`, which is `auto`, `local` or HOST:PORT.

        Raises `SetupError` where there is no Ray, or no such cluster.
        """
        seconds = _JOIN_SECONDS + (_LOCAL_SECONDS if address == LOCAL else 0.0)
        try:
            return await asyncio.wait_for(in_thread(lambda: self._join(address)), seconds)
        except TimeoutError:
            raise EngineError(
                f"the Ray cluster at {address} did not let this process in within {seconds:g} seconds: is the address "
                "its head's, and the token (RAY_AUTH_TOKEN) its own?"
            ) from None

    async def leave(self) -> None:
        """One user fewer. The last one disconnects, and ends a cluster of our own."""
        with contextlib.suppress(TimeoutError):  # its head may be gone
            await asyncio.wait_for(in_thread(self._leave), _LEAVE_SECONDS)

    def _join(self, address: str) -> ModuleType:
        if address.startswith("ray://"):
            raise ConfigError(
                f"--ray-address {address}: a front is a part of its cluster, and not a Ray client: run it on a node, "
                "and write auto, or the head's HOST:PORT"
            )
        with self._lock:
            for name, value in _ENVIRONMENT.items():
                os.environ.setdefault(name, value)
            if address == LOCAL and not self._users and "ray" not in sys.modules:
                os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}  # read at the import
            try:
                import ray
            except ImportError as error:
                raise EngineError(f"--runner ray needs Ray ({error}): pip install 'flambeau[ray]'") from None
            if not self._users and not ray.is_initialized():
                self._connect(ray, address)
            elif self._joined and address != self._address:
                raise ConfigError(f"this process is in the cluster {self._address}, and cannot join {address} too")
            self._users += 1
            return ray  # type: ignore[no-any-return]

    def _connect(self, ray: Any, address: str) -> None:
        if address == LOCAL and "RAY_AUTH_TOKEN" not in os.environ:
            raise EngineError(
                "--ray-address local: this program has imported Ray, which cannot be given a token any more: call "
                "ray.init() before, and that cluster is taken"
            )
        where = self._start_local() if address == LOCAL else address
        if (there := _bootstrap_address(where)) and not _listens(there):
            raise EngineError(_nobody(address, f"nobody listens at {there}"))
        try:
            ray.init(
                address=where, namespace=NAMESPACE, logging_level=logging.ERROR, log_to_driver=True,
                configure_logging=True,
            )  # fmt: skip
        except ConnectionError as error:
            self._end_local()
            raise EngineError(_nobody(address, str(error).strip().partition("\n")[0])) from None
        except (RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
            self._end_local()
            raise EngineError(f"the Ray cluster at {address} cannot be joined: {error}") from None
        self._address, self._joined = address, True
        cpus = ray.cluster_resources().get("CPU", 0)
        logs.event("joined a Ray cluster", address=ray.get_runtime_context().gcs_address, cpus=f"{cpus:g}")

    def _start_local(self) -> str:
        """Start a cluster of one node in a process of its own, and return its address."""
        process = subprocess.Popen(
            [sys.executable, "-m", "flambeau.runners.ray.local"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        self._local = process
        timer = threading.Timer(_LOCAL_SECONDS, process.kill)
        timer.start()
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
        finally:
            timer.cancel()
        if not address:
            self._end_local()
            raise EngineError("a local Ray cluster cannot be started: its process says why")
        return address

    def _end_local(self) -> None:
        process, self._local = self._local, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()  # it ends then, and Ray with it
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()

    def _leave(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users or not self._joined:
                return
            self._joined = False
            import ray

            ray.shutdown()
            self._end_local()


def _bootstrap_address(address: str) -> str:
    """HOST:PORT of the head, as far as it can be known: Ray would try an address where nobody listens for long."""
    if address != "auto":
        return address
    if told := os.environ.get("RAY_ADDRESS"):
        return told
    with contextlib.suppress(OSError):  # where Ray notes the cluster that was started here last
        return Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster").read_text().strip()  # noqa: S108
    return ""


def _listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return True  # that is for Ray to say
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def _nobody(address: str, why: str) -> str:
    return (
        f"no Ray cluster answers at {address} ({why}): start one with ray start --head, or have one started on this "
        "machine with --ray-address local"
    )


CONNECTION = RayConnection()
"""Ray knows one for each process."""
