"""Which nodes of the cluster have been told to end: spot instances, mostly, and those that `ray drain-node` names.

Ray tells no driver of it, and nothing that its documentation calls public has it. `ray.autoscaler.v2.sdk` does, which
`ray status` itself asks; it has no underscore and no promise. Where it fails, nodes end without notice, as they could
before, and the log says so once.
"""

import asyncio
import logging
import threading
import time
from typing import Any

from flambeau.runners.ray.connection import in_thread
from flambeau.telemetry import logs

PERIOD = 2.0  # seconds from one question to the next; a notice comes half a minute or more before the end
_RPC_SECONDS = 5


class DrainingNodes:
    """Asks the head, on behalf of all runners of this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked = -PERIOD
        self._found: frozenset[str] = frozenset()
        self._told = False

    async def now(self, ray: Any) -> frozenset[str]:
        """Their ids, as of a moment ago. Waits while the head does not answer."""
        return await in_thread(lambda: self._ask(ray))

    def _ask(self, ray: Any) -> frozenset[str]:
        with self._lock:
            if time.monotonic() - self._asked >= PERIOD / 2:
                try:
                    self._found = _draining(ray)
                except Exception as error:  # what is not promised may fail in any way
                    self._found = frozenset()
                    if not self._told:
                        self._told = True
                        logs.event(
                            "Ray does not say which nodes are about to end", level=logging.WARNING, error=error
                        )  # fmt: skip
                self._asked = time.monotonic()
            return self._found


def _draining(ray: Any) -> frozenset[str]:
    from ray.autoscaler.v2.sdk import get_cluster_status

    status = get_cluster_status(ray.get_runtime_context().gcs_address, timeout=_RPC_SECONDS)
    nodes = (*status.active_nodes, *status.idle_nodes)
    return frozenset(node.node_id for node in nodes if node.node_status == "DRAINING" and node.node_id)


async def pause() -> None:
    """The time from one question to the next."""
    await asyncio.sleep(PERIOD)


DRAINING = DrainingNodes()
"""One for each process, as Ray is."""
