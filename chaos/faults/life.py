"""Stopping, starting and not starting: F-19, F-26, F-50."""

import os
import signal
import time

from chaos.client import OK, Ask, Load, echo, get, nonce
from chaos.ledger import Ledger, append
from chaos.run import DEADLINE, Report, Run, Stage, passing, verdict
from chaos.server import Server, eventually, free_port
from chaos.wire import UnsentError

_HERD = 200
_UNAVAILABLE = frozenset({OK, (503, "model_unavailable")})


async def terminate(run: Run, fault: str = "F-19", *flags: str) -> Report:
    """SIGTERM under load, again and again, with a slow model and with a fast one. `flags` are more for the server."""
    rounds = max(3, round(run.seconds / 2))
    rng = run.rng()
    complaints: list[str] = []
    ledgers: list[Ledger] = []
    longest = 0.0
    for index in range(rounds):
        keep_alive, model = index % 3 != 2, ("Slow50", "Echo")[index % 2]
        ledger = Ledger()
        server = run.server(model, "--replicas", "2", "--deadline", str(DEADLINE), *flags)
        found, took = await _terminate_once(run, server, ledger, keep_alive=keep_alive, after=rng.uniform(0.2, 1.0))
        kind = f"{model}, {'' if keep_alive else 'no '}keep-alive"
        complaints += [f"round {index + 1} ({kind}): {each}" for each in found]
        longest = max(longest, took)
        ledgers.append(ledger)
    append(run.ledger_file, fault, ledgers)
    new = sum("a new connection" in row.err for ledger in ledgers for row in ledger.rows if row.how == "lost")
    lost, unsent = (sum(ledger.counts[how] for ledger in ledgers) for how in ("lost", "unsent"))
    answered = sum(ledger.good for ledger in ledgers)
    figures = (
        f"{answered} answered 200, {lost} received and lost ({new} on new connections), {unsent} not accepted; "
        f"slowest exit {longest:.2f} s"
    )
    what = f"SIGTERM x {rounds} under {run.clients} clients, keep-alive and (each third) not{' '.join(('', *flags))}"
    return verdict(fault, what, figures, complaints)


async def _terminate_once(
    run: Run, server: Server, ledger: Ledger, *, keep_alive: bool, after: float
) -> tuple[list[str], float]:
    """One server from start to SIGTERM to its end: what is wrong, and the seconds it took to stop."""
    await server.begin()
    try:
        await server.ready()
        load = Load(server.port, ledger, echo, clients=run.clients, seed=run.next_seed(), deadline=DEADLINE)
        load.reconnect, load.keep_alive = False, keep_alive
        async with load:
            await passing(after)
            server.look()
            asked = time.monotonic()
            server.signal(signal.SIGTERM)
            code = await server.ended(32.0)
            seconds = time.monotonic() - asked
        found = ledger.complaints()[:3] + await server.leftovers()
        return ([f"exit code {code}", *found] if code != 0 else found), seconds
    finally:
        await server.kill()


async def cannot_start(run: Run) -> Report:
    """A model that cannot start, and one that cannot start again until it is mended."""
    complaints, told = await _never_starts(run)
    async with run.stage("Mendable", "--replicas", "1") as stage:
        async with stage.load(lambda rng: Ask(nonce(rng), expect=_UNAVAILABLE), clients=min(8, run.clients)):
            figures = await _break_and_mend(stage)
        healthy = Ledger()
        async with stage.load(ledger=healthy):
            await passing(1.0)
        stage.complaints += [f"after mending: {each}" for each in healthy.complaints()]
    stage.complaints += complaints
    unavailable = stage.ledger.statuses[(503, "model_unavailable")]
    stage.require(unavailable > 0, "never 503 model_unavailable")
    loud = [row for row in stage.ledger.rows if row.status == 503]
    stage.require(all(row.retry_after for row in loud), "a 503 without Retry-After")
    what = "a model that cannot load; then one whose restarts fail until it is mended"
    return run.report("F-26", what, f"{told}; {figures}; {stage.ledger.summary()}", stage)


async def _never_starts(run: Run) -> tuple[list[str], str]:
    port = free_port()
    server = run.server("Broken", port=port)
    started = time.monotonic()
    await server.begin()
    accepted = 0
    code: int | None = None
    while code is None and time.monotonic() < started + 30:
        accepted += await _accepts(port)
        code = await server.ended(0.05)
    await server.kill()
    last = server.log().strip().splitlines()[-1:]
    complaints = []
    if code in (0, None):
        complaints.append(f"exit code {code} of a model that cannot load")
    if accepted:
        complaints.append("it listened although its model could not load")
    if "Traceback" in server.log() or not (last and last[0].startswith("flambeau: ")):
        complaints.append(f"not one line: {server.log()[-300:]!r}")
    return complaints + await server.leftovers(), f"exit {code} in {time.monotonic() - started:.1f} s"


async def _accepts(port: int) -> bool:
    try:
        await get(port, "/livez")
    except UnsentError:
        return False
    return True


async def _break_and_mend(stage: Stage) -> str:
    """Kill the only worker while the model cannot load; mend it when the service has given up. The figures."""
    await passing(0.5)
    flag = stage.server.flag("broken")
    flag.touch()
    broken = time.monotonic()
    [worker] = stage.server.workers()
    os.kill(worker, signal.SIGKILL)
    loud = await eventually(lambda: stage.ledger.statuses[(503, "model_unavailable")] > 0, stage.deadline + 5)
    gave_up = time.monotonic() - broken
    stage.require(loud, "it did not give up")
    stage.require(not stage.probe.ready_at(broken + 1.0, time.monotonic(), ready=True), "ready though it could not be")
    flag.unlink()
    mended = time.monotonic()
    answered = stage.ledger.good
    recovered = await eventually(lambda: stage.ledger.good > answered, 35.0)
    stage.require(recovered, "it did not recover in 35 s")
    starts = stage.server.logged("worker cannot start")
    return f"503 after {gave_up:.1f} s and {starts} failed starts, recovered in {time.monotonic() - mended:.1f} s"


async def herd(run: Run) -> Report:
    """200 clients from the moment the process is started."""
    ledger = Ledger()
    port = free_port()
    server = run.server("LateStarter", "--replicas", "2", "--deadline", str(DEADLINE), port=port)
    await server.begin()
    try:
        async with Load(port, ledger, echo, clients=_HERD, seed=run.next_seed(), deadline=DEADLINE):
            await server.ready()
            ready = time.monotonic()
            everybody = await eventually(lambda: ledger.good >= 10 * _HERD, max(5.0, run.seconds))
        code = await server.stop()
    finally:
        await server.kill()
    complaints = ledger.complaints() + await server.leftovers()
    first = min((row.t_done for row in ledger.rows if row.good), default=float("inf")) - ready
    if first > 1.0 or not everybody:
        complaints.append(f"the first 200 came {first:.2f} s after ready; {ledger.good} in all")
    if code != 0:
        complaints.append(f"exit code {code}")
    append(run.ledger_file, "F-50", [ledger])
    refused = ledger.counts["unsent"]
    figures = f"first 200 {1000 * first:+.0f} ms from ready; refused before it × {refused}; {ledger.good} × 200"
    return verdict("F-50", f"{_HERD} clients from t=0 while the server starts", figures, complaints)
