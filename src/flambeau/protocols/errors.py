"""Errors over HTTP: the one table from codes to statuses, the one shape of an error body, and requests without partial
answers."""

from collections.abc import Sequence
from typing import Any

import msgspec

from flambeau.errors import Code, RequestError
from flambeau.protocols.messages import HttpAnswer
from flambeau.types import Answer, Outcome

STATUS: dict[Code, int] = {
    "bad_host": 400,
    "bad_http": 400,
    "bad_request": 400,
    "empty_body": 400,
    "input_rejected": 400,
    "invalid_json": 400,
    "invalid_multipart": 400,
    "invalid_tensor": 400,
    "json_not_finite": 400,
    "json_too_deep": 400,
    "missing_file": 400,
    "multipart_truncated": 400,
    "too_many_chunks": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "model_not_found": 404,
    "not_found": 404,
    "version_not_found": 404,
    "method_not_allowed": 405,
    "client_too_slow": 408,
    "version_exists": 409,
    "body_too_large": 413,
    "image_too_large": 413,
    "too_many_items": 413,
    "too_many_parts": 413,
    "uri_too_long": 414,
    "unsupported_content_encoding": 415,
    "unsupported_image_format": 415,
    "unsupported_media_type": 415,
    "expectation_failed": 417,
    "bundle_refused": 422,
    "image_undecodable": 422,
    "load_failed": 422,
    "poison_input": 422,
    "rate_limited": 429,
    "too_many_attempts": 429,
    "headers_too_large": 431,
    "internal": 500,
    "model_crashed": 500,
    "model_error": 500,
    "model_output_invalid": 500,
    "not_implemented": 501,
    "draining": 503,
    "model_loading": 503,
    "model_unavailable": 503,
    "overloaded": 503,
    "queue_full": 503,
    "deadline_exceeded": 504,
    "model_timeout": 504,
    "out_of_memory": 507,
}
"""The status of every code. `input_rejected` is 400, as the recipes' clients expect for a bad input; 422 is for broken
file contents and for inputs that crash the model."""

_RETRY_AFTER_SECONDS = "1"


class RateLimited(RequestError):
    """The client is over its rate limit; it may try again in `wait` seconds."""

    def __init__(self, message: str, wait: int) -> None:
        super().__init__(message, code="rate_limited")
        self.wait = wait


def error_body(error: RequestError, request_id: str) -> dict[str, Any]:
    """The members of an error body: a sentence, its code, whether to try again, the request id, and a hint if any."""
    body: dict[str, Any] = {
        "error": error.message,
        "code": error.code,
        "retryable": error.retryable,
        "request_id": request_id,
    }
    if error.hint:
        body["hint"] = error.hint
    return body


def error_answer(error: RequestError, request_id: str, *, headers: tuple[tuple[str, str], ...] = ()) -> HttpAnswer:
    """The answer to a request that failed as a whole."""
    status = STATUS[error.code]
    if status == 503:
        headers = (*headers, ("Retry-After", _RETRY_AFTER_SECONDS))
    if isinstance(error, RateLimited):
        headers = (*headers, ("Retry-After", str(error.wait)))
    return HttpAnswer(status, msgspec.json.encode(error_body(error, request_id)), headers=headers)


def answers_of(outcomes: Sequence[Outcome], *, noun: str) -> list[Answer]:
    """The answers of a request that has no partial answers.

    Raises the `RequestError` of the first item that failed, with its place among several: "image 2: ...".
    """
    answers: list[Answer] = []
    for index, outcome in enumerate(outcomes):
        result = outcome.result
        if isinstance(result, RequestError):
            where = f"{noun} {index}: " if len(outcomes) > 1 else ""
            raise RequestError(where + result.message, code=result.code, hint=result.hint)
        answers.append(result)
    return answers
