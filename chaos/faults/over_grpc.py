"""The headline and the end of the server once more, over gRPC: F-01 and F-19."""

import signal

from chaos.faults.kills import every, rate
from chaos.grpc_load import GrpcLoad
from chaos.ledger import Ledger, append
from chaos.run import DEADLINE, Report, Run, passing, verdict
from chaos.server import free_port

_FLAGS = ("--max-batch-size", "8", "--replicas", "2")


async def kill_worker_over_grpc(run: Run, fault: str, *, seconds: float) -> Report:
    """kill -9 of a random worker every 2 s, under calls."""
    port, period = free_port(), min(2.0, seconds / 3)
    async with (
        run.stage("Slow50", *_FLAGS, "--grpc-port", str(port)) as stage,
        GrpcLoad(run, f"127.0.0.1:{port}", stage.ledger),
        every(period, stage, run.rng(), how_many=1) as kills,
    ):
        await passing(seconds)
    stage.require(len(kills) > 1, f"only {len(kills)} kills")
    what = f"gRPC: kill -9 of a random worker every {period:.1f} s for {seconds:g} s, 2 replicas"
    return run.report(fault, what, f"{len(kills)} kills; {rate(stage, seconds)}", stage)


async def terminate_over_grpc(run: Run, fault: str) -> Report:
    """SIGTERM under calls, again and again: each that was made is answered, and then nobody listens."""
    rounds, rng = max(3, round(run.seconds / 2)), run.rng()
    complaints: list[str] = []
    ledgers: list[Ledger] = []
    for index in range(rounds):
        port, ledger = free_port(), Ledger()
        server = run.server("Slow50", *_FLAGS, "--deadline", str(DEADLINE), "--grpc-port", str(port))
        await server.begin()
        try:
            await server.ready()
            async with GrpcLoad(run, f"127.0.0.1:{port}", ledger):
                await passing(rng.uniform(0.2, 1.0))
                server.look()
                server.signal(signal.SIGTERM)
                code = await server.ended(32.0)
            found = ledger.complaints()[:3] + await server.leftovers()
        finally:
            await server.kill()
        complaints += [f"round {index + 1}: {each}" for each in (*found, *([f"exit code {code}"] if code else []))]
        ledgers.append(ledger)
    append(run.ledger_file, fault, ledgers)
    answered, lost = (sum(count(each) for each in ledgers) for count in (_good, _lost))
    what = f"gRPC: SIGTERM x {rounds} under {run.clients} clients"
    return verdict(fault, what, f"{answered} answered, {lost} made and lost", complaints)


def _good(ledger: Ledger) -> int:
    return ledger.good


def _lost(ledger: Ledger) -> int:
    return ledger.counts["lost"]
