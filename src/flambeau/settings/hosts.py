"""What `--host` names: addresses of this machine alone, addresses of others, or a Unix socket."""

from pathlib import Path

from flambeau.errors import ConfigError

_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


def unix_path(host: str) -> Path | None:
    """The file of the Unix socket if `--host` names one (`unix:PATH`), else `None`."""
    return Path(host.removeprefix("unix:")) if host.startswith("unix:") and host != "unix:" else None


def is_local(host: str) -> bool:
    """Whether only this machine can connect to `host`: loopback, or a Unix socket."""
    return host in _LOOPBACK or unix_path(host) is not None


def host_and_port(setting: str, text: str) -> tuple[str, int]:
    """The parts of HOST:PORT. Raises `ConfigError`."""
    host, colon, port = text.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ConfigError(f"--{setting.replace('_', '-')} {text} is not an address: write it as in 127.0.0.1:8081")
    return host.strip("[]"), int(port)
