"""The address that `flambeau serve` listens on: a port, or a Unix socket, bound before anything is loaded.

The file of a Unix socket outlives a process that was killed. So each server holds a lock beside its file. That tells an
abandoned file, which is replaced, from that of a server which is still loading its model.
"""

import contextlib
import ctypes
import os
import socket
import ssl
import stat
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from flambeau.errors import ConfigError, PortInUse
from flambeau.http import systemd
from flambeau.settings.hosts import unix_path
from flambeau.settings.service import Settings
from flambeau.system.handshakes import Accepting

_LONGEST_PATH = 107  # bytes, of sun_path in unix(7), which ends in a zero


@dataclass(frozen=True, slots=True)
class Address:
    """An address that is bound, but not listened on yet."""

    bound: socket.socket
    file: Path | None = None
    """The file of a Unix socket."""
    lock: int | None = None
    """The descriptor that holds the lock beside that file."""
    setting: str = "--port"
    """The setting that chose the port."""
    lent: bool = False
    """Whether systemd listens on it: then it goes on when this process ends, and its file is not ours."""

    def url(self, scheme: str) -> str:
        """The address as a client writes it."""
        if self.file is not None:
            return f"unix:{self.file}"
        return f"{scheme}://{self.name()}"

    def name(self) -> str:
        """The host and the port, as clients of other protocols write them."""
        host, port = self.bound.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def cannot_listen(self, error: OSError) -> PortInUse:
        """The error when another process has begun to listen there since."""
        if self.file is not None:
            return _no_socket(self.file, error.strerror or str(error))
        host, port = self.bound.getsockname()[:2]
        return _no_port(host, port, error, self.setting)

    def refuse_newcomers(self, listening: socket.socket) -> None:
        """Make the kernel refuse new connections; those that wait to be accepted stay.

        `listening` is a duplicate of the server's socket, which is not lent.
        """
        if self.file is not None:
            self._remove_file()
        elif sys.platform == "linux":
            _make_deaf(listening)

    def close(self) -> None:
        """Release the address, and remove its files."""
        self.bound.close()
        if self.file is not None and self.lock is not None:
            self._remove_file()
            with contextlib.suppress(FileNotFoundError):
                _lock_of(self.file).unlink()  # while it is held, so that no other server locks a removed file
            os.close(self.lock)

    def _remove_file(self) -> None:
        assert self.file is not None
        with contextlib.suppress(OSError):
            self.file.unlink()


def lent(given: socket.socket) -> Address:
    """The address of a socket that systemd listens on."""
    path = unix_path(systemd.host_and_port(given)[0])
    return Address(given, path, lent=True)


def bind(host: str, port: int, *, setting: str = "--port") -> Address:
    """Bind the address without listening on it. `unix:PATH` as host is a Unix socket. Raises `PortInUse`.

    `setting` is the flag that chose the port, for the error.
    """
    if (path := unix_path(host)) is not None:
        return _bind_file(path)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        taken = socket.socket(family, kind, protocol)
        if sys.platform != "win32":  # there this option would let another process take the port over
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
    except OSError as error:
        raise _no_port(host, port, error, setting) from error
    return Address(taken, setting=setting)


def refuse_one_port(addresses: Sequence[Address]) -> None:
    """Raise `ConfigError` where two addresses for HTTP have one port on hosts of their own.

    The port of a connection tells whether anything may be managed there, and whether it is asked for a token.
    """
    seen: dict[int, Address] = {}
    for each in addresses:
        if each.file is not None or each.bound.family not in (socket.AF_INET, socket.AF_INET6):
            continue
        other = seen.setdefault(each.bound.getsockname()[1], each)
        if other is not each:
            raise ConfigError(
                f"{each.setting} {each.name()} has the port of {other.name()}: the port alone tells where models are "
                "managed, so give each address another one"
            )


def _bind_file(path: Path) -> Address:
    """Bind a Unix socket. The umask sets its permissions: whoever may write to the file may connect (unix(7))."""
    path = path.absolute()
    if sys.platform == "win32":
        raise _no_socket(path, "this system has no Unix sockets")
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise _no_socket(path, f"the path is longer than {_LONGEST_PATH} bytes")
    lock = _lock(path)
    try:
        _remove_stale(path)
        taken = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        taken.bind(str(path))
    except OSError as error:
        os.close(lock)
        raise _no_socket(path, error.strerror or str(error)) from error
    except PortInUse:
        os.close(lock)
        raise
    return Address(taken, path, lock)


