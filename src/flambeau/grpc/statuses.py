"""The one table from the codes of errors to gRPC's statuses.

Statuses are for programs that know gRPC only. The code itself is in the trailing metadata `error-code`, and tells more.
Who may try again: a client that repeats after UNAVAILABLE, as gRPC's own retry policies do, repeats what
`flambeau.errors.RETRYABLE` allows, except where the answer would come late or a limit has been reached.
"""

import grpc

from flambeau.errors import Code, RequestError

_Status = grpc.StatusCode

STATUSES: dict[Code, grpc.StatusCode] = {
    "bad_host": _Status.INVALID_ARGUMENT,
    "bad_http": _Status.INVALID_ARGUMENT,
    "bad_request": _Status.INVALID_ARGUMENT,
    "empty_body": _Status.INVALID_ARGUMENT,
    "expectation_failed": _Status.INVALID_ARGUMENT,
    "image_undecodable": _Status.INVALID_ARGUMENT,
    "input_rejected": _Status.INVALID_ARGUMENT,
    "invalid_json": _Status.INVALID_ARGUMENT,
    "invalid_multipart": _Status.INVALID_ARGUMENT,
    "invalid_tensor": _Status.INVALID_ARGUMENT,
    "json_not_finite": _Status.INVALID_ARGUMENT,
    "json_too_deep": _Status.INVALID_ARGUMENT,
    "missing_file": _Status.INVALID_ARGUMENT,
    "multipart_truncated": _Status.INVALID_ARGUMENT,
    "poison_input": _Status.INVALID_ARGUMENT,
    "too_many_chunks": _Status.INVALID_ARGUMENT,
    "unsupported_content_encoding": _Status.INVALID_ARGUMENT,
    "unsupported_image_format": _Status.INVALID_ARGUMENT,
    "unsupported_media_type": _Status.INVALID_ARGUMENT,
    "uri_too_long": _Status.INVALID_ARGUMENT,
    "unauthorized": _Status.UNAUTHENTICATED,
    "forbidden": _Status.PERMISSION_DENIED,
    "model_not_found": _Status.NOT_FOUND,
    "not_found": _Status.NOT_FOUND,
    "version_not_found": _Status.NOT_FOUND,
    "method_not_allowed": _Status.UNIMPLEMENTED,
    "not_implemented": _Status.UNIMPLEMENTED,
    "version_exists": _Status.ALREADY_EXISTS,
    "bundle_refused": _Status.FAILED_PRECONDITION,
    "load_failed": _Status.FAILED_PRECONDITION,
    "body_too_large": _Status.RESOURCE_EXHAUSTED,
    "headers_too_large": _Status.RESOURCE_EXHAUSTED,
    "image_too_large": _Status.RESOURCE_EXHAUSTED,
    "out_of_memory": _Status.RESOURCE_EXHAUSTED,
    "rate_limited": _Status.RESOURCE_EXHAUSTED,
    "too_many_attempts": _Status.RESOURCE_EXHAUSTED,
    "too_many_items": _Status.RESOURCE_EXHAUSTED,
    "too_many_parts": _Status.RESOURCE_EXHAUSTED,
    "client_too_slow": _Status.DEADLINE_EXCEEDED,
    "deadline_exceeded": _Status.DEADLINE_EXCEEDED,
    "model_timeout": _Status.DEADLINE_EXCEEDED,
    "draining": _Status.UNAVAILABLE,
    "model_loading": _Status.UNAVAILABLE,
    "model_unavailable": _Status.UNAVAILABLE,
    "overloaded": _Status.UNAVAILABLE,
    "queue_full": _Status.UNAVAILABLE,
    "internal": _Status.INTERNAL,
    "model_crashed": _Status.INTERNAL,
    "model_error": _Status.INTERNAL,
    "model_output_invalid": _Status.INTERNAL,
}


def sentence(error: RequestError) -> str:
    """The error in words: the details of a status, and the message of an error within a stream."""
    return f"{error.message} ({error.hint})" if error.hint else error.message
