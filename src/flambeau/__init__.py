"""Flambeau: give it a trained PyTorch model, get a service that people can use.

Importing this package has no effect and imports neither torch nor flask.
"""

from typing import TYPE_CHECKING, Any

from flambeau.errors import FlambeauError, InvalidInput, RequestError, SetupError
from flambeau.python_model import PythonModel
from flambeau.version import VERSION as __version__

if TYPE_CHECKING:
    from flask import Flask

    from flambeau.client import Client, ClientError
    from flambeau.http.asgi import AsgiApp
    from flambeau.serving.embedded import Batcher, load

__all__ = [
    "Batcher",
    "Client",
    "ClientError",
    "FlambeauError",
    "InvalidInput",
    "PythonModel",
    "RequestError",
    "SetupError",
    "__version__",
    "create_app",
    "create_asgi_app",
    "load",
]


def __getattr__(name: str) -> Any:
    """Import on first use whatever needs other packages: numpy and Pillow, or urllib3."""
    if name in ("Client", "ClientError"):
        from flambeau import client

        return getattr(client, name)
    if name in ("Batcher", "load"):
        from flambeau.serving import embedded

        return getattr(embedded, name)
    raise AttributeError(f"module 'flambeau' has no attribute {name!r}")


def create_app(source: str | None = None, **options: Any) -> "Flask":
    """A Flask application that serves a model: for gunicorn, waitress, `flask run`, or mounting in your own.

    `source` and the `options` are those of `flambeau serve`, with underscores: `create_app("densenet121",
    weights="densenet.pth", labels="imagenet")`. The model is built if it is not in the cache, and loaded before this
    returns. Raises `SetupError` when that fails.
    """
    from flambeau.http.flask_app import create_app as create

    return create(source, **options)


def create_asgi_app(source: str | None = None, **options: Any) -> "AsgiApp":
    """An ASGI application that serves a model: for uvicorn, hypercorn, Granian, or mounting in FastAPI or Starlette.

    The arguments are those of `create_app`. The model is built before this returns, if it is not in the cache, and
    loaded when the server sends its startup event. If a server or framework sends none, the first request waits for
    the load; `await app.start()` and `await app.close()` do the same by hand. Raises `SetupError` when it cannot be
    built.
    """
    from flambeau.http.asgi import create_asgi_app as create

    return create(source, **options)
