"""gRPC over TLS with clients that mean no good: what is agreed, what is refused, and that nothing of it stays."""

import contextlib
import os
import select
import signal
import socket
import ssl
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
import tritonclient.grpc as triton

from flambeau.grpc import http2_frames as frames
from tests.support.grpc_server import GrpcServer, assert_right, grpc_serving, inputs, rows
from tests.support.http2_wire import Wire, assert_answers
from tests.support.server import Serve
from tests.support.tensor_bundles import Several

_CONNECTIONS = 4  # --max-connections; of gRPC there may be twice as many, and as many handshakes
_SECONDS = 2  # --header-timeout


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    subprocess.run(
        [*command.split(), "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", "key.pem", "-out",
         "cert.pem"], cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    return folder


@contextlib.contextmanager
def over_tls(serve: Serve, network: Several, certificate: Path) -> Iterator[GrpcServer]:
    files = ("--tls-certificate", certificate / "cert.pem", "--tls-key", certificate / "key.pem")
    limits = ("--max-connections", _CONNECTIONS, "--header-timeout", _SECONDS, "--write-timeout", 2)
    with grpc_serving(serve, network.bundle.path, *files, *limits) as started:
        yield started


@pytest.fixture(scope="module")
def encrypted(serve: Serve, network: Several, certificate: Path) -> Iterator[GrpcServer]:
    with over_tls(serve, network, certificate) as started:
        yield started


def connected(server: GrpcServer) -> socket.socket:
    host, _, port = server.target.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=30)


def context(certificate: Path, *protocols: str) -> ssl.SSLContext:
    made = ssl.create_default_context(cafile=str(certificate / "cert.pem"))
    if protocols:
        made.set_alpn_protocols(list(protocols))
    return made


class SafeWire(Wire):
    """A client of HTTP/2 over TLS that sends what it is told to."""

    def __init__(self, server: GrpcServer, certificate: Path, *protocols: str) -> None:
        self._certificate, self._protocols = certificate, protocols
        super().__init__(server)

    def connect(self, server: GrpcServer) -> socket.socket:
        return context(self._certificate, *self._protocols).wrap_socket(connected(server), server_hostname="localhost")

    def agreed(self) -> str | None:
        assert isinstance(self._socket, ssl.SSLSocket)
        return self._socket.selected_alpn_protocol()


def files(server: GrpcServer) -> int:
    """The files that the server has open."""
    return len(os.listdir(f"/proc/{server.http.process.pid}/fd"))


def wait_for(what: Callable[[], bool], seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.05)  # nobody tells when a connection is gone


def assert_untouched(server: GrpcServer, network: Several, certificate: Path) -> None:
    with triton.InferenceServerClient(
        server.target, ssl=True, root_certificates=str(certificate / "cert.pem")
    ) as client:
        assert_right(network, rows(2), client.infer("several", inputs(rows(2))))
    assert server.http.process.poll() is None
    assert not server.lines("Traceback")
    assert not server.lines("failed unexpectedly")


@pytest.mark.parametrize(
    ("offered", "agreed"),
    [(("h2",), "h2"), (("h2", "http/1.1"), "h2"), (("http/1.1", "h2"), "h2"), ((), None)],
)  # fmt: skip
def test_h2_is_agreed_where_it_is_offered(
    encrypted: GrpcServer, certificate: Path, right: bytes, offered: tuple[str, ...], agreed: str | None
) -> None:
    """Clients that offer nothing know what they connect to."""
    with SafeWire(encrypted, certificate, *offered) as wire:
        assert wire.agreed() == agreed
        assert_answers(wire, 1, right)


def test_http1_is_not_agreed_and_told(encrypted: GrpcServer, certificate: Path) -> None:
    safe = context(certificate, "http/1.1").wrap_socket(connected(encrypted), server_hostname="localhost")
    with safe:
        assert safe.selected_alpn_protocol() is None
        safe.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        found = b""
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            while piece := safe.recv(4096):
                found += piece
    assert b"does not begin as one of HTTP/2 does" in found


# Clients that do harm: each is a connection that ends by itself, or that the server ends


