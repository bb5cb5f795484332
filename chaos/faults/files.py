"""Files that cost much to look into: A4, with the cases of `tests/support/costly.py`."""

import asyncio
import os
import sys
from pathlib import Path

from chaos.run import Report, Run, verdict

_ROOT = Path(__file__).parents[2]
_MOST_SECONDS = 4.0  # of processor time; twice what is asked for, of which a tenth is Python's own start
_MOST_BYTES = 512 * 10**6
_GIVEN_UP_AFTER = 60.0

_WRITE = """
import sys
from pathlib import Path
from tests.support import costly

for name, make in costly.CASES.items():
    Path(sys.argv[1], name).write_bytes(make())
"""


async def costly(run: Run) -> Report:
    """`flambeau inspect` over every one of them: what it takes of time and memory."""
    what = "flambeau inspect over small files whose parts repeat what is dear"
    folder = run.folder / "costly"
    folder.mkdir()
    writing = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _WRITE, str(folder), env=os.environ | {"PYTHONPATH": str(_ROOT)}
    )
    await writing.wait()
    rows = [(file.name, *await _look(file)) for file in sorted(folder.iterdir())]
    complaints = [f"{name}: {seconds:.1f} s" for name, seconds, _ in rows if seconds > _MOST_SECONDS]
    complaints += [f"{name}: {size / 1e6:.0f} MB" for name, _, size in rows if size > _MOST_BYTES]
    if not rows:
        complaints.append("no file was written")
    slowest, largest = max(rows, key=lambda row: row[1]), max(rows, key=lambda row: row[2])
    figures = (
        f"{len(rows)} files; at most {slowest[1]:.1f} s of processor time ({slowest[0]}) "
        f"and {largest[2] / 1e6:.0f} MB ({largest[0]})"
    )
    return verdict("A4", what, figures, complaints)


async def _look(file: Path) -> tuple[float, int]:
    """Inspect a file: seconds of processor time, and bytes of memory at the most."""
    process = os.posix_spawn(
        sys.executable, [sys.executable, "-m", "flambeau", "inspect", str(file)], os.environ,
        file_actions=[(os.POSIX_SPAWN_OPEN, each, os.devnull, os.O_WRONLY, 0) for each in (1, 2)],
    )  # fmt: skip
    waiting = asyncio.get_running_loop().run_in_executor(None, os.wait4, process, 0)
    try:
        _, _, used = await asyncio.wait_for(asyncio.shield(waiting), _GIVEN_UP_AFTER)
    except TimeoutError:
        os.kill(process, 9)
        _, _, used = await waiting
    return used.ru_utime + used.ru_stime, used.ru_maxrss * 1024
