"""The settings of a model that is a handler: its archive's, where the operator gave none."""

import dataclasses
from typing import Any

from flambeau.bundle.storage import HandlerConfig, Manifest
from flambeau.errors import ConfigError
from flambeau.settings.service import Settings

_USUAL_TIMEOUT = 120.0  # seconds; TorchServe's own
_USUAL_DELAY = 100  # milliseconds to wait for a batch; TorchServe's own


def limited(settings: Settings, manifest: Manifest) -> Settings:
    """The settings that hold for a model. Raises `ConfigError` for one that cannot be served so."""
    config = manifest.pipeline
    if not isinstance(config, HandlerConfig):
        return settings
    if settings.runner != "processes":
        raise ConfigError(
            f"{manifest.name} has a handler, which changes the folder and the imports of its whole process: serve it "
            "(flambeau serve), with --runner processes"
        )
    own: dict[str, Any] = {}
    if not settings.max_batch_size:
        own["max_batch_size"] = config.batch
        if config.batch > 1 and not settings.max_queue_delay_ms:
            own["max_queue_delay_ms"] = float(config.delay_ms or _USUAL_DELAY)
    if settings.replicas is None and (most := max(config.workers, config.most_workers)):
        own["replicas"] = most
    if settings.compute_timeout == Settings.compute_timeout:
        own["compute_timeout"] = float(config.timeout or _USUAL_TIMEOUT)
    if config.startup_timeout and settings.startup_timeout == Settings.startup_timeout:
        own["startup_timeout"] = float(config.startup_timeout)
    return dataclasses.replace(settings, **own)
