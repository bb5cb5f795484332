"""Manifests for Kubernetes and a compose file, rendered from the templates of this package.

The templates are the source of `deploy/kubernetes` and `deploy/compose.yaml`, which `scripts/make_manifests.py`
writes; the Helm chart is written by hand, and tests/deploy compares what both render. Nothing here asks a cluster or a
registry.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal
from urllib.parse import urlsplit

import jinja2

from flambeau.deploy.needs import Needs
from flambeau.errors import ConfigError
from flambeau.system.machine import MIB

Extra = Literal["keda", "monitor", "ingress", "gateway"]
"""What is rendered only if asked for: autoscaling by the queue, Prometheus' operator, ways in from outside."""

USUAL = ("deployment", "service", "poddisruptionbudget", "networkpolicy")
"""The objects of every deployment, by the names of their templates."""

PRE_STOP = 5
"""Seconds that a pod goes on answering while the endpoints forget it."""

GROUP = 10001
"""The group that may read the pod's Secret and volume: the image's own."""

_OF_EXTRA = {"keda": "scaledobject", "monitor": "servicemonitor", "ingress": "ingress", "gateway": "httproute"}
_LABEL = re.compile(r"[a-z]([-a-z0-9]{0,48}[a-z0-9])?")  # RFC 1035, with room for what controllers append
_SUBDOMAIN = re.compile(r"(?=.{1,253}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_IMAGE = re.compile(r"[a-z0-9][a-zA-Z0-9._:/@-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Fetch:
    """A bundle in a tar archive, fetched by an init container, which verifies the archive's SHA-256."""

    url: str
    sha256: str

    @property
    def port(self) -> int:
        """The TCP port that the network policy must let through."""
        parts = urlsplit(self.url)
        return parts.port or (80 if parts.scheme == "http" else 443)


@dataclass(frozen=True, slots=True)
class Values:
    """What the templates are filled with. The defaults are those of the chart's values.yaml.

    `replicas` and `max_replicas` are pods, `workers` and `threads` those of the service in each. `claim` is a
    PersistentVolumeClaim (for compose, a folder), mounted on /models. `tokens_secret` is a Secret with the key
    `tokens`; compose takes tokens from its variables instead. Without either, the service asks nobody for a token.
    Memory is in Kubernetes' notation.
    """

    name: str = "flambeau"
    namespace: str | None = None
    image: str = "flambeau"
    replicas: int = 2
    max_replicas: int = 6
    scaling: Literal["cpu", "keda", "none"] = "cpu"
    cpu: int = 2
    memory_request: str = "320Mi"
    memory_limit: str = "896Mi"
    workers: int | None = None
    threads: int | None = None
    drain_timeout: int = 30
    pre_stop: int = PRE_STOP
    tokens_secret: str | None = None
    tokens_variables: bool = False
    source: str | None = None
    claim: str | None = None
    fetch: Fetch | None = None
    watch: bool = False
    allow_code: bool = False
    fs_group: int | None = None
    host: str = "flambeau.example.org"
    tls_secret: str = "flambeau-tls"  # noqa: S105  # the name of a Secret
    ingress_class: str | None = None
    gateway: str = "gateway"
    prometheus: str = "http://prometheus-operated.monitoring.svc:9090"

    def check(self) -> None:
        """Raise `ConfigError` for a name that Kubernetes would refuse."""
        if not _LABEL.fullmatch(self.name):
            raise ConfigError(
                f"--name {self.name} is no name for Kubernetes: small letters, digits and hyphens, a letter first, "
                "at most 50"
            )
        for flag, text in (("--namespace", self.namespace), ("--host", self.host), ("--tls-secret", self.tls_secret)):
            if text is not None and not _SUBDOMAIN.fullmatch(text):
                raise ConfigError(f"{flag} {text} is no name for Kubernetes: small letters, digits, hyphens and dots")
        if not _IMAGE.fullmatch(self.image):
            raise ConfigError(f"--image {self.image} is no image's name: write it as in registry.example.org/cats:1")
        if self.fetch is not None:
            _check_fetch(self.fetch)

    def grace(self, *, before: int) -> int:
        """The seconds from the order to stop to the kill: `before` SIGTERM, then what `--drain-timeout` allows."""
        return before + 2 * self.drain_timeout + 5


def _check_fetch(fetch: Fetch) -> None:
    if urlsplit(fetch.url).scheme not in ("http", "https") or not urlsplit(fetch.url).hostname:
        raise ConfigError(f"{fetch.url} is not fetched: give an address that begins with https:// or http://")
    if not _SHA256.fullmatch(fetch.sha256):
        raise ConfigError(f"--sha256 {fetch.sha256} is no SHA-256: give the 64 digits that sha256sum prints")


def with_needs(values: Values, needs: Needs) -> Values:
    """The values with a bundle's measured needs."""
    return replace(
        values,
        cpu=needs.cpu,
        memory_request=f"{needs.memory_request // MIB}Mi",
        memory_limit=f"{needs.memory_limit // MIB}Mi",
        workers=needs.workers,
        threads=needs.threads,
    )


def resource_name(model: str) -> str:
    """A name for Kubernetes made of a model's: small letters, digits and hyphens, a letter first."""
    words = re.findall("[a-z0-9]+", model.lower())
    name = "-".join(words)[:50].strip("-") or "model"
    return name if name[0].isalpha() else f"m-{name}"[:50].strip("-")


def kubernetes(values: Values, extras: Iterable[Extra] = ()) -> dict[str, str]:
    """The manifests as text, by the names of their templates, in the order in which they are applied."""
    values.check()
    names = [*USUAL]
    if values.scaling == "cpu":
        names.append("horizontalpodautoscaler")
    names += [_OF_EXTRA[each] for each in extras]
    words = _words(values) | {"grace": values.grace(before=values.pre_stop)}
    if values.fs_group is None and (values.tokens_secret or values.claim):
        words["fs_group"] = GROUP
    return {name: _templates().get_template(f"kubernetes/{name}.yaml").render(words) for name in names}


def compose(values: Values, *, stack: bool) -> str:
    """The compose file. `stack`: with Prometheus, Grafana and nginx, whose files lie beside it in `deploy/`."""
    values.check()
    words = _words(values) | {"grace": values.grace(before=0), "stack": stack}
    return _templates().get_template("compose.yaml").render(words)


def _words(values: Values) -> dict[str, Any]:
    words = {name: getattr(values, name) for name in Values.__dataclass_fields__}
    if words["source"] is None and (values.claim or values.fetch):
        words["source"] = "/models/bundle" if values.fetch else "/models"
    words["metadata"] = lambda: _metadata(values)
    return words


def _metadata(values: Values) -> str:
    """The lines of an object's metadata, those after the first indented as in the templates."""
    lines = [f"name: {values.name}"]
    if values.namespace:
        lines.append(f"namespace: {values.namespace}")
    lines += ["labels:", "  app.kubernetes.io/name: flambeau", f"  app.kubernetes.io/instance: {values.name}"]
    return "\n  ".join(lines)


def _templates() -> jinja2.Environment:
    # YAML, not HTML: what users give is quoted by `quoted`, or is checked to be a plain name
    made = jinja2.Environment(  # noqa: S701
        loader=jinja2.PackageLoader("flambeau.deploy"), undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    made.filters |= {"quoted": _quoted, "in_mib": in_mib}
    return made


def _quoted(text: str) -> str:
    """As a double-quoted scalar, unless it is plainly a word."""
    return text if re.fullmatch(r"[a-zA-Z/][a-zA-Z0-9._/-]*", text) else json.dumps(text)


def in_mib(quantity: str) -> int:
    """The MiB of Kubernetes' notation, such as 512Mi or 2Gi. Raises `ConfigError` for any other."""
    found = re.fullmatch(r"([1-9][0-9]*)(Mi|Gi)", quantity)
    if not found:
        raise ConfigError(f"{quantity} is not understood as an amount of memory: write it as in 512Mi or 2Gi")
    return int(found[1]) * (1024 if found[2] == "Gi" else 1)
