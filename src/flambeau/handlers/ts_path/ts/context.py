"""The context that a handler is given: what it is, where its files lie, and the requests of the batch in hand."""

from typing import Any

from .metrics.metrics_store import MetricsStore


class RequestProcessor:
    """What belongs to one request: its headers, and what its answer is to have."""

    def __init__(self, headers: dict[str, Any]) -> None:
        self.headers = headers
        self.status: int | None = None
        self.phrase: str | None = None
        self.response_headers: dict[str, str] = {}
        self.pieces: list[Any] = []
        """What was sent ahead of the last answer; all of it becomes one body."""

    def get_request_property(self, key: str) -> Any:
        """A header of the request, whatever the case of its letters; `None` if it has none."""
        if key in self.headers:
            return self.headers[key]
        lowered = key.lower()
        return next((value for name, value in self.headers.items() if name.lower() == lowered), None)

    def get_request_properties(self) -> dict[str, Any]:
        """All headers."""
        return self.headers

    def add_response_property(self, key: str, value: str) -> None:
        """Give the answer a header."""
        self.response_headers[str(key)] = str(value)

    def get_response_headers(self) -> dict[str, str]:
        """The headers that the answer was given."""
        return self.response_headers

    def report_status(self, code: int, reason_phrase: str | None = None) -> None:
        """Give the answer a status."""
        self.status, self.phrase = int(code), reason_phrase

    def get_response_status_code(self) -> int:
        """The answer's status."""
        return 200 if self.status is None else self.status

    def get_response_status_phrase(self) -> str | None:
        """The phrase beside it."""
        return self.phrase


class Context:
    """One for the life of a worker. Indices are those of the requests in the batch in hand."""

    def __init__(
        self, *, model_name: str, manifest: dict[str, Any], properties: dict[str, Any], yaml: dict[str, Any]
    ) -> None:
        self.model_name = model_name
        self.manifest = manifest
        self.model_yaml_config = yaml
        self.metrics = MetricsStore(model_name)
        self.request_ids: dict[int, str] | None = None
        self.request_processor: list[RequestProcessor] = []
        self.stopping_criteria: Any = None
        self.cl_socket: Any = None
        self.header_key_sequence_id = "ts_request_sequence_id"
        self.header_key_sequence_start = "ts_request_sequence_start"
        self.header_key_sequence_end = "ts_request_sequence_end"
        self._properties = properties

    @property
    def system_properties(self) -> dict[str, Any]:
        """`model_dir`, `gpu_id`, `batch_size`, `server_name`, `server_version`, `limit_max_image_pixels`."""
        return self._properties

    @property
    def request_processors(self) -> list[RequestProcessor]:
        """The same as `request_processor`."""
        return self.request_processor

    def get_request_id(self, idx: int = 0) -> str | None:
        """The id of a request."""
        return None if self.request_ids is None else self.request_ids.get(idx)

    def get_request_header(self, idx: int, key: str) -> Any:
        """A header of a request."""
        return self.request_processor[idx].get_request_property(key)

    def get_all_request_header(self, idx: int) -> dict[str, Any]:
        """All headers of a request."""
        return self.request_processor[idx].get_request_properties()

    def set_response_content_type(self, idx: int, value: str) -> None:
        """Set the media type of an answer."""
        self.set_response_header(idx, "content-type", value)

    def get_response_content_type(self, idx: int) -> str | None:
        """The media type that was set."""
        return self.get_response_headers(idx).get("content-type")

    def set_response_header(self, idx: int, key: str, value: str) -> None:
        """Set a header of an answer."""
        self.request_processor[idx].add_response_property(key, value)

    def get_response_headers(self, idx: int) -> dict[str, str]:
        """The headers that were set."""
        return self.request_processor[idx].get_response_headers()

    def set_response_status(self, code: int = 200, phrase: str = "", idx: int = 0) -> None:
        """Set the status of an answer."""
        self.request_processor[idx].report_status(code, phrase)

    def set_all_response_status(self, code: int = 200, phrase: str = "") -> None:
        """Set the status of every answer of the batch."""
        for each in self.request_processor:
            each.report_status(code, phrase)

    def get_response_status(self, idx: int) -> tuple[int, str | None]:
        """The status of an answer, and its phrase."""
        found = self.request_processor[idx]
        return found.get_response_status_code(), found.get_response_status_phrase()

    def get_sequence_id(self, idx: int) -> str:
        """The id of the sequence that a request belongs to; empty if it names none."""
        return self.get_request_header(idx, self.header_key_sequence_id) or ""
