"""Tokens, and requests that are sent as they stand: for the tests of access control."""

import base64
import hashlib
import http.client
from typing import Any

from flask import Flask

from tests.support.server import ServerProcess

INFER, ADMIN, HASHED, WRONG = (  # the same in every process: they stand in the names of tests
    base64.urlsafe_b64encode(hashlib.sha256(name).digest()).decode().rstrip("=")
    for name in (b"infer", b"admin", b"hashed", b"wrong")
)
PAGE = "https://page.example"


def bearer(token: str | None) -> dict[str, str]:
    return {} if token is None else {"Authorization": f"Bearer {token}"}


def ask(
    server: ServerProcess, method: str, path: str, headers: dict[str, str] | None = None, body: bytes = b""
) -> tuple[int, dict[str, str], bytes]:
    """A request whose path is sent as it stands, which libraries would tidy up."""
    host, port = server.url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    given = dict(headers or {})
    connection.putrequest(method, path, skip_host="Host" in given, skip_accept_encoding=True)
    for name, value in (given | ({"Content-Length": str(len(body))} if body else {})).items():
        connection.putheader(name, value)
    connection.endheaders(body or None)
    answer = connection.getresponse()
    found = answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    connection.close()
    return found


def flask_status(app: Flask, method: str, path: str, headers: dict[str, str]) -> int:
    with app.test_client().open(path, method=method, headers=headers) as response:
        return response.status_code


def predict(token: str | None, **headers: str) -> dict[str, Any]:
    return {"json": {"input": 2}, "headers": bearer(token) | headers}
