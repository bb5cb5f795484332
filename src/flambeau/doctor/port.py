"""The address that a service would listen on: whether it is free, and who could reach it."""

import socket
from collections.abc import Iterator

from flambeau.doctor.diagnosis import Finding
from flambeau.errors import PortInUse
from flambeau.http.listening import bind
from flambeau.settings.service import Settings, is_local, unix_path


def look(settings: Settings) -> Iterator[Finding]:
    """Take the address for a moment."""
    host, port = settings.host, settings.port
    if unix_path(host) is not None:
        yield _socket_file(host)
        return
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
    reach = "this machine alone" if is_local(host) else "everybody who can reach this machine"
    yield Finding("address", "fine", f"{where} is free, for {reach}")


def _socket_file(host: str) -> Finding:
    try:
        bind(host, 0).close()
    except PortInUse as error:
        what, _, remedy = str(error).rpartition(": ")
        return Finding("address", "broken", what, remedy)
    return Finding("address", "fine", f"{host} is free, for this machine alone")
