"""A contest: the engines of a bundle measured in turns, so that a noisy moment of the machine meets all of them."""

import contextlib
import os
import statistics
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import msgspec

from flambeau.measurements import Trial
from flambeau.process import NO_TELEMETRY, OWN_GROUP, interpreter
from flambeau.trials.messages import Entry, GaveUp, Loaded, Reply, Round, Timed


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How a contest is held: `batches` of so many rows, each in so many `rounds` of at least so many `seconds`."""

    threads: int
    batches: tuple[int, ...]
    rounds: int
    seconds: float
    device: str = "auto"
    allow_code: bool = False


def hold(folder: Path, names: Sequence[str], rules: Rules, *, tell: Callable[[str], None] | None = None) -> list[Trial]:
    """Measure the engines `names` on the bundle in `folder`, one trial each in their order.

    They are loaded one after the other and then take turns. An engine that fails has its reason in its trial; nothing
    is raised for it. `tell` is called with a name before it is loaded.
    """
    with contextlib.ExitStack() as stack:
        contestants: list[_Contestant] = []
        for name in names:
            if tell:
                tell(name)
            contestants.append(stack.enter_context(_Contestant(folder, name, rules)))
            contestants[-1].wait()
        for _ in range(rules.rounds):
            for batch in rules.batches:
                for contestant in contestants:
                    contestant.turn(Round(batch, rules.seconds))
        return [contestant.trial() for contestant in contestants]


class _Contestant:
    """The process of one engine, as its contest sees it."""

    def __init__(self, folder: Path, engine: str, rules: Rules) -> None:
        self._engine = engine
        self._ms: dict[int, list[float]] = {batch: [] for batch in rules.batches}
        self._loaded: Loaded | None = None
        self._error: str | None = None
        entry = Entry(
            str(folder), engine, rules.device, rules.threads, rules.batches, rules.allow_code, parent=os.getpid()
        )
        self._process = subprocess.Popen(
            [interpreter(), "-P", "-W", "ignore", "-m", __name__.replace("contest", "contestant"),
             msgspec.json.encode(entry).decode()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=OWN_GROUP,
            env=os.environ | NO_TELEMETRY | {"OMP_NUM_THREADS": str(rules.threads)},  # as a worker has it
        )  # fmt: skip

    def wait(self) -> None:
        """Return when the engine is warm, or has given up."""
        reply = self._receive()
        if isinstance(reply, Loaded):
            self._loaded = reply

    def turn(self, turn: Round) -> None:
        """Have a round computed, unless the engine has given up."""
        if self._error is not None:
            return
        assert self._process.stdin is not None  # it is a pipe
        with contextlib.suppress(BrokenPipeError):  # what became of it is read below
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
        code = self._process.wait()
        return f"its process ended with {f'signal {-code}' if code < 0 else f'exit code {code}'}"

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

    def __enter__(self) -> "_Contestant":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()  # it holds nothing that is worth an orderly end
        self._process.communicate()
