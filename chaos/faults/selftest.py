"""The harness before a server made faulty on purpose: it passes when it fails there."""

import time

from chaos.client import Load, echo
from chaos.faulty import Fault, FaultyProxy
from chaos.ledger import Ledger, append
from chaos.run import Report, Run, verdict
from chaos.server import eventually

_MOST_SECONDS = 30.0
_DEADLINE = 1.0


async def selftest(run: Run, fault: str, kind: Fault) -> Report:
    """One answer in a thousand is dropped, or swapped with another: the verdict over it must be that it failed."""
    ledger = Ledger()
    async with run.stage("Echo", "--replicas", "2") as stage:
        proxy = FaultyProxy(stage.server.port, kind)
        started = time.monotonic()
        async with proxy.running():
            load = Load(proxy.port, ledger, echo, clients=run.clients, seed=run.next_seed(), deadline=_DEADLINE)
            async with load:
                await eventually(lambda: time.monotonic() > started + min(4.0, run.seconds), _MOST_SECONDS)
                await eventually(lambda: proxy.spoilt > 0, _MOST_SECONDS)
    append(run.ledger_file, fault, [ledger])
    noticed = ledger.counts["lost"] if kind == "drop" else ledger.counts["wrong"]
    complaints = list(stage.complaints)
    if noticed < proxy.spoilt or not ledger.complaints():
        complaints.append(f"{proxy.spoilt} answers spoilt, {noticed} noticed")
    told = f"{proxy.spoilt} spoilt, {noticed} noticed; verdict there: {'; '.join(ledger.complaints()[:2])}"
    doing = "drops" if kind == "drop" else "swaps"
    return verdict(fault, f"a proxy that {doing} one answer in 1000: the harness must notice", told, complaints)
