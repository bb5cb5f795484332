"""What trusted proxies say about a request: its client's address and scheme, and the prefix before our paths.

Nothing is believed from anybody else. Of a chain of proxies the last address that is not a trusted proxy's is the
client's: everything before it may be the client's own invention. X-Forwarded-For and Forwarded (RFC 7239) are read. A
request that has both is taken for the proxy's own, because a proxy writes one of them, and the client wrote the other.
"""

import ipaddress
import re
from collections.abc import Mapping

from flambeau.errors import ConfigError
from flambeau.http.origins import listed
from flambeau.settings.service import Settings

_UNIX = "unix"
"""The word in `--trusted-proxies` for whoever connects by the Unix socket."""

_FOR = re.compile(r'(?:^|;)\s*for\s*=\s*("[^"]*"|[^;,"\s]*)', re.IGNORECASE)
_PROTO = re.compile(r'(?:^|;)\s*proto\s*=\s*"?(https?)"?\s*(?:;|$)', re.IGNORECASE)
_MOST_HOPS = 32

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Forwarding:
    """Which proxies are trusted, and the prefix that they may leave before a path."""

    def __init__(self, settings: Settings) -> None:
        """Raises `ConfigError` for a member of `--trusted-proxies` that is no address, network or `unix`."""
        words = listed(settings.trusted_proxies)
        self._unix = _UNIX in words
        self._networks: list[_Network] = []
        for word in words:
            if word == _UNIX:
                continue
            try:
                self._networks.append(ipaddress.ip_network(word, strict=False))
            except ValueError:
                raise ConfigError(
                    f"--trusted-proxies {word} is no address, network such as 10.0.0.0/8, or unix: a name is not enough"
                ) from None
        self.prefix = (settings.root_path or "").rstrip("/")
        """The prefix of every path as clients see it; empty without one."""
        self.active = bool(words or self.prefix)

    def trusts(self, peer: str) -> bool:
        """Whether the other end of a connection is a trusted proxy. `peer` is empty for a Unix socket."""
        if not peer:
            return self._unix
        address = _address(peer)
        return address is not None and any(address in network for network in self._networks)

    def client(self, peer: str, headers: Mapping[str, str]) -> str:
        """The address of the client on whose behalf `peer` sends; `peer` itself if it is no trusted proxy."""
        if not self.trusts(peer):
            return peer
        found = peer
        for hop in reversed(_hops(headers)[-_MOST_HOPS:]):
            address = _address(hop)
            if address is None:  # "unknown", or hidden on purpose: nobody knows who is before it
                break
            found = str(address)
            if not self.trusts(found):
                break
        return found

    def scheme(self, peer: str, headers: Mapping[str, str], own: str) -> str:
        """`http` or `https`, as the client used it; `own` is that of the connection."""
        if not self.trusts(peer):
            return own
        last = headers.get("x-forwarded-proto", "").rpartition(",")[2].strip().lower()
        if last in ("http", "https"):
            return last
        found = _PROTO.search(headers.get("forwarded", "").rpartition(",")[2])
        return found[1].lower() if found else own

    def below(self, path: str) -> str:
        """The path without the prefix, where the proxy has left it there."""
        if self.prefix and path.startswith(self.prefix) and path[len(self.prefix) :][:1] in ("/", ""):
            return path[len(self.prefix) :] or "/"
        return path


def _hops(headers: Mapping[str, str]) -> list[str]:
    """The addresses that the headers name, in order: the client's first."""
    by_x, by_rfc = headers.get("x-forwarded-for"), headers.get("forwarded")
    if by_x is not None and by_rfc is not None:
        return []
    if by_x is not None:
        return [each.strip() for each in by_x.split(",")]
    if by_rfc is None:
        return []
    found = (_FOR.search(each.strip()) for each in by_rfc.split(","))
    return [each[1].strip('"') if each else "unknown" for each in found]


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address in a hop, which may have a port: 192.0.2.1:80, [2001:db8::1]:80. `None` if it is no address."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
