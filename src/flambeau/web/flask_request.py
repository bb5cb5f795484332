"""Flask's current request as a plain value, its body counted and read."""

import time

from flask import g, request

from flambeau.web.access.gate import Gate
from flambeau.web.budget import FULL, Budget
from flambeau.web.http import HttpRequest


def http_request(gate: Gate, budget: Budget) -> HttpRequest:
    """The request. Raises `RequestError` where its body is too large, or does not fit beside the others.

    The server in front has read none of it, or has spooled it to a file; what is read here is held until the answer.
    """
    length = request.content_length
    share = g.share = budget.open(time.monotonic, None)
    if not share.take(request.max_content_length or 0 if length is None else length):
        raise FULL
    headers = {name.lower(): value for name, value in request.headers}
    return HttpRequest(
        method=request.method,
        path=request.path,
        query=request.query_string.decode("latin-1"),
        headers=headers,
        body=request.get_data(cache=False),
        received=g.received,
        identity=g.request_id,
        charge=gate.charge(headers, request.remote_addr or "") if request.method == "POST" else None,
    )
