"""Runners by name: where replicas live. A runner is imported only when it is asked for: a front whose replicas are
processes then imports neither their engines nor Pillow.
"""

from collections.abc import Callable

from flambeau.runners.base import ObservedRunner, ReplicaSpec
from flambeau.settings.service import Settings


def make(
    spec: ReplicaSpec, settings: Settings, *, replicas: int, has_machine: Callable[[], bool] = lambda: True
) -> ObservedRunner:
    """The runner that the settings ask for. Nothing is started yet.

    `has_machine`: whether no other model computes, so that a batch that is alone may use every core.
    """
    if settings.runner == "threads":
        from flambeau.runners.replica import open_replica
        from flambeau.runners.threads import ThreadsRunner

        return ThreadsRunner(lambda: open_replica(spec), name=spec.name, replicas=replicas)
    if settings.runner == "ray":
        from flambeau.runners.ray.runner import RayRunner

        return RayRunner(spec, settings, replicas=replicas)
    from flambeau.runners.processes import ProcessesRunner

    return ProcessesRunner(spec, settings, replicas=replicas, has_machine=has_machine)
