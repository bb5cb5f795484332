"""The addresses of a service that has several: which of them is asked now, and which next when it fails.

All threads of a client ask the same one, so that connections are used again; who finds that it fails passes it over for
all. It knows no requests.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import urllib3


@dataclass(frozen=True, slots=True)
class ServiceAddress:
    """One address, with the path that stands before every other and the connections to it."""

    url: str
    base: str
    pool: urllib3.HTTPConnectionPool


class Addresses:
    """The addresses in the order in which they were given."""

    def __init__(self, urls: Sequence[str], *, connections: int, ca_certs: str | None) -> None:
        """Raises `ValueError` for none, and for one that is no address."""
        if not urls:
            raise ValueError("a client needs the address of a service: write http://HOST:PORT")
        trust: dict[str, Any] = {} if ca_certs is None else {"ca_certs": ca_certs}
        self._all: list[ServiceAddress] = []
        for url in urls:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError(f"{url!r} is not the address of a service: write http://HOST:PORT")
            plain = url.rstrip("/")
            pool = urllib3.connection_from_url(plain, maxsize=connections, **trust)
            self._all.append(ServiceAddress(plain, parts.path.rstrip("/"), pool))
        self._lock = threading.Lock()
        self._current = 0

    def __len__(self) -> int:
        return len(self._all)

    def __str__(self) -> str:
        return ", ".join(repr(each.url) for each in self._all)

    @property
    def current(self) -> ServiceAddress:
        """The one to ask."""
        return self._all[self._current]

    def pass_over(self, failed: ServiceAddress) -> None:
        """Ask the next one from now on, unless another thread has passed this one over already."""
        with self._lock:
            if self.current is failed:
                self._current = (self._current + 1) % len(self._all)

    def close(self) -> None:
        """Close all connections."""
        for each in self._all:
            each.pool.close()
