"""The exception tree: everything that Flambeau raises on purpose.

    FlambeauError
    ├── SetupError            the operator must act; a command prints the sentence and exits with `exit_code`
    │   ├── SourceError       the source cannot be made into a bundle
    │   ├── LabelsError       the labels file is unreadable or does not fit the model
    │   ├── BundleError       the bundle is damaged, incomplete or of another format
    │   ├── EngineError       the engine is missing, cannot load the model, or disagrees with its probes
    │   ├── DeviceError       the requested device is not there
    │   ├── CodeNotAllowed    the source carries code and --allow-code was not given
    │   ├── InstallsNotAllowed  it needs packages that are not here and --allow-installs was not given
    │   ├── ConfigError       a setting has a bad value
    │   └── PortInUse         the address cannot be bound
    └── RequestError          one request (or one item of it) cannot be answered; `code` says why
        └── InvalidInput      the input is at fault; models raise it too

This module knows no HTTP: `flambeau.protocols.errors` maps every code to its status, in one table.
"""

from typing import Literal

Code = Literal[
    "bad_host",
    "bad_http",
    "bad_request",
    "body_too_large",
    "bundle_refused",
    "client_too_slow",
    "deadline_exceeded",
    "draining",
    "empty_body",
    "expectation_failed",
    "forbidden",
    "headers_too_large",
    "image_too_large",
    "image_undecodable",
    "input_rejected",
    "internal",
    "invalid_json",
    "invalid_multipart",
    "invalid_tensor",
    "json_not_finite",
    "json_too_deep",
    "load_failed",
    "method_not_allowed",
    "missing_file",
    "model_crashed",
    "model_error",
    "model_loading",
    "model_not_found",
    "model_output_invalid",
    "model_timeout",
    "model_unavailable",
    "multipart_truncated",
    "not_found",
    "not_implemented",
    "out_of_memory",
    "overloaded",
    "poison_input",
    "queue_full",
    "rate_limited",
    "too_many_attempts",
    "too_many_chunks",
    "too_many_items",
    "too_many_parts",
    "unauthorized",
    "unsupported_content_encoding",
    "unsupported_image_format",
    "unsupported_media_type",
    "uri_too_long",
    "version_exists",
    "version_not_found",
]
"""Every reason why a request can fail: a closed set, stable for clients."""

RETRYABLE: frozenset[Code] = frozenset(
    {
        "client_too_slow",
        "deadline_exceeded",
        "draining",
        "model_loading",
        "model_unavailable",
        "overloaded",
        "queue_full",
        "rate_limited",
        "too_many_attempts",
    }
)
"""The codes after which the same request may succeed if sent again."""


class FlambeauError(Exception):
    """The base of everything Flambeau raises on purpose."""


class SetupError(FlambeauError):
    """The operator must act. The message is one sentence that names the thing, the value and the remedy."""

    exit_code = 1


class SourceError(SetupError):
    """The source cannot be made into a bundle."""


class LabelsError(SetupError):
    """The labels are unreadable, or their number does not fit the model's outputs."""


class BundleError(SetupError):
    """The bundle is damaged, incomplete, or of a format this version does not read."""


class EngineError(SetupError):
    """The engine is not installed, cannot load the model, or does not reproduce the probe outputs."""


class DeviceError(SetupError):
    """The requested device is not there."""


class CodeNotAllowed(SetupError):
    """The source carries code that would run on this machine, and `--allow-code` was not given."""

    exit_code = 78  # EX_CONFIG of sysexits.h


class InstallsNotAllowed(SetupError):
    """The source needs packages that are not here, and `--allow-installs` was not given."""

    exit_code = 78


class ConfigError(SetupError):
    """A setting has a value that cannot be used."""

    exit_code = 78


class PortInUse(SetupError):
    """The address cannot be bound."""

    exit_code = 69  # EX_UNAVAILABLE of sysexits.h


class RequestError(FlambeauError):
    """One request, or one item of it, cannot be answered.

    `code` is the machine-readable reason; `hint`, if given, is a second sentence with the remedy.
    """

    def __init__(self, message: str, *, code: Code, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code: Code = code
        self.hint = hint

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed if sent again."""
        return self.code in RETRYABLE


class InvalidInput(RequestError):
    """The input is at fault. A Python model raises it to say so; the client gets the message unchanged."""

    def __init__(self, message: str, *, code: Code = "input_rejected", hint: str | None = None) -> None:
        super().__init__(message, code=code, hint=hint)
