"""The one table from the codes of errors to gRPC's statuses.

Statuses are for programs that know gRPC only. The code itself is in the trailing metadata `error-code`, and tells more.
Who may try again: a client that repeats after UNAVAILABLE, as gRPC's own retry policies do, repeats what
`flambeau.errors.RETRYABLE` allows, except where the answer would come late or a limit has been reached.
"""

from enum import IntEnum

from flambeau.errors import Code, RequestError


class Status(IntEnum):
    """gRPC's statuses, as numbers on the wire."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


STATUSES: dict[Code, Status] = {
    "bad_host": Status.INVALID_ARGUMENT,
    "bad_http": Status.INVALID_ARGUMENT,
    "bad_request": Status.INVALID_ARGUMENT,
    "empty_body": Status.INVALID_ARGUMENT,
    "expectation_failed": Status.INVALID_ARGUMENT,
    "image_undecodable": Status.INVALID_ARGUMENT,
    "input_rejected": Status.INVALID_ARGUMENT,
    "invalid_json": Status.INVALID_ARGUMENT,
    "invalid_multipart": Status.INVALID_ARGUMENT,
    "invalid_tensor": Status.INVALID_ARGUMENT,
    "json_not_finite": Status.INVALID_ARGUMENT,
    "json_too_deep": Status.INVALID_ARGUMENT,
    "missing_file": Status.INVALID_ARGUMENT,
    "multipart_truncated": Status.INVALID_ARGUMENT,
    "poison_input": Status.INVALID_ARGUMENT,
    "too_many_chunks": Status.INVALID_ARGUMENT,
    "unsupported_content_encoding": Status.INVALID_ARGUMENT,
    "unsupported_image_format": Status.INVALID_ARGUMENT,
    "unsupported_media_type": Status.INVALID_ARGUMENT,
    "uri_too_long": Status.INVALID_ARGUMENT,
    "unauthorized": Status.UNAUTHENTICATED,
    "forbidden": Status.PERMISSION_DENIED,
    "model_not_found": Status.NOT_FOUND,
    "not_found": Status.NOT_FOUND,
    "version_not_found": Status.NOT_FOUND,
    "method_not_allowed": Status.UNIMPLEMENTED,
    "not_implemented": Status.UNIMPLEMENTED,
    "version_exists": Status.ALREADY_EXISTS,
    "bundle_refused": Status.FAILED_PRECONDITION,
    "load_failed": Status.FAILED_PRECONDITION,
    "body_too_large": Status.RESOURCE_EXHAUSTED,
    "headers_too_large": Status.RESOURCE_EXHAUSTED,
    "image_too_large": Status.RESOURCE_EXHAUSTED,
    "out_of_memory": Status.RESOURCE_EXHAUSTED,
    "rate_limited": Status.RESOURCE_EXHAUSTED,
    "too_many_attempts": Status.RESOURCE_EXHAUSTED,
    "too_many_items": Status.RESOURCE_EXHAUSTED,
    "too_many_parts": Status.RESOURCE_EXHAUSTED,
    "client_too_slow": Status.DEADLINE_EXCEEDED,
    "deadline_exceeded": Status.DEADLINE_EXCEEDED,
    "model_timeout": Status.DEADLINE_EXCEEDED,
    "draining": Status.UNAVAILABLE,
    "model_loading": Status.UNAVAILABLE,
    "model_unavailable": Status.UNAVAILABLE,
    "overloaded": Status.UNAVAILABLE,
    "queue_full": Status.UNAVAILABLE,
    "internal": Status.INTERNAL,
    "model_crashed": Status.INTERNAL,
    "model_error": Status.INTERNAL,
    "model_output_invalid": Status.INTERNAL,
}


def sentence(error: RequestError) -> str:
    """The error in words: the details of a status, and the message of an error within a stream."""
    return f"{error.message} ({error.hint})" if error.hint else error.message


_LONGEST_TEXT = 4096


def message_text(text: str) -> bytes:
    """A sentence as the header `grpc-message` has it: all but printable ASCII, and the percent sign, in hexadecimal."""
    return b"".join(
        b"%c" % byte if 32 <= byte < 127 and byte != 37 else b"%%%02X" % byte for byte in text[:_LONGEST_TEXT].encode()
    )
