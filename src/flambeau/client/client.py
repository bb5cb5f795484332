"""The client: predictions of a running service, with retries.

A request is sent again if the answer says `retryable`, or the connection failed or broke: a prediction changes nothing
on the server. The pauses are random, grow, and are never shorter than the server asks for; everything stays within the
timeout.
"""

import itertools
import json
import mmap
import random
import tarfile
import tempfile
import time
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import quote, urlencode

import urllib3
from urllib3.exceptions import HTTPError, ReadTimeoutError, SSLError

from flambeau.client import answers
from flambeau.client.addresses import Addresses, ServiceAddress
from flambeau.client.answers import ClientError, NoAnswer, Prediction, Refused
from flambeau.client.bodies import RequestBody, as_image_part, body_of
from flambeau.version import VERSION

_CONNECT_SECONDS = 10.0  # a host that does not answer is given up earlier than a slow model
_CONNECT_TO_ONE_OF_MANY = 2.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_MOST_CONNECTIONS = 64
_LOAD_SECONDS = 600.0
_MOST_MILLISECONDS = 10**9  # the largest value that the server accepts; it has a deadline of its own


@dataclass(frozen=True, slots=True)
class _RequestOptions:
    """The options of a prediction, and its model."""

    model: str | None
    version: str | int | None
    top_k: int | None
    threshold: float | None
    max_detections: int | None
    mask: Literal["png", "rle"] | None
    bits: Literal[8, 16] | None
    probabilities: bool
    as_json: bool

    def __post_init__(self) -> None:
        if self.version is not None and self.model is None:
            raise ValueError("a version is one of a model: name the model too")

    def path(self) -> str:
        """The path and query of the request."""
        names = [str(each) for each in (self.model, self.version) if each is not None]
        asked = ("top_k", "threshold", "max_detections", "mask", "bits")
        query: dict[str, Any] = {name: getattr(self, name) for name in asked}
        if self.probabilities:  # only the ranking has the classes' names: the answer to a form with an image has none
            query["top_k"] = self.top_k or 1
        text = urlencode({name: value for name, value in query.items() if value is not None})
        return "/".join(["/predict", *(quote(name, safe="") for name in names)]) + (f"?{text}" if text else "")

    def body(self, item: Any) -> RequestBody:
        """The body for an input."""
        body = body_of(item, as_json=self.as_json)
        return as_image_part(body) if self.probabilities else body


