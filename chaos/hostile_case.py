"""One hostile request: the bytes, and what is promised for them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

Target = Literal["numbers", "images"]


@dataclass(frozen=True, slots=True)
class Case:
    """`expect` are the allowed pairs of status and code; `closes`: the connection has to end with the answer."""

    fault: str
    name: str
    data: bytes | Callable[[], Iterator[bytes]] = field(repr=False)
    expect: frozenset[tuple[int, str]]
    closes: bool = False
    headless: bool = False
    target: Target = "numbers"

    def pieces(self) -> Iterator[bytes]:
        """What is written, one piece after the other."""
        return iter((self.data,)) if isinstance(self.data, bytes) else self.data()

    def promise(self) -> str:
        """`expect` for people."""
        return " or ".join(f"{status} {code}".strip() for status, code in sorted(self.expect))


def one_of(*pairs: tuple[int, str] | int) -> frozenset[tuple[int, str]]:
    """`expect` out of pairs, and of statuses that have no code."""
    return frozenset(each if isinstance(each, tuple) else (each, "") for each in pairs)


def request(
    body: bytes = b"",
    *,
    method: str = "POST",
    path: str = "/predict",
    headers: str = "",
    kind: str | None = "application/json",
    length: int | str | None = None,
    version: str = "HTTP/1.1",
) -> bytes:
    """The bytes of a request that is right but for what is asked."""
    head = f"{method} {path} {version}\r\nHost: 127.0.0.1\r\n{headers}"
    if kind is not None and method == "POST":
        head += f"Content-Type: {kind}\r\n"
    if length != "" and (body or method == "POST"):
        head += f"Content-Length: {len(body) if length is None else length}\r\n"
    return head.encode("latin-1") + b"\r\n" + body


def chunked(*pieces: bytes, headers: str = "", version: str = "HTTP/1.1", end: bytes = b"0\r\n\r\n") -> bytes:
    """A prediction whose body comes in these chunks."""
    head = request(length="", headers=f"Transfer-Encoding: chunked\r\n{headers}", version=version)
    return head + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + end
