"""Slow clients by the thousand, from a tool that is not ours: F-09, with Debian's slowhttptest."""

import asyncio
import os
import random
import re
import shutil
from pathlib import Path

from chaos import proc
from chaos.client import Ask, get, nonce
from chaos.run import Report, Run, Stage, passing

_CONNECTIONS = 1000
_LEAST_ATTACK = 20.0  # seconds; the server takes 12 to cut off a slow head or body
_MOST_TIMES_SLOWER = 2.0
_POOL = 8  # threads
_REFUSED = re.compile(r'flambeau_refusals_total\{code="(\w+)"\} (\S+)')

_ATTACKS = {
    "headers": ("-H", "-i", "10", "-x", "24"),
    "body": ("-B", "-i", "10", "-s", "65536", "-x", "24"),
    "read": ("-X", "-w", "1", "-y", "8", "-n", "5", "-z", "32"),
}


async def slow_clients(run: Run, fault: str = "F-09", *, per_address: int | None = None) -> Report:
    """A thousand slow connections beside clients that predict; `per_address` as in the setting."""
    what = (
        f"slowhttptest, {_CONNECTIONS} connections with slow headers, then slow bodies, then slow reading, "
        f"{'no limit for one address' if per_address is None else f'{per_address} connections for one address'}"
    )
    if not await _installed():
        return Report(fault, what, "not applicable yet", "slowhttptest is not installed: apt-get install slowhttptest")
    flags = () if per_address is None else ("--max-connections-per-address", str(per_address))
    async with run.stage("Slow20", "--replicas", "2", "--max-batch-size", "8", *flags) as stage:
        phase = "baseline"

        def make(rng: random.Random) -> Ask:
            return Ask(nonce(rng), group=phase)

        async with stage.load(make):
            await passing(1.0)
            stage.ledger.rows.clear()
            await passing(max(run.seconds / 2, 3.0))
            before = _threads(stage)
            peaks = {}
            for phase, arguments in _ATTACKS.items():
                peaks[phase] = await _attack(stage, arguments, max(run.seconds, _LEAST_ATTACK))
            phase = "after"
            more = _threads(stage) - before  # a pool of fixed size answers what is no prediction
            stage.require(more <= _POOL, f"{before} threads before, {more} more after")
        refused = dict(_REFUSED.findall((await get(stage.server.port, "/metrics")).body.decode()))
    baseline = stage.latency(group="baseline")
    figures = [f"p99 without {1000 * baseline:.0f} ms"]
    for attack, (connections, memory) in peaks.items():
        slow = stage.latency(group=attack)
        figures.append(f"slow {attack}: {1000 * slow:.0f} ms, {connections} connections, +{memory / 2**20:.0f} MiB")
        stage.require(
            slow <= _MOST_TIMES_SLOWER * baseline,
            f"p99 {1000 * slow:.0f} ms beside slow {attack}, {1000 * baseline:.0f} without",
        )
        if per_address is None:
            stage.require(connections >= _CONNECTIONS * 0.9, f"only {connections} connections with slow {attack}")
    kinds = ("client_too_slow",) if per_address is None else ("client_too_slow", "rate_limited")
    for kind in kinds:
        stage.require(float(refused.get(kind, 0)) > 0, f"nobody was refused as {kind}")
    told = ", ".join(f"{code} × {float(count):.0f}" for code, count in sorted(refused.items()))
    return run.report(fault, what, f"{'; '.join(figures)}; refused {told}; {stage.ledger.summary()}", stage)


async def _attack(stage: Stage, arguments: tuple[str, ...], seconds: float) -> tuple[int, int]:
    """Most connections that the server had more than before, and by how many bytes its memory grew."""
    files, memory = proc.descriptors(stage.server.pid), _resident(stage.server.pid)
    path = "livez" if "-X" in arguments else "predict"
    attack = await asyncio.create_subprocess_exec(
        "slowhttptest", *arguments, "-c", str(_CONNECTIONS), "-r", "200", "-p", "5", "-l", f"{seconds:.0f}",
        "-f", "application/json", "-u", f"http://127.0.0.1:{stage.server.port}/{path}",
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    most = grown = 0
    ended = asyncio.create_task(attack.wait())
    while not ended.done():
        most = max(most, proc.descriptors(stage.server.pid) - files)
        grown = max(grown, _resident(stage.server.pid) - memory)
        await asyncio.wait([ended], timeout=0.25)
    return most, grown


async def _installed() -> bool:
    if shutil.which("slowhttptest"):
        return True
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        return False
    install = await asyncio.create_subprocess_exec(
        "apt-get", "install", "-y", "slowhttptest",
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    return await install.wait() == 0


def _threads(stage: Stage) -> int:
    return len(list(Path(f"/proc/{stage.server.pid}/task").iterdir()))


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
