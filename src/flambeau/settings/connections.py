"""The settings about who may connect, and what a connection may do. They are part of `flambeau.settings.service`."""

import functools
from dataclasses import dataclass

from flambeau.settings.setting_field import setting

_access = functools.partial(setting, group="Access")
_connection = functools.partial(setting, group="Connections")


@dataclass(frozen=True, kw_only=True)
class ConnectionSettings:
    """Access and connections. Durations are seconds; sizes are bytes."""

    # Access
    tokens_file: str | None = _access(
        None,
        "File of lines 'infer TOKEN' and 'admin TOKEN'; requests then need one of them.",
        metavar="FILE",
        long="File of tokens, one a line: `infer TOKEN` or `admin TOKEN`, or `sha256:` and the token's SHA-256 in "
        "hex in its place. Requests then need one of them ([security.md](security.md#tokens)).",
    )
    metrics_public: bool = _access(
        False,
        "Let /metrics be read without a token.",
    )
    allowed_hosts: str | None = _access(
        None,
        "Names that requests may have in their Host header. Default: on loopback its own names, else any.",
        metavar="NAME,NAME",
        long="Names, separated by commas, that requests may have in their `Host` header. On loopback or a Unix socket, "
        "`localhost`, `127.0.0.1` and `[::1]` are always allowed. `*` is any. Not set: these alone there, else any.",
    )
    trusted_proxies: str | None = _access(
        None,
        "Addresses or networks of proxies whose word about the client's address and scheme is taken.",
        metavar="ADDRESS,ADDRESS",
        long="Addresses or networks of [proxies](operations.md#behind-a-proxy), separated by commas, whose "
        "`X-Forwarded-For` and `X-Forwarded-Proto`, or `Forwarded`, are believed; `unix` is whoever connects by the "
        "Unix socket. Not set: nobody's.",
    )
    root_path: str | None = _access(
        None,
        "Prefix of all paths as clients see them, behind a proxy.",
        metavar="PATH",
        long="Prefix of all paths as clients see them, [behind a proxy](operations.md#behind-a-proxy) that strips it "
        "or leaves it there: `/cats`.",
    )
    cors_origins: str | None = _access(
        None,
        "Origins whose pages may call this server from a browser; * is all of them.",
        metavar="ORIGIN,ORIGIN",
        long="Origins, separated by commas, whose pages may call this server from a browser; `*` is all of them.",
    )
    tls_certificate: str | None = _access(
        None,
        "TLS certificate and its chain, in PEM.",
        metavar="FILE",
        long="TLS certificate and its chain, a PEM file. Needs `--tls-key`.",
    )
    tls_key: str | None = _access(
        None,
        "Private key of the TLS certificate, in PEM.",
        metavar="FILE",
        long="Private key of the TLS certificate, a PEM file without a password.",
    )
    rate_limit: str | None = _access(
        None,
        "Most predictions per token, or per address if there are no tokens: 100/minute.",
        metavar="RATE",
        long="Most predictions per token, or per address if there are no tokens: `100/minute`, "
        "`5/second`. Further ones are answered 429. Needs the extra `rate-limit`.",
    )

    # Connections
    max_connections: int = _connection(
        1024,
        "Most connections at a time; further ones are answered 503.",
        minimum=1,
        long="Most connections at a time. Further ones are answered 503 and closed.",
    )
    max_connections_per_address: int | None = _connection(
        None,
        "Most connections from one address; 0 is no limit. Default: 64, and no limit on loopback.",
        minimum=0,
        long="Most connections from one address; 0 is no limit. Not set: 64, and no limit on loopback, where proxies "
        "and benchmarks run. Raise it behind a proxy on another machine.",
    )
    header_timeout: float = _connection(
        10.0,
        "Seconds within which a request's headers must be complete.",
        minimum=0.1,
        long="Seconds within which a request's headers must be complete; else it is answered 408.",
    )
    body_timeout: float = _connection(
        10.0,
        "Seconds over which a body must arrive at --min-body-rate; slower ones are answered 408.",
        minimum=0.1,
        long="Seconds over which a body must arrive at `--min-body-rate`; else it is answered 408.",
    )
    min_body_rate: int = _connection(
        1024,
        "Least bytes a second of a body that is being received.",
        minimum=0,
        long="Least bytes a second of a body that is being received, and of an answer that is being read.",
    )
    write_timeout: float = _connection(
        30.0,
        "Seconds over which a client must read its answer at --min-body-rate; else it is disconnected.",
        minimum=0.1,
        long="Seconds over which a client must read its answer at `--min-body-rate`; else it is disconnected.",
    )
    idle_timeout: float = _connection(
        15.0,
        "Seconds that a connection stays open without a request.",
        minimum=0.1,
    )
    max_request_line: int = _connection(
        8192,
        "Longest address of a request in bytes; longer ones are 414.",
        minimum=64,
        long="Longest address of a request, in bytes. Longer ones are answered 414.",
    )
    max_headers: int = _connection(
        100,
        "Most headers of a request; more are 431.",
        minimum=1,
        long="Most headers of a request. More are answered 431.",
    )
    max_header_bytes: int = _connection(
        8192,
        "Longest header in bytes; longer ones are 431.",
        minimum=64,
        long="Longest header, in bytes. Longer ones are answered 431.",
    )
    max_headers_bytes: int = _connection(
        32768,
        "Most bytes of all headers together; more are 431.",
        minimum=64,
        long="Most bytes of all headers together. More are answered 431.",
    )
