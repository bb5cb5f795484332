"""A cluster whose head can come back: the GCS keeps what it knows in a Redis of its own."""

import os
import shutil
import subprocess
import tempfile

from chaos.cluster.nodes import Nodes
from chaos.server import free_port

_ADDRESS = "RAY_REDIS_ADDRESS"


class StoredNodes(Nodes):
    """It needs `redis-server`."""

    def __enter__(self) -> "StoredNodes":
        if (redis := shutil.which("redis-server")) is None:
            raise SystemExit("external storage of the GCS needs Redis: apt-get install redis-server")
        port = free_port()
        self._folder = tempfile.TemporaryDirectory(prefix="flambeau-redis-")
        self._redis = subprocess.Popen(
            [redis, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", self._folder.name],
            stdout=subprocess.DEVNULL,
        )
        os.environ[_ADDRESS] = f"127.0.0.1:{port}"
        try:
            super().__enter__()
        finally:
            del os.environ[_ADDRESS]
        return self

    def __exit__(self, *error: object) -> None:
        try:
            super().__exit__(*error)
        finally:
            self._redis.terminate()
            self._redis.wait()
            self._folder.cleanup()

    def start_gcs(self) -> None:
        """Start it again after it was killed, at its address and with what it knew."""
        self._cluster.head_node.kill_gcs_server(check_alive=False)  # it is dead: that is noted
        self._cluster.head_node.start_gcs_server()
