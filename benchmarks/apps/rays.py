"""Ray Serve: a deployment with one replica per core behind its HTTP proxy."""

from typing import Any

from ray import serve
from starlette.requests import Request

from benchmarks.apps.model import load
from benchmarks.apps.order import ordered

order = ordered()


@serve.deployment(
    num_replicas=order.workers,
    max_ongoing_requests=100,
    ray_actor_options={"num_cpus": 0.5},  # its proxy and controller want some of the cores, too
    logging_config={"enable_access_log": False},
)
class Deployment:
    """Answers one request at a time."""

    def __init__(self) -> None:
        self.model = load(order)

    async def __call__(self, request: Request) -> dict[str, Any]:
        """Answer a photograph or numbers."""
        if order.numbers:
            given = (await request.json())["input"]
        else:
            given = await (await request.form())["file"].read()
        return self.model.answer([self.model.prepare(given)])[0]


app = Deployment.bind()  # type: ignore[attr-defined]  # the decorator made it a deployment

if __name__ == "__main__":
    import signal

    serve.start(http_options={"host": "127.0.0.1", "port": order.port})
    serve.run(app, route_prefix="/predict")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
