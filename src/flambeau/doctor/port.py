"""The address that a service would listen on: whether it is free, and who could reach it."""

import socket
from collections.abc import Iterator

from flambeau.config import LOOPBACK, Settings
from flambeau.doctor.finding import Finding


def look(settings: Settings) -> Iterator[Finding]:
    """Take the address for a moment."""
    host, port = settings.host, settings.port
    where = f"{host}:{port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        yield Finding(
            "address", "broken", f"{where} cannot be listened on: {error.strerror}",
            "stop who has it, or take another: --port 0 takes a free one",
        )  # fmt: skip
        return
    reach = "this machine alone" if host in LOOPBACK else "everybody who can reach this machine"
    yield Finding("address", "fine", f"{where} is free, for {reach}")