def plain_http2(server: GrpcServer, _: Path) -> None:
    with connected(server) as sock:
        sock.sendall(frames.PREFACE + frames.settings({}))
        assert frames.settings({}) not in read_all(sock)


def garbage(server: GrpcServer, _: Path) -> None:
    for size in (1, 5, 100, 70_000):
        with connected(server) as sock, contextlib.suppress(ConnectionError):
            sock.sendall(b"\x16\x03\x01\xff\xff" + b"\xa5" * size)
            sock.shutdown(socket.SHUT_WR)
            read_all(sock)


def a_hello_that_is_cut(server: GrpcServer, certificate: Path) -> None:
    hello = first_flight(certificate)
    for size in (1, 5, 6, len(hello) // 2, len(hello) - 1):
        with connected(server) as sock:
            sock.sendall(hello[:size])


def a_hello_with_faults(server: GrpcServer, certificate: Path) -> None:
    hello = first_flight(certificate)
    for place in range(0, len(hello), 16):
        with connected(server) as sock, contextlib.suppress(ConnectionError):
            sock.sendall(hello[:place] + bytes((hello[place] ^ 0xFF,)) + hello[place + 1 :])
            sock.shutdown(socket.SHUT_WR)
            read_all(sock)


def who_does_not_trust(server: GrpcServer, _: Path) -> None:
    with connected(server) as sock, pytest.raises(ssl.SSLCertVerificationError):
        ssl.create_default_context().wrap_socket(sock, server_hostname="localhost")


def of_another_name(server: GrpcServer, certificate: Path) -> None:
    with connected(server) as sock, pytest.raises(ssl.SSLCertVerificationError):
        context(certificate, "h2").wrap_socket(sock, server_hostname="example.com")


def old_versions(server: GrpcServer, certificate: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        old = context(certificate)
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    with connected(server) as sock, pytest.raises(ssl.SSLError):
        old.wrap_socket(sock, server_hostname="localhost")


def gone_after_the_handshake(server: GrpcServer, certificate: Path) -> None:
    for _ in range(20):
        sock = context(certificate, "h2").wrap_socket(connected(server), server_hostname="localhost")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # with a reset
        sock.close()


def gone_within_a_call(server: GrpcServer, certificate: Path) -> None:
    for _ in range(20):
        with SafeWire(server, certificate, "h2") as wire:
            wire.send(frames.HEADERS, frames.END_HEADERS, 1, wire.block())
            wire.send(frames.DATA, 0, 1, b"\0\0\0\1\0" + bytes(100))


def no_more_tls(server: GrpcServer, certificate: Path) -> None:
    """Bytes that are not encrypted, on a connection that is."""
    with connected(server) as sock:
        safe = context(certificate, "h2").wrap_socket(sock.dup(), server_hostname="localhost")
        sock.sendall(frames.PREFACE * 10)
        with contextlib.suppress(ConnectionError):
            read_all(sock)
        safe.close()


def half_closed(server: GrpcServer, certificate: Path) -> None:
    """TLS is closed from the client's side, and its socket stays."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    made = context(certificate, "h2").wrap_bio(incoming, outgoing, server_hostname="localhost")
    with connected(server) as sock:
        while True:
            try:
                made.do_handshake()
                break
            except ssl.SSLWantReadError:
                sock.sendall(outgoing.read())
                incoming.write(sock.recv(1 << 16))
        made.write(frames.PREFACE + frames.settings({}))
        with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLSyscallError):
            made.unwrap()
        sock.sendall(outgoing.read())
        read_all(sock)  # the server closes its side


def renegotiation(server: GrpcServer, certificate: Path) -> None:
    """TLS 1.2 lets a client ask for a new handshake, which costs a server more than the client."""
    done = subprocess.run(
        ["openssl", "s_client", "-connect", server.target, "-tls1_2", "-alpn", "h2", "-legacy_renegotiation"],
        input=b"R\nR\n", capture_output=True, timeout=60,
    )  # fmt: skip
    told = (done.stderr + done.stdout).lower()
    assert b"renegotiating" in told
    assert b"no renegotiation" in told


def first_flight(certificate: Path) -> bytes:
    outgoing = ssl.MemoryBIO()
    made = context(certificate, "h2").wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        made.do_handshake()
    return outgoing.read()


def read_all(sock: socket.socket) -> bytes:
    found = b""
    while piece := sock.recv(1 << 16):
        found += piece
    return found


HOSTILE = [
    plain_http2, garbage, a_hello_that_is_cut, a_hello_with_faults, who_does_not_trust, of_another_name, old_versions,
    gone_after_the_handshake, gone_within_a_call, no_more_tls, half_closed, renegotiation,
]  # fmt: skip


@pytest.mark.parametrize("client", HOSTILE)
def test_nothing_stays_of_a_hostile_client(
    encrypted: GrpcServer, network: Several, certificate: Path, client: Callable[[GrpcServer, Path], None]
) -> None:
    assert_untouched(encrypted, network, certificate)
    wait_for(lambda: not established(encrypted))
    before = files(encrypted)
    client(encrypted, certificate)
    assert_untouched(encrypted, network, certificate)
    wait_for(lambda: files(encrypted) <= before)


def established(server: GrpcServer) -> int:
    """The connections at the port of gRPC that nobody has closed."""
    port = f":{int(server.target.rpartition(':')[2]):04X}"
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(fields[1].endswith(port) and fields[3] == "01" for fields in lines)


def test_silent_handshakes_are_bounded_and_others_are_answered(
    encrypted: GrpcServer, network: Several, certificate: Path
) -> None:
    wait_for(lambda: not established(encrypted))
    before = files(encrypted)
    with contextlib.ExitStack() as silent:
        opened = [silent.enter_context(connected(encrypted)) for _ in range(60)]
        wait_for(lambda: established(encrypted) <= _CONNECTIONS)
        assert files(encrypted) <= before + _CONNECTIONS
        assert_untouched(encrypted, network, certificate)
        ready, _, _ = select.select(opened, [], [], 0)
        assert len(ready) >= len(opened) - _CONNECTIONS
        for each in opened:  # the last ones after --header-timeout
            with contextlib.suppress(ConnectionError):
                assert each.recv(1) == b""
    wait_for(lambda: files(encrypted) <= before)


def test_a_handshake_byte_by_byte_ends_in_time(encrypted: GrpcServer, certificate: Path) -> None:
    hello = first_flight(certificate)
    with connected(encrypted) as sock, contextlib.suppress(ConnectionError):
        for byte in hello:
            sock.sendall(bytes((byte,)))
            if select.select([sock], [], [], _SECONDS / 20)[0]:
                break
        else:
            raise AssertionError("the whole handshake was waited for")
        assert sock.recv(1) == b""


def test_connections_are_bounded_and_an_idle_one_makes_room(
    encrypted: GrpcServer, network: Several, certificate: Path, right: bytes
) -> None:
    with contextlib.ExitStack() as opened:
        wires = [opened.enter_context(SafeWire(encrypted, certificate, "h2")) for _ in range(3 * _CONNECTIONS)]
        assert_answers(wires[-1], 1, right)
        assert wires[0].end() == "NO_ERROR"
        wait_for(lambda: established(encrypted) <= 2 * _CONNECTIONS)
    assert_untouched(encrypted, network, certificate)


def test_a_stop_waits_for_no_silent_handshake_and_for_those_that_come(
    serve: Serve, network: Several, certificate: Path
) -> None:
    with over_tls(serve, network, certificate) as server, contextlib.ExitStack() as opened:
        for _ in range(3):
            opened.enter_context(connected(server))
        sock = opened.enter_context(connected(server))
        sock.sendall(b"garbage that is no hello")
        server.http.process.send_signal(signal.SIGTERM)
        assert server.http.process.wait(30) == 0
        assert not server.lines("Traceback")


def test_a_client_without_tls_is_refused(encrypted: GrpcServer) -> None:
    with encrypted.channel() as plain, pytest.raises(grpc.RpcError) as refused:
        plain.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=10)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
