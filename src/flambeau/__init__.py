"""Flambeau: give it a trained PyTorch model, get a service that people can use.

Importing this package has no effect and imports neither torch nor flask.
"""

from typing import TYPE_CHECKING, Any

from flambeau.errors import FlambeauError, InvalidInput, RequestError, SetupError
from flambeau.python_model import PythonModel
from flambeau.version import VERSION as __version__

if TYPE_CHECKING:
    from flask import Flask

__all__ = [
    "FlambeauError",
    "InvalidInput",
    "PythonModel",
    "RequestError",
    "SetupError",
    "__version__",
    "create_app",
]


def create_app(source: str | None = None, **options: Any) -> "Flask":
    """A Flask application that serves a model: for gunicorn, waitress, `flask run`, or mounting in your own.

    `source` and the `options` are those of `flambeau serve`, with underscores: `create_app("densenet121",
    weights="densenet.pth", labels="imagenet")`. The model is built if it has to be, and loaded before this returns.
    Raises `SetupError` when it cannot be.
    """
    from flambeau.web.app import create_app as create

    return create(source, **options)
