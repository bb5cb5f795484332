"""Flambeau as a Ray Serve application, until SIGTERM.

`python -m chaos.cluster.served ADDRESS PORT REPLICAS LEAST GRPC_PORT`.
"""

import signal
import sys
from typing import Any

from chaos.server import MODEL
from flambeau.deploy.ray_serve import GRPC_SERVICES


def main() -> None:
    """Serve until SIGTERM."""
    import ray
    from ray import serve

    import flambeau.ray

    address, port, replicas, least, grpc_port = sys.argv[1], *map(int, sys.argv[2:])
    ray.init(address=address, logging_level="error", log_to_driver=False)
    serve.start(
        proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port},
        grpc_options={"port": grpc_port, "grpc_servicer_functions": list(GRPC_SERVICES)},
    )  # fmt: skip
    options: dict[str, Any] = {"allow_code": True, "max_batch_size": 8, "deadline": 60.0, "min_replicas": least}
    serve.run(flambeau.ray.app(f"{MODEL}:Slow50", replicas=replicas, **options), route_prefix="/")
    sys.stdout.write(f"http://127.0.0.1:{port}\n")
    sys.stdout.flush()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    signal.pause()


if __name__ == "__main__":
    main()
