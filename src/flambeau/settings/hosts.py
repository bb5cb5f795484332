"""What `--host` names: addresses of this machine alone, addresses of others, or a Unix socket."""

from pathlib import Path

_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


def unix_path(host: str) -> Path | None:
    """The file of the Unix socket if `--host` names one (`unix:PATH`), else `None`."""
    return Path(host.removeprefix("unix:")) if host.startswith("unix:") and host != "unix:" else None


def is_local(host: str) -> bool:
    """Whether only this machine can connect to `host`: loopback, or a Unix socket."""
    return host in _LOOPBACK or unix_path(host) is not None
