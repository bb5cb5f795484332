"""mosec: a Rust front that hands requests to Python workers, by the batch. It takes raw bodies, no forms."""

import json
from typing import Any

from mosec import Server, Worker

from benchmarks.apps.model import load
from benchmarks.apps.order import ordered

order = ordered()


class Inference(Worker):
    """With batches mosec calls `forward` with a list, else with one input."""

    def __init__(self) -> None:
        self.model = load(order)

    def deserialize(self, data: bytes) -> Any:
        """One request's input."""
        return self.model.prepare(json.loads(data)["input"] if order.numbers else data)

    def forward(self, data: Any) -> Any:
        """The answer, or the answers."""
        return self.model.answer(data) if order.batch > 1 else self.model.answer([data])[0]

    def serialize(self, data: Any) -> bytes:
        """JSON text."""
        return json.dumps(data).encode()


if __name__ == "__main__":
    server = Server()
    wait_ms = max(1, round(1000 * order.wait))
    server.append_worker(Inference, num=order.workers, max_batch_size=order.batch, max_wait_time=wait_ms)
    server.run()
