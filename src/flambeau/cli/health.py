"""`flambeau health`: whether the server with these settings is ready. The image's HEALTHCHECK; no curl is needed."""

import http.client
import socket
import ssl
from typing import Any

import click

from flambeau.cli.options import HELP, SettingOption, SettingsCommand, config_option, settings_options
from flambeau.errors import SetupError
from flambeau.settings.hosts import unix_path

_TIMEOUT = 4.0  # seconds; the image's check is given five
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104  # what to ask where it listens on all


class NotReady(SetupError):
    """The server does not answer, or is not ready."""


@click.command(cls=SettingsCommand, context_settings=HELP)
@config_option
@settings_options
def health(*, host: str, port: int, tls_certificate: str | None, **others: Any) -> None:
    """Ask the server that runs here with these settings whether it is ready; exit code 1 if it is not.

    It finds the server by the settings of `flambeau serve`: --host, --port and --tls-certificate, from flags, the
    environment or flambeau.toml.
    """
    connection = _connection(host, port, encrypted=tls_certificate is not None)
    try:
        connection.request("GET", "/readyz", headers={"Host": "localhost"})
        answer = connection.getresponse()
        text = answer.read(1000).decode(errors="replace").strip()
    except (OSError, http.client.HTTPException) as error:
        raise NotReady(f"no server answers on {host}:{port}: {error}") from None
    finally:
        connection.close()
    if answer.status != 200:
        raise NotReady(f"the server on {host}:{port} is not ready: {text}")
    click.echo("ready")


for _each in health.params:
    if isinstance(_each, SettingOption) and _each.name not in ("host", "port", "tls_certificate"):
        _each.hidden = True


def _connection(host: str, port: int, *, encrypted: bool) -> http.client.HTTPConnection:
    if (path := unix_path(host)) is not None:
        connection = http.client.HTTPConnection("localhost", timeout=_TIMEOUT)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(_TIMEOUT)
        connection.sock.connect(str(path))
        return connection
    address = _EVERYWHERE.get(host, host)
    if encrypted:
        # It is this machine's own server, and its certificate is for another name
        context = ssl._create_unverified_context()  # noqa: S323
        return http.client.HTTPSConnection(address, port, timeout=_TIMEOUT, context=context)
    return http.client.HTTPConnection(address, port, timeout=_TIMEOUT)
