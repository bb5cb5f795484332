"""The names inside of uvicorn that the front leans on are there, and pyproject.toml allows no untried release.

A new release is tried by raising the bound: when this file and `tests/http/test_connection.py` pass, it may stay.
"""

import asyncio
import importlib.metadata
import inspect
import tomllib

import pytest
import uvicorn
from packaging.requirements import Requirement
from uvicorn.protocols.http import httptools_impl
from uvicorn.server import Server, ServerState

from tests.support import ROOT

REMEDY = f"uvicorn {uvicorn.__version__} has changed: mend those of flambeau/http that lean on it"

OF_A_CONNECTION = (
    "client", "connections", "cycle", "flow", "headers", "loop", "parser", "pipeline", "scope", "server_state", "tasks",
    "transport", "url",
)  # fmt: skip
CALLED = (
    "connection_made", "connection_lost", "data_received", "eof_received", "on_message_begin", "on_url", "on_header",
    "on_headers_complete", "on_body", "on_message_complete", "on_response_complete", "_start_asgi_task", "shutdown",
)  # fmt: skip
OF_A_CYCLE = ("disconnected", "keep_alive", "message_event", "response_complete", "response_started")
OF_A_SERVER = ("capture_signals", "serve", "shutdown", "startup")


def requirement() -> Requirement:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [found] = [each for each in map(Requirement, project["dependencies"]) if each.name == "uvicorn"]
    return found


def test_uvicorn_is_bounded_to_what_was_tried_p17() -> None:
    allowed = requirement().specifier
    installed = importlib.metadata.version("uvicorn")
    assert installed in allowed, f"uvicorn {installed} was not tried: {allowed} is what pyproject.toml says"
    assert not allowed.contains("999.0"), "private names may change with any release: bound it"


class _Transport(asyncio.Transport):
    """A socket that swallows what is written."""

    def get_extra_info(self, name: str, default: object = None) -> object:
        return {"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)}.get(name, default)

    def write(self, data: object) -> None: ...

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def close(self) -> None: ...


async def _app(scope: object, receive: object, send: object) -> None:
    await asyncio.Event().wait()


async def _after_a_request() -> httptools_impl.HttpToolsProtocol:
    """A connection of uvicorn's own over which one request has come whole."""
    config = uvicorn.Config(_app, log_config=None, lifespan="off")
    protocol = httptools_impl.HttpToolsProtocol(config=config, server_state=ServerState(), app_state={})
    protocol.connection_made(_Transport())
    protocol.data_received(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx")
    for task in protocol.tasks:
        task.cancel()
    return protocol


def test_a_connection_has_the_names_that_ours_uses_p17() -> None:
    protocol = asyncio.run(_after_a_request())
    missing = [name for name in (*OF_A_CONNECTION, *CALLED) if not hasattr(protocol, name)]
    missing += [f"cycle.{name}" for name in OF_A_CYCLE if not hasattr(protocol.cycle, name)]
    missing += [f"flow.{name}" for name in ("drain", "read_paused", "resume_reading", "write_paused")
                if not hasattr(protocol.flow, name)]  # fmt: skip
    missing += [f"server_state.{name}" for name in ("connections", "default_headers", "tasks", "total_requests")
                if not hasattr(protocol.server_state, name)]  # fmt: skip
    assert not missing, f"{', '.join(missing)} is gone: {REMEDY}"


@pytest.mark.parametrize("name", OF_A_SERVER)
def test_a_server_has_the_methods_that_ours_overrides_p17(name: str) -> None:
    assert hasattr(Server, name), f"Server.{name} is gone: {REMEDY}"


def test_a_connection_and_a_configuration_are_made_as_ours_are_p17() -> None:
    taken = inspect.signature(httptools_impl.HttpToolsProtocol.__init__).parameters
    assert {"config", "server_state", "app_state", "_loop"} <= taken.keys(), REMEDY
    config = inspect.signature(uvicorn.Config.__init__).parameters
    used = {
        "http", "ws", "lifespan", "log_config", "access_log", "server_header", "proxy_headers", "backlog",
        "timeout_graceful_shutdown",
    }  # fmt: skip
    assert used <= config.keys(), REMEDY
