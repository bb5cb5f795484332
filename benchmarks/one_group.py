"""Have the kernel count all that a benchmark starts as one, so that busy cores are shared fairly between servers.

Where a machine has something else to do, Linux gives each session its share of the cores (autogroup, sched(7)), and not
each process. Ray begins a session for every worker, and so gets several shares where a server of one session gets one:
its rate tells how many sessions it has, and not what it costs. Members of a control group share as one.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_SHARES = {"cpu.shares": "8192", "cpu.weight": "800"}  # of version 1 and of version 2: eight times a session's


@contextlib.contextmanager
def one_group() -> Iterator[bool]:
    """Be in a control group of one's own meanwhile, with whatever is started. False where the system gives none."""
    root = _ROOT / "cpu" if (_ROOT / "cpu").is_dir() else _ROOT
    group = root / f"flambeau-benchmark-{os.getpid()}"
    made = False
    try:
        if root == _ROOT:
            (root / "cgroup.subtree_control").write_text("+cpu")
        group.mkdir()
        for name, value in _SHARES.items():
            if (group / name).exists():
                (group / name).write_text(value)
        (group / "cgroup.procs").write_text(str(os.getpid()))
        made = True
    except OSError:  # not root, or no such file system
        pass
    try:
        yield made
    finally:
        if made:
            (root / "cgroup.procs").write_text(str(os.getpid()))
        with contextlib.suppress(OSError):
            group.rmdir()
