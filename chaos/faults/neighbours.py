"""Two models in one service, one of them in trouble: what the other one's clients notice of it.

The steady model is asked alone first, then beside a model that hangs, crashes, is flooded, or fills its memory; or
beside a handler of TorchServe's in such trouble, which may leak, print and fork as well. It must answer everything, its
own answers, and in about the time that a share of the cores takes.
"""

import json
import random
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from chaos.client import Ask, nonce
from chaos.ledger import Ledger, percentile
from chaos.run import Report, Run, passing
from chaos.server import MODEL

Trouble = Literal["hangs", "crashes", "is flooded", "fills its memory", "leaks", "prints", "forks"]

HANDLER = MODEL.with_name("handler.py")
_CLIENTS = 4  # of the steady model
_SLACK = 0.25  # seconds: starting a worker takes a core for as long
_DO: dict[Trouble, tuple[str, dict[str, Any], int]] = {  # the command, what goes with it, and how many clients send it
    "hangs": ("hang", {}, 4),
    "crashes": ("segv", {}, 2),
    "is flooded": ("echo", {}, 64),
    "fills its memory": ("allocate", {"bytes": 4 << 30}, 2),
    "leaks": ("leak", {"bytes": 32 << 20}, 2),
    "prints": ("print", {"lines": 200}, 2),
    "forks": ("fork", {}, 1),
}
_EXPECTED = frozenset(
    {
        (200, ""), (422, "poison_input"), (500, "model_crashed"), (500, "model_error"), (503, "model_unavailable"),
        (503, "queue_full"), (504, "deadline_exceeded"), (504, "model_timeout"), (507, "out_of_memory"),
    }
)  # fmt: skip
"""What the troubled model may answer: anything documented but a wrong answer."""


def _repository(folder: Path, *, archive: bool) -> Path:
    for name in ("steady", "troubled"):
        version = folder / name / "1"
        version.mkdir(parents=True)
        if archive and name == "troubled":
            _write_mar(version / "troubled.mar")
            (version / "model.toml").write_text('source = "troubled.mar"\n')
            continue
        shutil.copy(MODEL, version / "model.py")
        (version / "model.toml").write_text('source = "model.py:Slow20"\n')
    return folder


def _write_mar(file: Path) -> None:
    """The troubled model as an archive of TorchServe's, with `chaos/handler.py`."""
    manifest = {"runtime": "python", "model": {"modelName": "troubled", "modelVersion": "1.0", "handler": HANDLER.name}}
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
        for each in (MODEL, HANDLER):
            archive.write(each, each.name)


async def neighbour(run: Run, fault: str, trouble: Trouble, *, archive: bool = False) -> Report:
    """The steady model alone, and then beside the troubled one, for half the time each. `archive`: that is a `.mar`."""
    repository = _repository(run.folder / f"repository-{fault.replace('/', '-')}", archive=archive)
    flags = ("--default", "steady", "--allow-code", "--replicas", "1", "--max-batch-size", "8")
    limits = ("--max-queue-size", "32", "--compute-timeout", "1", "--max-worker-memory", str(1 << 30))
    command, more, clients = _DO[trouble]
    beside = Ledger()

    def steady(rng: random.Random) -> Ask:
        return Ask(nonce(rng))

    def troubled(rng: random.Random) -> Ask:
        return Ask(nonce(rng), command, more, expect=_EXPECTED, path="/predict/troubled", timeout_ms=5000)

    async with run.stage("", str(repository), *flags, *limits, ready=False) as stage:
        async with stage.load(steady, clients=_CLIENTS):
            await passing(run.seconds / 2)
        alone = [row.seconds for row in stage.ledger.rows if row.good]
        async with stage.load(steady, clients=_CLIENTS), stage.load(troubled, clients=clients, ledger=beside):
            await passing(run.seconds / 2)
        after = [row.seconds for row in stage.ledger.rows if row.good][len(alone) :]
        first, second = percentile(alone, 0.99), percentile(after, 0.99)
        stage.require(bool(after), "the steady model answered nothing")
        bar = 2 * first + _SLACK
        stage.require(second <= bar, f"p99 {1000 * second:.0f} ms beside it: more than {1000 * bar:.0f}")
        stage.complaints += beside.complaints()
    figures = (
        f"p99 {1000 * first:.0f} ms alone, {1000 * second:.0f} beside it; p50 {_ms(alone)} and {_ms(after)}; "
        f"{stage.ledger.summary()}; the other: {beside.summary()}"
    )
    who = "a handler of TorchServe's" if archive else "a model"
    return run.report(fault, f"{who} {trouble} beside another, {run.seconds / 2:g} s each", figures, stage)


def _ms(seconds: Sequence[float]) -> str:
    return f"{1000 * percentile(seconds, 0.5):.0f} ms"
