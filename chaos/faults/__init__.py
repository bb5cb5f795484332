"""All faults by id, in the order in which they are played. The ids are those of the fault list."""

import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from chaos.client import tensor_echo
from chaos.faults import (
    bodies,
    clocks,
    detector,
    files,
    fronts,
    items,
    kills,
    leak,
    life,
    load,
    log,
    neighbours,
    over_grpc,
    pictures,
    slow,
    swap,
)
from chaos.faults.selftest import selftest
from chaos.run import Report, Run


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: its id and how it is played."""

    id: str
    play: Callable[[Run], Awaitable[Report]]


_HANDLERS: dict[str, neighbours.Trouble] = {
    "crash": "crashes", "hang": "hangs", "leak": "leaks", "print": "prints", "fork": "forks",
}  # fmt: skip
"""What a handler of TorchServe's does, and how the row of its trouble is called."""

FAULTS: tuple[Fault, ...] = (
    Fault("SELF-1", lambda run: selftest(run, "SELF-1", "drop")),
    Fault("SELF-2", lambda run: selftest(run, "SELF-2", "swap")),
    Fault("F-01", kills.kill_worker),
    Fault("F-01/1", lambda run: kills.kill_worker(run, "F-01/1", replicas=1)),
    Fault("F-02", kills.kill_all),
    Fault("F-03", kills.hang),
    Fault("F-04", items.raising),
    Fault("F-05", items.poison),
    Fault("F-06", items.memory),
    Fault("F-09", slow.slow_clients),
    Fault("F-09/64", lambda run: slow.slow_clients(run, "F-09/64", per_address=64)),
    Fault("F-11", load.disconnects),
    Fault("F-12", load.overload),
    Fault("F-13", load.greedy),
    Fault("F-14", load.deadlines),
    Fault("F-18", swap.swap),
    Fault("F-18/kills", lambda run: swap.swap(run, "F-18/kills", beside="kills")),
    Fault("F-18/faulty", lambda run: swap.swap(run, "F-18/faulty", beside="failing loads")),
    Fault("F-18/stop", swap.terminated),
    Fault("models/hang", lambda run: neighbours.neighbour(run, "models/hang", "hangs")),
    Fault("models/crash", lambda run: neighbours.neighbour(run, "models/crash", "crashes")),
    Fault("models/flood", lambda run: neighbours.neighbour(run, "models/flood", "is flooded")),
    Fault("models/memory", lambda run: neighbours.neighbour(run, "models/memory", "fills its memory")),
    *(
        Fault(
            f"handler/{name}",
            functools.partial(neighbours.neighbour, fault=f"handler/{name}", trouble=trouble, archive=True),
        )
        for name, trouble in _HANDLERS.items()
    ),
    Fault("F-19", life.terminate),
    Fault("F-19/fronts", lambda run: life.terminate(run, "F-19/fronts", "--fronts", "2")),
    Fault("fronts/kill", fronts.kill_front),
    Fault("F-19/grpc", lambda run: over_grpc.terminate_over_grpc(run, "F-19/grpc")),
    Fault("F-26", life.cannot_start),
    Fault("F-27", items.nonfinite),
    Fault("F-46", items.outputs),
    Fault("F-50", life.herd),
    Fault("A4", files.costly),
    Fault("A11", bodies.long_reads),
    Fault("A12", bodies.many_uploads),
    Fault("A21", log.stalled_reader),
    Fault("A2/pictures", pictures.dear_pictures),
    Fault("batching", load.batching),
    Fault("A2", clocks.hanging),
    Fault("A3", clocks.paused),
    Fault("headline", lambda run: kills.kill_worker(run, "headline", seconds=run.headline_seconds)),
    Fault("headline/1", lambda run: kills.kill_worker(run, "headline/1", replicas=1, seconds=run.headline_seconds)),
    Fault(
        "headline/v2",
        lambda run: kills.kill_worker(
            run, "headline/v2", seconds=run.headline_seconds, make=tensor_echo, over="KServe v2: "
        ),
    ),
    Fault(
        "headline/grpc",
        lambda run: over_grpc.kill_worker_over_grpc(run, "headline/grpc", seconds=run.headline_seconds),
    ),
    Fault(
        "headline/detector",
        lambda run: detector.detector(run, "headline/detector", seconds=run.headline_seconds),
    ),
    Fault("F-47", leak.leak),
)


def chosen(only: str) -> list[Fault]:
    """The faults of a comma-separated list; all of an empty one. `handler` is every fault whose id begins `handler/`.

    Raises `ValueError` for what names no fault.
    """
    wanted = [each.strip() for each in only.split(",") if each.strip()]
    found = [fault for fault in FAULTS if not wanted or fault.id in wanted or fault.id.partition("/")[0] in wanted]
    known = {fault.id for fault in FAULTS}
    groups = {fault.partition("/")[0] for fault in known}
    if unknown := [each for each in wanted if each not in known | groups]:
        raise ValueError(f"{', '.join(unknown)}: known are {', '.join(sorted(known | groups))}")
    return found
