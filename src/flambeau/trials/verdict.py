"""Which of the engines that were tried is taken, and why. Knows only their figures."""

import math
from collections.abc import Sequence

from flambeau.measurements import Trial

PREFERRED = "onnxruntime"
MARGIN = 1.1
"""How many times faster another engine must be to be taken instead of ONNX Runtime, which every installation has, which
every bundle was checked with when it was exported, and which is measured to within some per cent: a smaller difference
would make the choice a matter of luck."""


def score(trial: Trial) -> float:
    """Milliseconds an image: the geometric mean of the smallest and the largest batch, the lower the better.

    One client alone and many together count the same, and neither by how slow it is in itself.
    """
    return math.sqrt(trial.ms[min(trial.ms)] * trial.ms[max(trial.ms)])


def by_auto(trial: Trial, trials: Sequence[Trial]) -> bool:
    """Whether `auto` may take the engine: those that read the graph, and PyTorch where it alone has an accelerator.

    Elsewhere PyTorch would cost every worker some hundred MB, `compile` minutes at a first start, and int8 gives other
    answers: they are taken by name only.
    """
    if trial.engine == "eager":
        return trial.device != "cpu" and all(each.device == "cpu" for each in trials if each.engine == PREFERRED)
    return trial.engine in (PREFERRED, "openvino")


def out(trial: Trial) -> str | None:
    """Why an engine cannot be taken, or `None` when it can."""
    if trial.error is not None:
        return trial.error
    if trial.agreement is not None and not trial.agreement.holds:
        return f"it does not agree with PyTorch: {trial.agreement}"
    return None if trial.ms else "it was not measured"


def judge(trials: Sequence[Trial]) -> tuple[str | None, str]:
    """The name of the engine that `auto` takes and a sentence that says why; no name when it can take none."""
    fit = sorted((trial for trial in trials if by_auto(trial, trials) and out(trial) is None), key=score)
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
