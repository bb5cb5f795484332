"""Why a prediction failed, as a client sees it.

ClientError
├── Refused         the server answered, with an error
├── NoAnswer        there was none: no connection, a broken one, or no time left
└── InputNotSent    the input cannot be read or sent; the server was not asked
"""

from flambeau.errors import FlambeauError


class ClientError(FlambeauError):
    """A prediction failed.

    `code` is a word for programs and `retryable` says whether the same request may succeed later. `status` is that of
    HTTP, `None` without an answer; `request_id` is what the server's log has; `hint` a second sentence, or `None`.
    `attempts` counts how often the server was asked.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str,
        retryable: bool = False,
        status: int | None = None,
        request_id: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.retryable = retryable
        self.status = status
        self.request_id = request_id
        self.hint = hint
        self.attempts = 0


class Refused(ClientError):
    """The server answered with an error. `code` is one of docs/protocols.md, or `http_502` where another answered.

    `retry_after` is the seconds that the server wants to be left alone, or `None`.
    """

    retry_after: float | None = None


class NoAnswer(ClientError):
    """There was no answer: `code` is `connection_failed`, or `timeout` when the time was over."""


class InputNotSent(ClientError, ValueError):
    """The input cannot be read or sent, and the server was not asked. `code` is `input_unreadable`."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="input_unreadable")