class Client:
    """Asks a service for predictions: `Client().predict("cat.jpg").class_name`.

    Many threads may use it; they share its connections. It keeps connections open: close it, or use it in a `with`
    statement.
    """

    def __init__(
        self,
        url: str | Sequence[str] = "http://127.0.0.1:5000",
        token: str | None = None,
        *,
        timeout: float = 60.0,
        retries: int = 5,
        ca_certs: str | None = None,
    ) -> None:
        """`timeout` is the seconds for one prediction with all its attempts; `retries` is how many follow the first.

        `url` may be several: fronts of one service, or services alike. One is asked; when its connection fails or
        breaks, or it refuses for a while, predictions go to the next at once, and stay there.

        `ca_certs` names a file of certificates to trust instead of the system's. Nothing is sent yet. Raises
        `ValueError` for an invalid address, token, timeout or number of retries.
        """
        if token is not None and not (token.isascii() and token.isprintable()):
            raise ValueError("the token has characters that no header can carry")
        if timeout <= 0 or retries < 0:
            raise ValueError(f"timeout {timeout} must be above 0, and retries {retries} must not be below it")
        urls = [url] if isinstance(url, str) else list(url)
        self._addresses = Addresses(urls, connections=_MOST_CONNECTIONS, ca_certs=ca_certs)
        self._timeout = timeout
        self._retries = retries
        self._headers = {"User-Agent": f"flambeau/{VERSION}", "Accept": "application/json"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"

    def __repr__(self) -> str:
        return f"Client({self._addresses})"

    def predict(
        self,
        item: Any,
        *,
        model: str | None = None,
        version: str | int | None = None,
        top_k: int | None = None,
        threshold: float | None = None,
        max_detections: int | None = None,
        mask: Literal["png", "rle"] | None = None,
        bits: Literal[8, 16] | None = None,
        probabilities: bool = False,
        as_json: bool = False,
        timeout: float | None = None,
    ) -> Prediction:
        """The answer to one input.

        `item`: a path (also as a string), bytes, a file opened with "rb", a Pillow image or a picture as a uint8 array;
        or any value with a JSON form, arrays too. `as_json` sends it as JSON in any case, also a string or a uint8
        array. `top_k` asks for the best classes, `probabilities` for the probabilities of all; below `threshold`
        (0 to 1) nothing counts as recognised. `max_detections` is how many objects are answered at most, the best.
        `mask` is the form of masks: a PNG file each, or COCO's run-length encoding, a fraction of the work for large
        pictures with many objects. `bits` are those of a sample in a picture that is the answer, 8 or 16. Raises
        `ClientError`.
        """
        options = _RequestOptions(model, version, top_k, threshold, max_detections, mask, bits, probabilities, as_json)
        return self._ask(item, options, timeout=self._timeout if timeout is None else timeout)

    def predict_many(
        self,
        items: Iterable[Any],
        *,
        model: str | None = None,
        version: str | int | None = None,
        top_k: int | None = None,
        threshold: float | None = None,
        max_detections: int | None = None,
        mask: Literal["png", "rle"] | None = None,
        bits: Literal[8, 16] | None = None,
        probabilities: bool = False,
        as_json: bool = False,
        timeout: float | None = None,
        concurrency: int = 8,
    ) -> Iterator[Prediction | ClientError]:
        """The answers to many inputs, in order; a failed one gives its `ClientError` instead.

        `concurrency`, 1 to 64, is how many are asked at a time; the service makes batches of them. `items` are taken as
        they are needed, so there may be any number. `timeout` is for each.
        """
        if not 1 <= concurrency <= _MOST_CONNECTIONS:
            raise ValueError(f"concurrency {concurrency} must be from 1 to {_MOST_CONNECTIONS}")
        options = _RequestOptions(model, version, top_k, threshold, max_detections, mask, bits, probabilities, as_json)
        return self._ask_many(items, options, timeout=self._timeout if timeout is None else timeout, width=concurrency)

    def ready(self) -> bool:
        """Whether the service can be reached and is ready."""
        timeout, address = urllib3.Timeout(min(self._timeout, _CONNECT_SECONDS)), self._addresses.current
        try:
            found = address.pool.urlopen(
                "GET", f"{address.base}/readyz", headers=self._headers, retries=False, redirect=False, timeout=timeout
            )
        except HTTPError:
            return False
        return found.status == 200

    def models(self) -> dict[str, Any]:
        """Every model of the service, with its versions and their states. Raises `ClientError`."""
        return self._manage("GET", "/models")

    def model(self, name: str, version: str | int | None = None) -> dict[str, Any]:
        """A model, or one version of it, in full. Raises `ClientError`."""
        return self._manage("GET", _model_path(name) if version is None else _model_path(name, str(version)))

    def load(self, name: str, version: str | int, *, timeout: float = _LOAD_SECONDS) -> dict[str, Any]:
        """Load a version and return the model as it is then. It may be built first, which takes time.

        Raises `ClientError`: with code `load_failed` the version cannot be loaded, and nothing has changed.
        """
        return self._manage("POST", _model_path(name, "versions", str(version), "load"), timeout=timeout)

    def unload(self, name: str, version: str | int, *, timeout: float = _LOAD_SECONDS) -> dict[str, Any]:
        """Let go of a version, once it has answered what it has. Raises `ClientError`."""
        return self._manage("POST", _model_path(name, "versions", str(version), "unload"), timeout=timeout)

    def add(
        self,
        name: str,
        version: str | int,
        source: str | PathLike[str],
        *,
        load: bool = False,
        timeout: float = _LOAD_SECONDS,
    ) -> dict[str, Any]:
        """Add a version to the service's repository, and return the model as it is then. It is loaded if `load`.

        `source` is a bundle's folder on this machine, which is sent, or else the path of a file that lies in the
        repository already, relative to it. Raises `ClientError`, and `OSError` if the bundle cannot be read.
        """
        folder = Path(source)
        if not (folder / "manifest.json").is_file():
            wanted = {"model": name, "version": str(version), "source": str(source), "load": load}
            return self._manage("POST", "/models", wanted, timeout=timeout)
        query = urlencode({"model": name, "version": str(version), "load": str(load).lower()})
        with tempfile.TemporaryFile() as packed:
            with tarfile.open(fileobj=packed, mode="w") as archive:
                archive.add(folder, arcname=".")
            packed.flush()
            with mmap.mmap(packed.fileno(), 0, access=mmap.ACCESS_READ) as pages, memoryview(pages) as content:
                body = RequestBody(content, "application/x-tar")
                return self._answered("POST", f"/models?{query}", body, timeout=timeout)

    def set_default(self, name: str, version: str | int | None, *, timeout: float = _LOAD_SECONDS) -> dict[str, Any]:
        """Have a version answer by default; `None`: the newest that is loaded. Raises `ClientError`."""
        number = None if version is None else str(version)
        return self._manage("PUT", _model_path(name), {"default_version": number}, timeout=timeout)

    def set_aliases(
        self, name: str, aliases: Mapping[str, str | int], *, timeout: float = _LOAD_SECONDS
    ) -> dict[str, Any]:
        """Replace the aliases of a model: versions by alias. Raises `ClientError`."""
        return self._manage(
            "PUT",
            _model_path(name),
            {"aliases": {alias: str(version) for alias, version in aliases.items()}},
            timeout=timeout,
        )

    def set_limits(
        self,
        name: str,
        *,
        replicas: int | None = None,
        max_batch_size: int | None = None,
        max_queue_size: int | None = None,
        timeout: float = _LOAD_SECONDS,
    ) -> dict[str, Any]:
        """Change how many replicas a model may have, how many items are computed together, and how many may wait.

        What is left out stays. Nothing is loaded again. Raises `ClientError`.
        """
        given = {"replicas": replicas, "max_batch_size": max_batch_size, "max_queue_size": max_queue_size}
        change = {limit: number for limit, number in given.items() if number is not None}
        return self._manage("PUT", _model_path(name), change, timeout=timeout)

    def _manage(self, method: str, path: str, change: Any = None, *, timeout: float | None = None) -> dict[str, Any]:
        body = RequestBody(b"" if change is None else json.dumps(change).encode(), "application/json")
        return self._answered(method, path, body, timeout=timeout)

    def _answered(self, method: str, path: str, body: RequestBody, *, timeout: float | None) -> dict[str, Any]:
        left = self._timeout if timeout is None else timeout
        identity = uuid.uuid4().hex
        found = self._send(self._addresses.current, path, body, identity, left=left, method=method)
        return answers.read_object(found, request_id=identity)

    def close(self) -> None:
        """Close the connections."""
        self._addresses.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask_many(
        self, items: Iterable[Any], options: _RequestOptions, *, timeout: float, width: int
    ) -> Iterator[Prediction | ClientError]:
        def ask(item: Any) -> Prediction | ClientError:
            try:
                return self._ask(item, options, timeout=timeout)
            except ClientError as error:
                return error

        asked: deque[Future[Prediction | ClientError]] = deque()
        threads = ThreadPoolExecutor(width, thread_name_prefix="flambeau-client")
        try:
            for item in items:
                asked.append(threads.submit(ask, item))
                if len(asked) >= 2 * width:  # enough to keep every thread busy while the oldest is slow
                    yield asked.popleft().result()
            while asked:
                yield asked.popleft().result()
        finally:
            threads.shutdown(cancel_futures=True)

    def _ask(self, item: Any, options: _RequestOptions, *, timeout: float) -> Prediction:
        deadline = time.monotonic() + timeout
        path, body, identity = options.path(), options.body(item), uuid.uuid4().hex
        for attempt in itertools.count(1):
            address = self._addresses.current
            try:
                left = max(deadline - time.monotonic(), 1e-3)
                found = self._send(address, path, body, identity, left=left)
                return answers.read(found, request_id=identity, attempts=attempt)
            except ClientError as error:
                error.attempts = attempt
                pause = _pause(error, attempt) if attempt >= len(self._addresses) else 0.0
                if error.retryable:
                    self._addresses.pass_over(address)
                if not error.retryable or attempt > self._retries or time.monotonic() + pause >= deadline:
                    raise
            time.sleep(pause)
        raise AssertionError("this is a bug: counting has come to an end")

    def _send(
        self, address: ServiceAddress, path: str, body: RequestBody, identity: str, *, left: float, method: str = "POST"
    ) -> urllib3.BaseHTTPResponse:
        """Ask once, and tell the server how long this client will wait. Raises `NoAnswer`."""
        headers = {
            "Content-Type": body.content_type,
            "X-Request-ID": identity,
            "X-Request-Timeout-Ms": str(min(max(1, int(left * 1000)), _MOST_MILLISECONDS)),
        }
        patience = _CONNECT_SECONDS if len(self._addresses) == 1 else _CONNECT_TO_ONE_OF_MANY
        timeout = urllib3.Timeout(total=left, connect=min(left, patience))
        try:
            return address.pool.urlopen(
                method, address.base + path, body=cast("bytes", body.content), headers=self._headers | headers,
                retries=False, redirect=False, timeout=timeout,
            )  # fmt: skip
        except ReadTimeoutError:
            raise NoAnswer(
                f"{address.url} gave no answer within {left:.3g} seconds", code="timeout", retryable=True,
                request_id=identity,
            ) from None  # fmt: skip
        except HTTPError as error:
            raise NoAnswer(
                f"{address.url} cannot be asked: {error}", code="connection_failed",
                retryable=not isinstance(error, SSLError), request_id=identity,
            ) from error  # fmt: skip


def _model_path(*parts: str) -> str:
    return "/".join(["/models", *(quote(part, safe="") for part in parts)])


def _pause(error: ClientError, attempt: int) -> float:
    """Seconds before the next attempt: random, so that clients that failed together do not come back together."""
    longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (attempt - 1))
    wanted = error.retry_after if isinstance(error, Refused) else None
    return (wanted or 0.0) + random.uniform(0, longest)  # noqa: S311 (no secret depends on it)
