"""Bearer tokens: read from a file or the environment, kept as hashes, and compared in constant time.

A file that changes is read again while the service runs, so that a token can be given and taken back without a restart.
The text of a token is dropped as soon as it is hashed. Tokens never come from the command line.
"""

import hashlib
import hmac
import logging
import os
import re
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from flambeau.errors import ConfigError
from flambeau.settings.table import ADMIN_TOKEN, TOKEN
from flambeau.telemetry import logs

Scope = Literal["infer", "admin"]
"""What a token permits. `admin` includes `infer`."""

_VARIABLES: Mapping[str, Scope] = {TOKEN: "infer", ADMIN_TOKEN: "admin"}
"""The environment variables that hold one token each."""

_SCOPES = get_args(Scope)
_LOOKED_AT_MOST = 1.0  # seconds between two looks at the file; there is no event for it on every system
_SHORTEST = 22  # characters: 128 bits, at base64's six bits each
_HASHED = re.compile(r"sha256:([0-9a-f]{64})")
_BEARER = re.compile(r"bearer +(\S+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Token:
    """One token: its scope, and its SHA-256."""

    scope: Scope
    digest: bytes


def fresh() -> str:
    """A new token of 256 bits."""
    return secrets.token_urlsafe(32)


def read(file: str | None, environment: Mapping[str, str]) -> tuple[Token, ...]:
    """The tokens of the file and of the environment, possibly none. Raises `ConfigError`."""
    found = [] if file is None else _from_file(Path(file))
    for variable, scope in _VARIABLES.items():
        if text := environment.get(variable):
            found.append(_token(scope, text, variable))
    return tuple(found)


class HeldTokens:
    """The tokens that count now: those of the environment at the start, and those of the file as it is."""

    def __init__(self, file: str | None, given: tuple[Token, ...]) -> None:
        """`given` are those of the environment. Raises `ConfigError`."""
        self._file = None if file is None else Path(file)
        self._state = self._look()  # before it is read: a change meanwhile is then seen later
        self.given = given
        self._held = (*read(file, {}), *given)
        self._looked = time.monotonic()

    def __bool__(self) -> bool:
        return bool(self._held)  # a file without tokens is refused, so this never changes

    def now(self) -> tuple[Token, ...]:
        """The tokens. A file that has changed is read; one that cannot be used changes nothing, and is logged."""
        if self._file is None or time.monotonic() - self._looked < _LOOKED_AT_MOST:
            return self._held
        self._looked = time.monotonic()
        state = self._look()
        if state != self._state:
            self._state = state
            try:
                self._held = (*_from_file(self._file), *self.given)
                logs.event("tokens read again", tokens=len(self._held))
            except ConfigError as error:
                logs.event("the tokens stay as they were", level=logging.WARNING, why=str(error))
        return self._held

    def _look(self) -> tuple[int, ...] | None:
        """What tells one state of the file from another; `None` for one that is not there."""
        if self._file is None:
            return None
        try:
            found = self._file.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size


def _from_file(path: Path) -> list[Token]:
    try:
        with path.open(encoding="utf-8") as file:
            if os.name == "posix" and _seen_by_others(os.fstat(file.fileno())):
                raise ConfigError(f"--tokens-file {path} can be read by others, not only its owner: chmod 600 {path}")
            lines = [line.partition("#")[0].split() for line in file]
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigError(f"--tokens-file {path} cannot be read ({why}): give a file of lines 'infer TOKEN'") from error
    found = []
    for number, words in enumerate(lines, 1):
        if not words:
            continue
        where = f"--tokens-file {path}, line {number},"
        if len(words) != 2 or words[0] not in _SCOPES:
            raise ConfigError(f"{where} is not a scope and a token: write 'infer TOKEN' or 'admin TOKEN'")
        found.append(_token("admin" if words[0] == "admin" else "infer", words[1], where))
    if not found:
        raise ConfigError(f"--tokens-file {path} holds no token: flambeau token --scope infer >> {path}")
    return found


def _seen_by_others(file: os.stat_result) -> bool:
    """Whether others than the server can read or change a file. A file of root may be readable by our group: this is
    how Kubernetes mounts a Secret for a process that is not root (`fsGroup`), and nobody else is in that group.
    """
    of_root = file.st_uid == 0 and os.geteuid() != 0
    return bool(file.st_mode & (0o037 if of_root else 0o077))


def _token(scope: Scope, text: str, where: str) -> Token:
    if hashed := _HASHED.fullmatch(text):
        return Token(scope, bytes.fromhex(hashed[1]))
    if len(text) < _SHORTEST or len(set(text)) < 8 or not text.isascii():
        raise ConfigError(f"{where} has a token that is too weak (less than 128 bits): take what flambeau token prints")
    return Token(scope, hashlib.sha256(text.encode()).digest())


def presented(authorization: str) -> str | None:
    """The token in an Authorization header; `None` if it holds no bearer token."""
    found = _BEARER.fullmatch(authorization)
    return found[1] if found else None


def match(tokens: Iterable[Token], text: str) -> Token | None:
    """The token with that text, or `None`. Takes the same time whether or not a token matches, and whichever does."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
    found = None
    for token in tokens:
        if hmac.compare_digest(token.digest, digest) and (found is None or token.scope == "admin"):
            found = token
    return found
