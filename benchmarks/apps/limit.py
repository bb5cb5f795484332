"""The machine's limit: the engine and the preparation in a bare loop, without any server. Prints images per second.

`workers` processes loop side by side, each with `threads` engine threads, until the given seconds are over.
"""

import multiprocessing
import sys
import threading
import time
from pathlib import Path

from benchmarks.apps.model import load
from benchmarks.apps.order import Order, ordered

_WARMING = 3  # images


def loop(order: Order, photograph: bytes, seconds: float, together: threading.Barrier) -> float:
    """Images per second of one process; all begin at once."""
    model = load(order)
    for _ in range(_WARMING):
        model.answer([model.prepare(photograph)])
    together.wait()
    done, begun = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - begun) < seconds:
        model.answer([model.prepare(photograph)])
        done += 1
    return done / elapsed


def main(path: Path, seconds: float) -> None:
    """Run the ordered loops and print the sum."""
    order = ordered()
    spawn = multiprocessing.get_context("spawn")
    with spawn.Manager() as manager, spawn.Pool(order.workers) as pool:
        given = (order, path.read_bytes(), seconds, manager.Barrier(order.workers))
        print(sum(pool.starmap(loop, [given] * order.workers)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
