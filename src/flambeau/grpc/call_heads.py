"""The headers that a call begins with: its method, its metadata, how its messages are packed, how long it may take.

It knows no frame and no method.
"""

import re

from flambeau.grpc.header_blocks import Field

_TIMEOUT = re.compile(r"([0-9]{1,8})([HMSmun])")
_SECONDS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}

_CONTENT_TYPE = re.compile(r"application/grpc(?:$|[+;])")
_OF_A_CONNECTION = frozenset({"connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"})
_PSEUDO = frozenset({":method", ":scheme", ":path", ":authority"})
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9a-z]+")
_LENGTH = re.compile(r"[0-9]{1,18}")
_NOT_IN_A_VALUE = re.compile(r"[\0\r\n]")


TOO_LARGE = 431
"""The status of a call whose headers are too long."""


class MalformedHeadError(Exception):
    """The headers are none of a request by RFC 9113, 8.1.1: the stream is reset."""


class CallHead:
    """The headers of a call. `timeout`: the seconds that it may take, if it says so. `encoding`: that of its messages.
    `length`: the bytes that follow, if it says so.

    `refused`: the HTTP status of a request that is no gRPC call, and of one whose headers are too long, else 0. Many
    calls share one, so nothing changes it.
    """

    __slots__ = ("encoding", "length", "metadata", "path", "refused", "timeout")

    def __init__(self, fields: list[Field] | None) -> None:
        """`None`: there were too many. Raises `MalformedHeadError`."""
        pseudo, metadata = _told_apart(fields or [])
        self.metadata = metadata
        self.length = _length(metadata.get("content-length"))
        if fields is None:
            self.path, self.encoding, self.timeout, self.refused = "", "identity", None, TOO_LARGE
            return
        self.path = pseudo.get(":path", "")
        if not pseudo.get(":method") or not self.path or not pseudo.get(":scheme"):
            raise MalformedHeadError("a pseudo-header is missing")
        self.encoding = metadata.get("grpc-encoding", "identity")
        self.timeout = _timeout(metadata.get("grpc-timeout"))
        self.refused = 0
        if not _CONTENT_TYPE.match(metadata.get("content-type", "")):
            self.refused = 415
        elif pseudo[":method"] != "POST":
            self.refused = 405


def _told_apart(fields: list[Field]) -> tuple[dict[str, str], dict[str, str]]:
    pseudo: dict[str, str] = {}
    metadata: dict[str, str] = {}
    regular = False
    for raw_name, raw_value in fields:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        if name.startswith(":"):
            if regular or name in pseudo or name not in _PSEUDO:
                raise MalformedHeadError("a pseudo-header is where it may not be")
            pseudo[name] = value
            continue
        regular = True
        if name in _OF_A_CONNECTION or (name == "te" and value != "trailers"):
            raise MalformedHeadError("a header of HTTP/1.1's connections")
        if not _NAME.fullmatch(name) or _NOT_IN_A_VALUE.search(value):
            raise MalformedHeadError("a header has a byte that it may not have")
        if not name.endswith("-bin"):
            metadata[name] = value.strip(" \t")
    return pseudo, metadata


def are_trailers(fields: list[Field]) -> bool:
    """Whether these headers may come behind a call's messages (RFC 9113, 8.1)."""
    try:
        pseudo, _ = _told_apart(fields)
    except MalformedHeadError:
        return False
    return not pseudo


def _length(given: str | None) -> int | None:
    if given is None:
        return None
    if not _LENGTH.fullmatch(given):
        raise MalformedHeadError("content-length is no length")
    return int(given)


def _timeout(given: str | None) -> float | None:
    if given is None:
        return None
    found = _TIMEOUT.fullmatch(given)
    if found is None:
        raise MalformedHeadError("grpc-timeout is no time")
    return int(found[1]) * _SECONDS[found[2]]
