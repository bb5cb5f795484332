"""The targets that Flambeau set itself, and whether a run meets them. Ratios are of medians of one alternating run."""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import msgspec

from benchmarks.results import OURS, TWO_FRONTS, Result, Row, best

GUNICORN = "gunicorn tuned"
_MOSEC = "mosec"
_BEST = "best peer: "
_MEMORIES: tuple[tuple[str, Callable[[Row], float]], ...] = (("idle", Row.idle), ("under load", Row.loaded))


class Verdict(msgspec.Struct, frozen=True):
    """One target. `than` names what the ratio is to; `at_least` tells which side of `bound` is the good one."""

    what: str
    than: str
    ratio: float
    bound: float
    at_least: bool

    @property
    def met(self) -> bool:
        """Whether the ratio is on the good side."""
        return self.ratio >= self.bound if self.at_least else self.ratio <= self.bound


def judge(results: Mapping[str, Result]) -> list[Verdict]:
    """The verdicts on what was measured; of what was not there are none."""
    verdicts: list[Verdict] = []
    for name, result in results.items():
        ours = result.row(OURS)
        if ours is not None and result.others():
            verdicts += _JUDGES[name](result, ours)
    return verdicts


def _lite0(result: Result, ours: Row) -> Iterator[Verdict]:
    for clients in (8, 32):
        yield from _faster(result, ours, clients, 2.2)
        if gunicorn := result.row(GUNICORN):
            yield _speed(result, ours, gunicorn, clients, 2.2)
        yield from _near_limit(result, ours, clients, 0.95)
    peer = best(result.others(), lambda row: row.p50(1), least=True)
    assert peer is not None
    yield Verdict(f"{result.title}, 1 client, p50", _BEST + peer.peer, ours.p50(1) / peer.p50(1), 0.35, at_least=False)
    yield from _steady_and_small(result, ours)
    peer = best(result.others(), Row.idle, least=True)
    if peer and (two := result.row(TWO_FRONTS)):
        ratio = two.idle() / peer.idle()
        yield Verdict(f"{result.title}, two fronts, memory idle", _BEST + peer.peer, ratio, 0.65, at_least=False)


def _densenet(result: Result, ours: Row) -> Iterator[Verdict]:
    yield from _faster(result, ours, 8, 1.4)
    yield from _near_limit(result, ours, 8, 0.92)
    yield from _steady_and_small(result, ours)


def _tiny(result: Result, ours: Row) -> Iterator[Verdict]:
    mosecs = [row for row in result.others() if row.peer.startswith(_MOSEC)]
    yield from _faster(result, ours, 32, 1.5, without=tuple(row.peer for row in mosecs))
    batched = [row for row in mosecs if row.peer != _MOSEC]
    for clients, bound, rows in ((1, 8.0, batched), (8, 3.0, batched), (32, 1.2, mosecs), (128, 1.2, mosecs)):
        if fastest := best(rows, partial(Row.per_second, clients=clients)):
            yield _speed(result, ours, fastest, clients, bound)
    for clients in (32, 128):
        fastest = best(mosecs, partial(Row.per_second, clients=clients))
        if fastest and (two := result.row(TWO_FRONTS)):
            yield _speed(result, two, fastest, clients, 1.6, who="two fronts, ")
    yield from _steady_and_small(result, ours)


def _same_engine(result: Result, ours: Row) -> Iterator[Verdict]:
    yield from _faster(result, ours, 8, 1.0)


_JUDGES: dict[str, Callable[[Result, Row], Iterator[Verdict]]] = {
    "lite0": _lite0,
    "densenet121": _densenet,
    "tiny": _tiny,
    "lite0-same": _same_engine,
    "densenet121-same": _same_engine,
}


def _faster(
    result: Result, ours: Row, clients: int, bound: float, *, without: tuple[str, ...] = ()
) -> Iterator[Verdict]:
    if peer := best(result.others(without=without), lambda row: row.per_second(clients)):
        yield _speed(result, ours, peer, clients, bound, than=_BEST + peer.peer)


def _speed(
    result: Result, ours: Row, peer: Row, clients: int, bound: float, *, than: str = "", who: str = ""
) -> Verdict:
    what = f"{result.title}, {who}{clients} client{'s' * (clients > 1)}, requests/s"
    theirs = peer.per_second(clients)  # 0 where the machine is so busy that no answer came within the window
    ratio = ours.per_second(clients) / theirs if theirs else math.inf
    return Verdict(what, than or peer.peer, ratio, bound, at_least=True)


def _near_limit(result: Result, ours: Row, clients: int, bound: float) -> Iterator[Verdict]:
    if limit := result.limit():
        what = f"{result.title}, {clients} clients, images/s"
        yield Verdict(what, "the limit", ours.per_second(clients) / limit, bound, at_least=True)


def _steady_and_small(result: Result, ours: Row) -> Iterator[Verdict]:
    others = result.others()
    if peer := best(others, Row.cold, least=True):
        what = f"{result.title}, start to first answer, cached"
        yield Verdict(what, _BEST + peer.peer, ours.cold() / peer.cold(), 0.4, at_least=False)
    for when, memory in _MEMORIES:
        if peer := best(others, memory, least=True):
            what = f"{result.title}, memory {when}"
            yield Verdict(what, _BEST + peer.peer, memory(ours) / memory(peer), 0.6, at_least=False)
    yield Verdict(f"{result.title}, 8 clients, p99", "its p50", ours.p99(8) / ours.p50(8), 2.0, at_least=False)
