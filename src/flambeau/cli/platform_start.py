"""The start of a service on a platform: its first line in the log, its model, and a build kept within its time."""

import logging
import os
import tempfile
import time

import msgspec

from flambeau.errors import ConfigError, SourceError
from flambeau.settings.platforms import START_SECONDS, STRIPS_AUTHORIZATION, TITLES, Profile
from flambeau.settings.service import Settings
from flambeau.settings.source import SourceOptions
from flambeau.settings.table import SECRET_VARIABLES
from flambeau.sources import model_folder
from flambeau.sources.request import Advance, BuildStep, Note
from flambeau.telemetry import logs

_QUARTERS = 4
_SHORTEST = 20  # seconds in which a small model can be built at all
_CACHE = "FLAMBEAU_CACHE"


def begin(profile: Profile, settings: Settings) -> None:
    """Log the platform, and give bundles a place that can be written to. Raises `ConfigError` for idle tokens."""
    logs.event(
        "platform", name=profile.name, found=profile.evidence or "--platform", host=settings.host, port=settings.port,
        health=settings.health_route, predict=settings.predict_route,
        tokens="none" if settings.insecure_no_auth else None,
    )  # fmt: skip
    if profile.name in STRIPS_AUTHORIZATION:
        idle = next((name for name in SECRET_VARIABLES if os.environ.get(name)), settings.tokens_file)
        if idle:
            raise ConfigError(
                f"{TITLES[profile.name]} takes the header Authorization off every request, so that no caller could "
                f"show a token: take {idle} away, for IAM decides there who may call"
            )
    if not os.environ.get(_CACHE) and not _can_write(os.environ.get("HOME")):
        os.environ[_CACHE] = os.path.join(tempfile.gettempdir(), f"flambeau-{os.getuid()}")


def _can_write(home: str | None) -> bool:
    return bool(home) and os.access(str(home), os.W_OK | os.X_OK)


def model_of(options: SourceOptions, profile: Profile, *, given: str) -> SourceOptions:
    """The options with the model in the platform's folder as their source. `given`: the place of the source's setting.

    Raises `ConfigError`. A source that the operator named is taken as it is.
    """
    if options.source is None or "source" not in profile.values or given != profile.place("source"):
        return options
    found = model_folder.find(options.source, allow_code=options.allow_code)
    logs.event("model", source=found.source, given=given)
    if found.note:
        logs.event(found.note, level=logging.WARNING)
    return msgspec.structs.replace(options, source=found.source)


class BuildWindow:
    """The progress of a build as lines of the log. Ends a build that takes longer than the platform waits."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._most = START_SECONDS.get(profile.name)
        self._began = time.monotonic()
        self._step: BuildStep | None = None
        self._told = 0

    def __call__(self, event: BuildStep | Advance | Note) -> None:
        """Raises `SourceError` when the time is over, or would be in any case."""
        if isinstance(event, Note):
            logs.event("build note", note=event.text)
            return
        self._refuse_late()
        seconds = f"{time.monotonic() - self._began:.1f}"
        if isinstance(event, BuildStep):
            self._step, self._told = event, 0
            logs.event("build step", step=f"{event.number}/{event.of}", what=event.what, seconds=seconds)
        elif self._step is not None and int(event.share * _QUARTERS) > self._told:
            self._told = int(event.share * _QUARTERS)
            step = f"{self._step.number}/{self._step.of}"
            logs.event("build step", step=step, done=f"{100 * self._told // _QUARTERS}%", seconds=seconds)

    def _refuse_late(self) -> None:
        most, title = self._most, TITLES[self._profile.name]
        if most is None:
            return
        remedy = "build it before (flambeau build SOURCE -o bundle, or flambeau package SOURCE) and deploy the bundle"
        if most < _SHORTEST:
            raise SourceError(f"{title} waits {most} s for a start, too short to build a model in: {remedy}")
        if time.monotonic() - self._began > most:
            raise SourceError(f"the build is not done in the {most} s that {title} waits for a start: {remedy}")

    def done(self) -> None:
        """Nothing is open: every line of the log is whole."""
