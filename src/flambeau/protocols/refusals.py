"""Refusals of requests that reach no route, as by access control and limits: in the form of the path's protocol.

A client of KServe's protocols reads `{"error": "..."}` and nothing else, also where no function of theirs was called.
It decides nothing: why a request is refused, and with which headers, is told by whoever refuses it.
"""

from msgspec.structs import replace

from flambeau.errors import RequestError
from flambeau.protocols import v2_rest
from flambeau.protocols.errors import error_answer
from flambeau.protocols.messages import HttpAnswer

_KSERVE = ("/v2", "/v1/models")

_HINTS = {
    "/v2": "inference is POST /v2/models/NAME/infer, with or without /versions/VERSION",
    "/v1/models": "predictions are POST /v1/models/NAME:predict",
}


def refusal_at(
    path: str, error: RequestError, request_id: str, *, headers: tuple[tuple[str, str], ...] = ()
) -> HttpAnswer:
    """The answer to a request that is refused at `path`, which has no prefix of a proxy's and may be empty if it is not
    known."""
    if protocol_of(path) is None:
        return error_answer(error, request_id, headers=headers)
    found = v2_rest.refusal(error, request_id)
    return replace(found, headers=(*headers, *found.headers))


def protocol_of(path: str) -> str | None:
    """The path below which a protocol of KServe's has its routes, if `path` lies there."""
    return next((root for root in _KSERVE if path == root or path.startswith(f"{root}/")), None)


def hint_at(path: str) -> str | None:
    """Where a protocol of KServe's is asked, for who is wrong below its path; `None` elsewhere."""
    root = protocol_of(path)
    return None if root is None else _HINTS[root]
