"""Runs the proxies' configurations of `deploy/` with real nginx and HAProxy, on ports of this machine."""

import asyncio
import os
import shutil
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from chaos.server import eventually, free_port
from tests.support import ROOT

_PATH = "/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin"
_PACKAGES = {"nginx": "nginx-light", "haproxy": "haproxy"}  # Debian's

_NGINX_MAIN = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
worker_processes 1;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/flambeau.conf;
    include {folder}/upstream.conf;
}}
"""


def installed(name: str) -> str:
    """The proxy's program; on Debian, root installs it. Skips the test where it cannot be had."""
    if shutil.which(name, path=_PATH) is None and shutil.which("apt-get") is not None and os.geteuid() == 0:
        quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for words in (("update",), ("install", "-y", "--no-install-recommends", _PACKAGES[name])):
            subprocess.run(["apt-get", "-qq", *words], check=False, capture_output=True, env=quiet)
    found = shutil.which(name, path=_PATH)
    if found is None:
        pytest.skip(f"there is no {name} here: install Debian's {_PACKAGES[name]}")
    return found


def _replaced(file: Path, changes: Mapping[str, str]) -> str:
    text = file.read_text()
    for old, new in changes.items():
        assert old in text, f"{file} has no {old!r} any more"
        text = text.replace(old, new)
    return text


def certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate for localhost, and its key."""
    crt, key = folder / "tls.crt", folder / "tls.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
         "-keyout", key, "-out", crt],
        check=True, capture_output=True,
    )  # fmt: skip
    return crt, key


class Proxy:
    """A proxy in front of two servers: `async with`. `port` speaks plain HTTP for the load, `tls` is encrypted."""

    def __init__(
        self, kind: str, folder: Path, servers: tuple[int, int], changes: Mapping[str, str] | None = None
    ) -> None:
        """`changes`: texts of the configuration, and what stands in their place."""
        folder.mkdir(parents=True)
        self.port, self.tls, self.redirecting = free_port(), free_port(), free_port()
        self.certificate, key = certificate(folder)
        self._folder = folder
        one, two = servers
        program = installed(kind)
        if kind == "nginx":
            nginx = ROOT / "deploy/nginx"
            (folder / "flambeau.conf").write_text(_replaced(nginx / "flambeau.conf", {
                "listen 80;": f"listen 127.0.0.1:{self.redirecting};",
                "listen 443 ssl;": f"listen 127.0.0.1:{self.tls} ssl; listen 127.0.0.1:{self.port};",
                "/etc/nginx/tls/tls.crt": str(self.certificate),
                "/etc/nginx/tls/tls.key": str(key),
            } | dict(changes or {})))  # fmt: skip
            (folder / "upstream.conf").write_text(_replaced(nginx / "upstream.conf", {
                "127.0.0.1:5000": f"127.0.0.1:{one}", "127.0.0.1:5001": f"127.0.0.1:{two}",
            }))  # fmt: skip
            (folder / "nginx.conf").write_text(_NGINX_MAIN.format(folder=folder))
            self._command = [program, "-p", str(folder), "-c", str(folder / "nginx.conf")]
        else:
            both = folder / "flambeau.pem"
            both.write_text(self.certificate.read_text() + key.read_text())
            (folder / "haproxy.cfg").write_text(_replaced(ROOT / "deploy/haproxy/haproxy.cfg", {
                "bind :80\n": f"bind 127.0.0.1:{self.redirecting}\n    bind 127.0.0.1:{self.port}\n",
                "bind :443 ": f"bind 127.0.0.1:{self.tls} ",
                "/etc/haproxy/flambeau.pem": str(both),
                "unless { ssl_fc }": f"unless {{ ssl_fc }} || {{ dst_port {self.port} }}",
                "127.0.0.1:5000": f"127.0.0.1:{one}", "127.0.0.1:5001": f"127.0.0.1:{two}",
            } | dict(changes or {})))  # fmt: skip
            self._command = [program, "-db", "-f", str(folder / "haproxy.cfg")]

    def checked(self) -> subprocess.CompletedProcess[str]:
        """What the proxy itself says of its configuration."""
        flag = ["-t"] if "nginx" in self._command[0] else ["-c"]
        return subprocess.run([*self._command, *flag], capture_output=True, text=True, check=False)

    async def __aenter__(self) -> "Proxy":
        with (self._folder / "output.log").open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log
            )
        assert await eventually(self._listens, 10), self.log()
        return self

    async def __aexit__(self, kind: object, error: object, traceback: object) -> None:
        if self._process.returncode is None:
            self._process.terminate()
        await self._process.wait()

    def _listens(self) -> bool:
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", self.port)) == 0

    def log(self) -> str:
        """What it printed, and its log of errors."""
        files = (self._folder / "output.log", self._folder / "error.log")
        return "\n".join(file.read_text() for file in files if file.exists())
