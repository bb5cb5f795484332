"""A model as an AWS Lambda function: events of HTTP to requests of the ASGI application, and answers back.

    from flambeau.serverless import lambda_function

    function = lambda_function("bundle")        # in app.py; the function's handler is then app.function

Takes the events of function URLs and HTTP APIs (format 2.0), of REST APIs (1.0) and of load balancers. Events of queues
and buckets are refused: they name files elsewhere. The model is loaded while the function initialises. Formats:
docs.aws.amazon.com/apigateway/latest/developerguide/http-api-develop-integrations-lambda.html and
docs.aws.amazon.com/elasticloadbalancing/latest/application/lambda-functions.html.
"""

import asyncio
import base64
import http
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlencode

from flambeau.http.asgi import AsgiApp, create_asgi_app

_TEXT = ("text/", "application/json", "application/javascript", "image/svg+xml")


@dataclass(frozen=True, slots=True)
class LambdaRequest:
    """The HTTP request in an event. `several`: whether the answer lists the values of each header."""

    method: str
    path: str
    query: str
    headers: list[tuple[str, str]]
    body: bytes
    client: str
    balancer: bool = False
    several: bool = False


class LambdaFunction:
    """What Lambda calls with an event and its context."""

    def __init__(self, app: AsgiApp) -> None:
        """Loads the model. Raises `SetupError`."""
        self._app = app
        self._runner = asyncio.Runner()
        self._runner.run(app.start())

    def __call__(self, event: Mapping[str, Any], context: object = None) -> dict[str, Any]:
        """Answer one event. Raises `ValueError` for one that holds no HTTP request."""
        request = request_of(event)
        status, headers, body = self._runner.run(self._answer(request))
        return _result(request, status, headers, body)

    def close(self) -> None:
        """Close the model. Lambda never does; tests do."""
        self._runner.run(self._app.close())
        self._runner.close()

    async def _answer(self, request: LambdaRequest) -> tuple[int, list[tuple[str, str]], bytes]:
        arrived = False
        started: dict[str, Any] = {}
        written: list[bytes] = []

        async def receive() -> dict[str, Any]:
            nonlocal arrived
            if arrived:  # the client waits: it is never gone
                await asyncio.get_running_loop().create_future()
            arrived = True
            return {"type": "http.request", "body": request.body, "more_body": False}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                started.update(message)
            else:
                written.append(message.get("body", b""))

        await self._app(_scope(request), receive, send)
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in started["headers"]]
        return started["status"], headers, b"".join(written)


def lambda_function(source: str | Path | None = None, **options: Any) -> LambdaFunction:
    """The function for a model; its source and options are those of `flambeau.create_app`. Raises `SetupError`."""
    return LambdaFunction(create_asgi_app(source, **options))


def request_of(event: Mapping[str, Any]) -> LambdaRequest:
    """The request in an event. Raises `ValueError` for one that holds none."""
    told = event.get("requestContext") or {}
    text = event.get("body") or ""
    body = base64.b64decode(text) if event.get("isBase64Encoded") else text.encode()
    if str(event.get("version", "")).startswith("2"):
        http_part = told["http"]
        headers = [(name.lower(), value) for name, value in (event.get("headers") or {}).items()]
        if event.get("cookies"):
            headers.append(("cookie", "; ".join(event["cookies"])))
        path = _without_stage(event["rawPath"], told.get("stage"))
        client = http_part.get("sourceIp", "")
        return LambdaRequest(http_part["method"], path, event.get("rawQueryString") or "", headers, body, client)
    if "httpMethod" not in event:
        raise ValueError("the event holds no HTTP request: use a function URL, an API or a load balancer")
    balancer = "elb" in told
    several = event.get("multiValueHeaders")
    pairs = [(name, each) for name, values in several.items() for each in values] if several else (
        list((event.get("headers") or {}).items())
    )  # fmt: skip
    headers = [(name.lower(), value) for name, value in pairs]
    client = (told.get("identity") or {}).get("sourceIp", "")
    if balancer:  # it writes its client last
        client = dict(headers).get("x-forwarded-for", "").rpartition(",")[2].strip()
    return LambdaRequest(
        event["httpMethod"], event["path"], _query(event, quoted=balancer), headers, body, client,
        balancer=balancer, several=several is not None,
    )  # fmt: skip


def _query(event: Mapping[str, Any], *, quoted: bool) -> str:
    """The query of an event of format 1.0. A balancer leaves names and values as they came: `quoted`."""
    several = event.get("multiValueQueryStringParameters")
    single = event.get("queryStringParameters") or {}
    pairs = [(name, each) for name, values in several.items() for each in values] if several else list(single.items())
    return "&".join(f"{name}={value}" for name, value in pairs) if quoted else urlencode(pairs)


def _without_stage(path: str, stage: str | None) -> str:
    prefix = f"/{stage}"
    if stage and stage != "$default" and (path == prefix or path.startswith(prefix + "/")):
        return path[len(prefix) :] or "/"
    return path


def _scope(request: LambdaRequest) -> dict[str, Any]:
    """The request as an ASGI scope. Its length is that of the body: the event's may count its base64."""
    kept = [(name, value) for name, value in request.headers if name not in ("content-length", "transfer-encoding")]
    kept.append(("content-length", str(len(request.body))))
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in kept]
    scheme = dict(request.headers).get("x-forwarded-proto", "https")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": request.method,
        "path": unquote(request.path),
        "raw_path": request.path.encode(),
        "query_string": request.query.encode("latin-1"),
        "root_path": "",
        "scheme": scheme if scheme in ("http", "https") else "https",
        "headers": headers,
        "client": (request.client, 0),
        "server": ("lambda", 443),
    }


def _result(request: LambdaRequest, status: int, headers: list[tuple[str, str]], body: bytes) -> dict[str, Any]:
    """The answer in the format of the event."""
    media_type = dict(headers).get("content-type", "")
    packed = "content-encoding" in dict(headers) or not media_type.startswith(_TEXT)
    found: dict[str, Any] = {
        "statusCode": status,
        "isBase64Encoded": packed,
        "body": base64.b64encode(body).decode() if packed else body.decode(),
    }
    if request.balancer:
        found["statusDescription"] = f"{status} {http.HTTPStatus(status).phrase}"
    if request.several:
        found["multiValueHeaders"] = {}
        for name, value in headers:
            found["multiValueHeaders"].setdefault(name, []).append(value)
    else:
        found["headers"] = {}
        for name, value in headers:
            found["headers"][name] = f"{found['headers'][name]}, {value}" if name in found["headers"] else value
    return found
