"""LitServe: a `LitAPI` in worker processes behind FastAPI."""

from typing import Any

import litserve

from benchmarks.apps.model import load
from benchmarks.apps.order import ordered

order = ordered()


class Api(litserve.LitAPI):
    """With batches LitServe calls `predict` with a list, else with one input."""

    def setup(self, device: str) -> None:
        """Load the model, in each worker."""
        self.model = load(order)

    def decode_request(self, request):  # type: ignore[no-untyped-def]  # a type would be FastAPI's to validate by
        """One request's input, out of the form or the JSON."""
        return self.model.prepare(request["input"] if order.numbers else request["file"].file.read())

    def batch(self, inputs: list[Any]) -> list[Any]:
        """Kept as a list: the model stacks them itself."""
        return list(inputs)

    def predict(self, x: Any) -> Any:
        """The answer, or the answers."""
        return self.model.answer(x) if order.batch > 1 else self.model.answer([x])[0]

    def unbatch(self, output: Any) -> Any:
        """A list already."""
        return output

    def encode_response(self, output: Any) -> Any:
        """A dict, which becomes JSON."""
        return output


if __name__ == "__main__":
    batching: dict[str, Any] = {"max_batch_size": order.batch, "batch_timeout": order.wait} if order.batch > 1 else {}
    server = litserve.LitServer(Api(**batching), accelerator="cpu", workers_per_device=order.workers)
    server.run(
        host="127.0.0.1", port=order.port, generate_client_file=False, log_level="warning", access_log=False
    )  # fmt: skip
