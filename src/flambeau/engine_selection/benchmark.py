"""Benchmark the engines of a bundle in turns, so that a noisy moment of the machine affects all of them."""

import contextlib
import math
import os
import statistics
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import msgspec

from flambeau.bundle.measurements import Trial
from flambeau.engine_selection.candidate import CandidateRequest, GaveUp, Loaded, Reply, Round, Timed
from flambeau.system.process import ending, spawn_child


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How to run a benchmark: the batch sizes in rows, how many rounds of each, and the least `seconds` of a round."""

    threads: int
    batches: tuple[int, ...]
    rounds: int
    seconds: float
    device: str = "auto"
    allow_code: bool = False


def hold(folder: Path, names: Sequence[str], rules: Rules, *, tell: Callable[[str], None] | None = None) -> list[Trial]:
    """Measure the engines `names` on the bundle in `folder`. Returns one trial for each, in that order.

    They are loaded one after the other, then take turns. If an engine fails, its trial has the reason; nothing is
    raised. `tell` is called with each engine's name before it is loaded.
    """
    with contextlib.ExitStack() as stack:
        candidates: list[_CandidateProcess] = []
        for name in names:
            if tell:
                tell(name)
            candidates.append(stack.enter_context(_CandidateProcess(folder, name, rules)))
            candidates[-1].wait()
        for _ in range(rules.rounds):
            for batch in rules.batches:
                for candidate in candidates:
                    candidate.turn(Round(batch, rules.seconds))
        return [candidate.trial() for candidate in candidates]


class _CandidateProcess:
    """The process of one engine, as the benchmark sees it."""

    def __init__(self, folder: Path, engine: str, rules: Rules) -> None:
        self._engine = engine
        self._ms: dict[int, list[float]] = {batch: [] for batch in rules.batches}
        self._loaded: Loaded | None = None
        self._error: str | None = None
        entry = CandidateRequest(
            str(folder), engine, rules.device, rules.threads, rules.batches, rules.allow_code, parent=os.getpid()
        )
        self._process = spawn_child(
            "flambeau.engine_selection.candidate",
            msgspec.json.encode(entry).decode(),
            environment=os.environ | {"OMP_NUM_THREADS": str(rules.threads)},  # as a worker has it
            stdin=subprocess.PIPE,
        )

    def wait(self) -> None:
        """Return when the engine is warm, or has given up."""
        reply = self._receive()
        if isinstance(reply, Loaded):
            self._loaded = reply

    def turn(self, turn: Round) -> None:
        """Have the engine compute a round, unless it has given up."""
        if self._error is not None:
            return
        assert self._process.stdin is not None  # it is a pipe
        with contextlib.suppress(BrokenPipeError):  # `_receive` finds out how the process ended
            self._process.stdin.write(msgspec.json.encode(turn) + b"\n")
            self._process.stdin.flush()
        reply = self._receive()
        if isinstance(reply, Timed):
            self._ms[turn.batch].append(reply.ms)

    def _receive(self) -> Reply:
        assert self._process.stdout is not None  # it is a pipe
        line = self._process.stdout.readline()
        reply: Reply = msgspec.json.decode(line, type=Reply) if line else GaveUp(self._ending())
        if isinstance(reply, GaveUp):
            self._error = reply.reason
        return reply

    def _ending(self) -> str:
        return f"its process ended with {ending(self._process.wait())}"

    def trial(self) -> Trial:
        """What was measured so far."""
        if self._loaded is None:
            return Trial(self._engine, error=self._error)
        return Trial(
            self._engine,
            device=self._loaded.device,
            ms={batch: round(statistics.median(each), 4) for batch, each in self._ms.items() if each},
            load_seconds=round(self._loaded.load_seconds, 3),
            memory_mb=round(self._loaded.memory_mb, 1),
            agreement=self._loaded.agreement,
            error=self._error,
        )

    def __enter__(self) -> "_CandidateProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()  # it holds nothing that needs an orderly shutdown
        self._process.communicate()


# Choosing one of the engines by their trials.


PREFERRED = "onnxruntime"
MARGIN = 1.1
"""How many times faster another engine must be to be chosen over ONNX Runtime, which every installation has and every
bundle was checked with. Measurements vary by a few per cent: with a smaller margin, the choice would be luck."""


def score(trial: Trial) -> float:
    """Milliseconds per image: the geometric mean of the smallest and the largest batch; lower is better.

    A single client and many clients count equally, whichever of the two is slower in absolute terms.
    """
    return math.sqrt(trial.ms[min(trial.ms)] * trial.ms[max(trial.ms)])


def by_auto(trial: Trial, trials: Sequence[Trial]) -> bool:
    """Whether `auto` may choose the engine: those that read the graph, and PyTorch where only it has an accelerator.

    Elsewhere PyTorch would cost every worker some hundred MB, `compile` takes minutes at a first start, and int8 gives
    other answers: these are used only when named.
    """
    if trial.engine == "eager":
        return trial.device != "cpu" and all(each.device == "cpu" for each in trials if each.engine == PREFERRED)
    return trial.engine in (PREFERRED, "openvino")


def why_not(trial: Trial) -> str | None:
    """Why an engine cannot be chosen, or `None` if it can."""
    if trial.error is not None:
        return trial.error
    if trial.agreement is not None and not trial.agreement.holds:
        return f"it does not agree with PyTorch: {trial.agreement}"
    return None if trial.ms else "it was not measured"


def select_engine(trials: Sequence[Trial]) -> tuple[str | None, str]:
    """The engine that `auto` chooses and a sentence that says why; `None` for the name if none can be chosen.

    Example: ONNX Runtime at 10 ms beats OpenVINO at 9.5 ms, which is less than 10% faster, but not OpenVINO at 9 ms.
    """
    fit = sorted((trial for trial in trials if by_auto(trial, trials) and why_not(trial) is None), key=score)
    if not fit:
        return None, "no engine that was tried can be taken"
    fastest = fit[0]
    preferred = next((trial for trial in fit if trial.engine == PREFERRED), fastest)
    if len(fit) == 1:
        return fastest.engine, f"{fastest.engine} takes {_ms(fastest)}, and no other engine that was tried is fit"
    if score(fastest) * MARGIN <= score(preferred):
        return fastest.engine, f"{fastest.engine} takes {_ms(fastest)}, {PREFERRED} {_ms(preferred)}"
    if preferred is fastest:
        if preferred.engine != PREFERRED:
            return fastest.engine, f"{fastest.engine} takes {_ms(fastest)}, {fit[1].engine} {_ms(fit[1])}"
        return PREFERRED, f"{PREFERRED} takes {_ms(preferred)}, {fit[1].engine} {_ms(fit[1])}"
    less = f"less than {MARGIN - 1:.0%} faster"
    return PREFERRED, f"{PREFERRED} takes {_ms(preferred)}, and {fastest.engine} with {_ms(fastest)} is {less}"


def _ms(trial: Trial) -> str:
    return f"{score(trial):.3g} ms"
