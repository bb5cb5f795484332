"""What a service of systemd is told and tells: the socket that systemd listens on for it, and its own state.

Both contracts are a few variables and one datagram, so no library is needed: sd_listen_fds(3) and sd_notify(3). Other
supervisors speak them, too. Without their variables nothing happens here. It knows no settings and no service.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Mapping

from flambeau.errors import ConfigError

VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC")
"""What systemd tells one process, and no child of it."""

_FIRST_DESCRIPTOR = 3


def socket_from(environment: Mapping[str, str]) -> socket.socket | None:
    """The socket that systemd listens on for this process; `None` if there is none.

    Raises `ConfigError` for several, or for one that is not a stream socket that listens.
    """
    if environment.get("LISTEN_PID") != str(os.getpid()):  # of another process, whose variables were inherited
        return None
    count = environment.get("LISTEN_FDS", "")
    if count != "1":
        raise ConfigError(f"LISTEN_FDS={count}: name one address in the socket unit, as ListenStream=127.0.0.1:5000")
    os.set_inheritable(_FIRST_DESCRIPTOR, False)
    try:
        given = socket.socket(fileno=_FIRST_DESCRIPTOR)
        fits = given.type == socket.SOCK_STREAM and given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise ConfigError(f"LISTEN_FDS=1, but descriptor 3 is no socket ({error.strerror})") from error
    if not fits:
        raise ConfigError(
            "the socket of LISTEN_FDS does not listen: take ListenStream= and Accept=no in the socket unit"
        )
    return given


def host_and_port(given: socket.socket) -> tuple[str, int]:
    """The address of a socket as `--host` and `--port` write it; the port of a Unix socket is 0."""
    name = given.getsockname()
    if isinstance(name, tuple):
        return str(name[0]), int(name[1])
    return f"unix:{name if isinstance(name, str) else name.decode(errors='replace')}", 0


class Supervisor:
    """Whoever started this process and wants to be told about it: systemd with `Type=notify`, or nobody."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        path = environment.get("NOTIFY_SOCKET", "")
        self._address = f"\0{path[1:]}" if path.startswith("@") else path
        mine = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        microseconds = environment.get("WATCHDOG_USEC", "")
        self._beat = int(microseconds) / 1e6 / 2 if mine and microseconds.isdecimal() else 0.0

    def tell(self, *lines: str) -> None:
        """Send lines such as `READY=1`. A supervisor that is gone is no fault of the service."""
        if self._address and hasattr(socket, "AF_UNIX"):
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.setblocking(False)
                sender.sendto("\n".join(lines).encode(), self._address)

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Tell a watchdog again and again, until the block is left, that the loop runs."""

        async def beat() -> None:
            while True:
                self.tell("WATCHDOG=1")
                await asyncio.sleep(self._beat)

        beating = asyncio.get_running_loop().create_task(beat()) if self._beat else None
        try:
            yield
        finally:
            if beating is not None:
                beating.cancel()
