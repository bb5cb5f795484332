"""TLS handshakes of a server, within bounds: how many are under way, and how long one may take.

asyncio's own server begins one for everybody who connects, waits a minute for it, and tells nobody meanwhile: clients
that connect and say nothing would take all files that the process may open. It knows no protocol and no setting.
"""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable

_ACCEPTED_AT_ONCE = 16  # in one turn of the loop: those that are under way go on in between
_PAUSE = 1.0  # seconds, where no more files can be opened


class Handshakes:
    """Turns accepted connections into encrypted ones, each with a protocol of its own.

    The oldest handshake is given up where more than `most` are under way, and each after `seconds`.
    """

    def __init__(
        self,
        context: ssl.SSLContext,
        *,
        make: Callable[[], asyncio.BaseProtocol],
        most: int,
        seconds: float,
        tell_full: Callable[[OSError], None],
    ) -> None:
        """`make` makes the protocol of a connection, which is told of it when its handshake is over.

        `tell_full` is called when those who connect have to wait, because no more files can be opened: once, until a
        connection is accepted again.
        """
        self._context, self._make, self.tell_full = context, make, tell_full
        self._most, self._seconds = most, seconds
        self._under_way: dict[asyncio.Task[None], socket.socket] = {}

    def __len__(self) -> int:
        """How many are under way."""
        return len(self._under_way)

    def begin(self, connection: socket.socket) -> None:
        """Encrypt a connection that does not block, without waiting for it."""
        _ = self._begin(connection)  # which is held until it is over

    def _begin(self, connection: socket.socket) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(self._encrypt(connection))
        self._under_way[task] = connection
        task.add_done_callback(self._over)
        if len(self._under_way) > self._most:
            next(iter(self._under_way)).cancel()
        return task

    async def of(self, connection: socket.socket) -> None:
        """Encrypt a connection, and return when it is. Raises `OSError`."""
        task = self._begin(connection)
        await asyncio.wait([task])
        if task.cancelled():
            raise ConnectionAbortedError("too many handshakes are under way")
        task.result()

    def give_up(self) -> None:
        """End those that are under way."""
        for each in list(self._under_way):
            each.cancel()

    async def listen(self, bound: socket.socket, *, backlog: int) -> "Accepting":
        """Accept connections of a bound socket from now on. Raises `OSError` if its port has been taken."""
        try:
            return Listening(self, bound, backlog)
        except NotImplementedError:  # the loop of Windows: there handshakes are bounded in time, and not in number
            return await asyncio.get_running_loop().create_server(
                self._make, sock=bound, ssl=self._context, ssl_handshake_timeout=self._seconds, backlog=backlog
            )

    async def _encrypt(self, connection: socket.socket) -> None:
        await asyncio.get_running_loop().connect_accepted_socket(
            self._make, connection, ssl=self._context, ssl_handshake_timeout=self._seconds
        )

    def _over(self, task: "asyncio.Task[None]") -> None:
        connection = self._under_way.pop(task)
        if task.cancelled() or task.exception() is not None:
            connection.close()


class Listening:
    """A socket that listens for connections to be encrypted, until `close`."""

    def __init__(self, handshakes: Handshakes, bound: socket.socket, backlog: int) -> None:
        self._handshakes, self._bound = handshakes, bound
        self._loop = asyncio.get_running_loop()
        self._waits: asyncio.TimerHandle | None = None
        self._full = False
        bound.setblocking(False)
        bound.listen(backlog)
        self._loop.add_reader(bound.fileno(), self._accept)

    def close(self) -> None:
        """Accept nothing more, and close the socket."""
        if self._waits is not None:
            self._waits.cancel()
        self._loop.remove_reader(self._bound.fileno())
        self._bound.close()

    def _accept(self) -> None:
        for _ in range(_ACCEPTED_AT_ONCE):
            try:
                connection, _ = self._bound.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # no more files can be opened
                if not self._full:
                    self._handshakes.tell_full(error)
                self._full = True
                self._loop.remove_reader(self._bound.fileno())
                self._waits = self._loop.call_later(_PAUSE, self._go_on)
                return
            self._full = False
            connection.setblocking(False)
            with contextlib.suppress(OSError):  # a socket of the file system has none
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._handshakes.begin(connection)

    def _go_on(self) -> None:
        self._waits = None
        self._loop.add_reader(self._bound.fileno(), self._accept)


Accepting = asyncio.Server | Listening
"""What listens, encrypted or not."""
