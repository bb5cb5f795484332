"""The same model as a plain Ray Serve application, for comparison.

`python -m chaos.cluster.plain ADDRESS PORT REPLICAS LEAST GRPC_PORT` serves it until SIGTERM; a number on its
standard input is that of its replicas from then on. With LEAST below REPLICAS, Serve chooses how many there are.

Its answers are those of `chaos.model`, 50 ms each, and up to 8 are computed together (`serve.batch`). Its proxy is on
the head, as our front is: no fault breaks the clients' connections.
"""

import asyncio
import signal
import sys
from typing import Any

from chaos.model import answer

_BATCH_SECONDS = 0.05


def main() -> None:
    """Serve until SIGTERM."""
    import ray
    from ray import serve
    from starlette.requests import Request

    address, port, replicas, least, _ = sys.argv[1], *map(int, sys.argv[2:])
    ray.init(address=address, logging_level="error", log_to_driver=False)

    @serve.deployment(
        max_ongoing_requests=64, ray_actor_options={"num_cpus": 1},
        logging_config={"enable_access_log": False},
    )  # fmt: skip
    class Plain:
        @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.001)  # type: ignore[untyped-decorator]
        async def batch(self, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
            await asyncio.sleep(_BATCH_SECONDS)
            return [answer(item) for item in items]

        async def __call__(self, request: Request) -> dict[str, Any]:
            return {"output": await self.batch((await request.json())["input"])}

    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})

    own: dict[str, Any] = {
        "min_replicas": least, "max_replicas": replicas, "target_ongoing_requests": 8, "upscale_delay_s": 0.5,
        "downscale_delay_s": 30.0,
    }  # fmt: skip

    def scale(count: int) -> None:
        many: dict[str, Any] = {"num_replicas": count} if least == replicas else {"autoscaling_config": own}
        serve.run(Plain.options(**many).bind(), route_prefix="/predict")  # type: ignore[attr-defined]

    scale(replicas)
    sys.stdout.write(f"http://127.0.0.1:{port}\n")
    sys.stdout.flush()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    for line in sys.stdin:
        scale(int(line))


if __name__ == "__main__":
    main()
