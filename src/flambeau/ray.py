"""Flambeau as a Ray Serve application: `flambeau.ray.app("/shared/cats", replicas=4)`, for `serve.run`.

    Serve's proxy on each node  ->  Front, at most one on a node (queue, ledger, batches)  ->  replicas, anywhere

A front is an ASGI application in a Serve replica, and has replicas of the runner `ray` for itself. Ray is imported
when an application is made, and not before. Only Ray's public names are used.
"""

from collections.abc import Callable
from typing import Any

from flambeau.errors import ConfigError, EngineError

_MOST_OPEN = 1024  # requests that Serve hands to a front; its own queue refuses what is too much
_DRAIN = 30.0  # seconds, as --drain-timeout


def app(source: str | None = None, *, fronts: int = 1, **options: Any) -> Any:
    """A Ray Serve application that serves a model: `serve.run(flambeau.ray.app("/shared/cats"), route_prefix="/")`.

    `source` is the path of a bundle or a repository on every node that may have a front. `fronts` is how many there
    are, at most one on each node; each has `replicas` of its own. The `options` are those of `flambeau.create_app`.
    Raises `SetupError`.
    """
    try:
        from ray import serve
    except ImportError as error:
        raise EngineError(f"a Ray Serve application needs Ray Serve ({error}): pip install 'ray[serve]'") from None
    if fronts < 1:
        raise ConfigError(f"fronts {fronts} is too small: the least is 1")
    front = serve.ingress(_maker(source, {"runner": "ray", **options}))()
    deployment = serve.deployment(
        front,
        name="Front",
        num_replicas=fronts,
        max_replicas_per_node=1,
        max_ongoing_requests=_MOST_OPEN,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=float(options.get("drain_timeout", _DRAIN)) + 5,
        logging_config={"enable_access_log": False},
    )
    return deployment.bind()


def build(args: dict[str, Any]) -> Any:
    """The same from the `args` of a Serve configuration file: `import_path: flambeau.ray:build`."""
    return app(**args)


def _maker(source: str | None, options: dict[str, Any]) -> Callable[[], Any]:
    def make_front() -> Any:  # it runs on the front's node
        from flambeau.http.asgi import create_asgi_app
        from flambeau.telemetry import logs

        logs.configure(options.get("log_level", "info"))
        return create_asgi_app(source, **options)

    return make_front
