"""What a client gets when no front can take its connection: a short 503, without a look at what it asks.

Over TLS there is nobody who could answer, and the connection is closed.
"""

import asyncio
import contextlib
import socket

_BODY = b'{"error":"no front of this service can take the connection: try again","code":"overloaded","retryable":true}'
_ANSWER = b"\r\n".join(
    (
        b"HTTP/1.1 503 Service Unavailable",
        b"Content-Type: application/json",
        b"Content-Length: %d" % len(_BODY),
        b"Retry-After: 1",
        b"Connection: close",
        b"",
        _BODY,
    )
)
_LINGER = 2.0  # seconds in which the client may still send, so that it can read the answer


async def turn_away(connection: socket.socket, *, encrypted: bool) -> None:
    """Answer 503 and close; over TLS only close."""
    loop = asyncio.get_running_loop()
    with connection, contextlib.suppress(OSError, TimeoutError):
        if encrypted:
            return
        connection.setblocking(False)
        async with asyncio.timeout(_LINGER):
            await loop.sock_recv(connection, 65536)  # else the client has not asked yet, and would not read
            await loop.sock_sendall(connection, _ANSWER)
            connection.shutdown(socket.SHUT_WR)
            while await loop.sock_recv(connection, 65536):
                pass
