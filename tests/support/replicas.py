"""Items for a replica, and what it said to them."""

import itertools
from collections.abc import Sequence

from flambeau.bundle import storage
from flambeau.bundle.storage import Manifest, Source
from flambeau.errors import RequestError
from flambeau.types import Answer, Item, Options, Outcome, Payload, Value

SUBSETS = [frozenset(bad) for count in range(9) for bad in itertools.combinations(range(8), count)]


def items(*texts: str) -> list[Item]:
    return [Item(Payload("json", text.encode()), Options()) for text in texts]


def results(outcomes: Sequence[Outcome]) -> list[str]:
    """The JSON of each answer, or the code of each error."""
    return [_result(outcome.result) for outcome in outcomes]


def _result(result: Answer | RequestError) -> str:
    if isinstance(result, RequestError):
        return result.code
    assert isinstance(result, Value)
    return result.json.decode()


def manifest(**fields: object) -> Manifest:
    return Manifest(
        **{"format": 1, "name": "net", "flambeau": "0", "source": Source(kind="checkpoint", name="net.pth"),
           "pipeline": storage.TensorConfig(), "engine": "eager", **fields}  # type: ignore[arg-type]
    )  # fmt: skip