def _lock_of(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


def _lock(path: Path) -> int:
    """Take the lock of a Unix socket, which proves that no other server listens there or is about to."""
    import fcntl

    while True:
        try:
            held = os.open(_lock_of(path), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise _no_socket(path, error.strerror or str(error)) from error
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(held).st_ino == os.stat(_lock_of(path)).st_ino:
                return held
        except FileNotFoundError:  # its last holder has just removed it
            pass
        except OSError as error:
            os.close(held)
            raise _no_socket(path, "another server has it") from error
        os.close(held)


def _remove_stale(path: Path) -> None:
    """Remove a socket that no process listens on. Raises `PortInUse` if one does, or if the file is not a socket."""
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise _no_socket(path, "there is a file of that name, and it is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise _no_socket(path, "another program listens there")


def _no_port(host: str, port: int, error: OSError, setting: str) -> PortInUse:
    return PortInUse(
        f"cannot listen on {host}:{port} ({error.strerror}): stop what runs there, or take another {setting}"
    )


def _no_socket(path: Path, why: str) -> PortInUse:
    return PortInUse(f"cannot listen on unix:{path} ({why}): choose another --host unix:PATH, in a folder of yours")


async def accept_the_last(
    address: Address, server: Accepting, adopt: Callable[[socket.socket], Awaitable[None]]
) -> None:
    """Stop listening without losing clients that have connected already.

    The kernel accepts connections before we do. When the listening socket is closed, it resets those that we have not
    accepted, and the requests they have sent are lost. So a duplicate keeps the socket open a moment longer, refuses
    new connections, and the waiting ones are accepted. On a socket that is lent they wait for the next process.

    Where no more files can be opened, those that wait are lost, and those that are open are answered all the same.
    """
    spare = None
    if not address.lent:
        with contextlib.suppress(OSError):
            spare = address.bound.dup()
    server.close()
    if spare is None:
        return
    address.refuse_newcomers(spare)
    spare.setblocking(False)
    with spare:
        while (connection := _accepted(spare)) is not None:
            await adopt(connection)


def _accepted(listening: socket.socket) -> socket.socket | None:
    """The next connection that waits; `None` if there is none, or if no more files can be opened."""
    while True:
        try:
            connection, _ = listening.accept()
        except ConnectionAbortedError:  # its client has left
            continue
        except OSError:
            return None
        connection.setblocking(False)
        return connection


_SO_ATTACH_FILTER = 26  # socket(7)


class _SocketFilter(ctypes.Structure):
    """struct sock_fprog: the number of instructions, and their address."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def _make_deaf(listening: socket.socket) -> None:
    """Make the kernel drop new connections, with a socket filter of one instruction: return 0 bytes.

    Some kernels and sandboxes keep filters from whoever is not root, as in most containers. There the queue is made as
    short as it can be: the kernel drops new connections while one waits, and whoever comes in between is accepted too.
    """
    program = _SocketFilter(1, (0x06).to_bytes(8, sys.byteorder))  # BPF_RET | BPF_K, with k = 0
    try:
        listening.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, bytes(program))
    except OSError:
        listening.listen(0)


# TLS, from a certificate and its key in two PEM files. Versions before 1.2 are not supported.


def server_context(settings: Settings) -> ssl.SSLContext | None:
    """The TLS context of the settings; `None` without TLS. Raises `ConfigError`."""
    certificate, key = settings.tls_certificate, settings.tls_key
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        given, missing = ("--tls-certificate", "--tls-key") if key is None else ("--tls-key", "--tls-certificate")
        raise ConfigError(f"{given} is given without {missing}: TLS needs both")
    for flag, file in (("--tls-certificate", certificate), ("--tls-key", key)):
        try:
            with open(file, "rb"):
                pass
        except OSError as error:
            raise ConfigError(f"{flag} {file} cannot be read ({error.strerror}): give a PEM file") from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except (ssl.SSLError, ValueError) as error:
        why = str(error)
        if "KEY_VALUES_MISMATCH" in why or "key values mismatch" in why:
            why = "the key belongs to another certificate"
        elif "PEM lib" in why:
            why = "one of them is not a PEM file, or they are of different kinds"
        raise ConfigError(f"--tls-certificate {certificate} and --tls-key {key} cannot be used: {why}") from error
    return context


def _no_password() -> str:
    """Replaces OpenSSL's prompt on the terminal, at which a service would wait for ever."""
    raise ValueError("the key is encrypted: remove its password with openssl pkey")
