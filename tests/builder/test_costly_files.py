"""A4: looking into a file costs seconds and megabytes by its size, whatever it repeats.

A file of a few megabytes once took gigabytes and minutes, in the process that looked. What is asked for is 2 s and
512 MB; time is held to ten times that, for machines that are busy, and memory as it stands.
"""

import json
import random
import resource
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import costly, forge

pytestmark = pytest.mark.long

MOST_MEMORY = 512 * 10**6
QUICK = {  # of each kind of file and of cost one; the others are run by `make test-slow`
    "ordered-dict", "encode", "size", "numbers-as-keys", "averaged-weights", "zip-extra-fields",
    "onnx-places", "safetensors-nested-names",
}  # fmt: skip
MOST_SECONDS = 20
"""Of processor time. Without a bound these files take minutes, and then the kernel ends who looks."""


MEASURE = f"""
import json, resource, subprocess, sys

def limit():
    resource.setrlimit(resource.RLIMIT_CPU, ({MOST_SECONDS}, {MOST_SECONDS}))
    resource.setrlimit(resource.RLIMIT_AS, (4 * 10**9, 4 * 10**9))

done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=limit)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps({{
    "code": done.returncode, "said": done.stdout, "memory": used.ru_maxrss * 1024,
    "seconds": used.ru_utime + used.ru_stime,
}}))
"""


def _measured(*command: str) -> str:
    """Run a command within limits, and tell what it took, as JSON.

    A small process starts it: to Linux the most memory of a process is never less than that of the one it came from.
    """
    return subprocess.run([sys.executable, "-c", MEASURE, *command], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in costly.CASES]
)
def test_a_file_that_repeats_itself_costs_no_more_than_others_a4(name: str, tmp_path: Path) -> None:
    file = tmp_path / "costly.bin"
    file.write_bytes(costly.CASES[name]())
    found = json.loads(_measured(sys.executable, "-m", "flambeau", "inspect", str(file)))
    assert found["code"] in (0, 1), found["said"]
    assert "safe" in found["said"]
    assert found["memory"] < MOST_MEMORY
    assert found["seconds"] < MOST_SECONDS


# Pickles out of pieces, at random: each takes what lies in the memo and makes something of it.

GLOBALS = (
    ("collections", "OrderedDict"), ("collections", "Counter"), ("builtins", "set"), ("builtins", "bytearray"),
    ("_codecs", "encode"), ("torch", "Size"), ("torch._utils", "_rebuild_tensor"), ("argparse", "Namespace"),
    ("pathlib", "PosixPath"), ("numpy", "dtype"), ("os", "system"), ("__main__", "Net"), ("torch", "device"),
)  # fmt: skip


def piece(rng: random.Random) -> bytes:
    """One thing for the stack: large or small, new or out of the memo."""
    match rng.randrange(9):
        case 0:
            return forge.text("k" * rng.choice((0, 1, 60, 2_000, 200_000)))
        case 1:
            return forge.number(rng.choice((0, -1, 2**61 - 1, 2**61, 2 ** rng.randrange(1, 900))))
        case 2:
            return b"](" + b"K\1" * rng.choice((0, 1, 50, 50_000)) + b"e"
        case 3:
            return forge.dict_of({f"{rng.random()}": b"N" for _ in range(rng.choice((0, 1, 9, 3_000)))})
        case 4:
            return b"(" + b"K\1" * rng.choice((0, 1, 64, 65, 50_000)) + b"t"
        case 5:
            return forge.name(*rng.choice(GLOBALS))
        case 6:
            return forge.storage()
        case 7:
            return rng.choice((b"N", b"\x88", b")", b"}", b"]", b"\x8f", b"G" + struct.pack(">d", rng.random())))
        case _:
            return (
                forge.name("__main__", "Net") + b")\x81" + forge.dict_of({"_parameters": b"}", "_modules": b"}"}) + b"b"
            )


def step(rng: random.Random, places: int) -> bytes:
    """Something made of two things in the memo, and put on the stack."""
    one, two = (b"h" + bytes([rng.randrange(places)]) for _ in range(2))
    return rng.choice(
        (one + two + b"R", one + two + b"\x85R", one + two + b"\x86", b"}" + one + two + b"s", b"](" + one + two + b"e",
         one + two + b"b", one + two + b"\x81", one + b"\x85Q", one + two + b"\x93", b"}(" + (one + two) * 50 + b"u",
         b"(" + one * 200 + b"t", one + two + b"a")
    )  # fmt: skip


def generated(rng: random.Random) -> bytes:
    places = rng.randrange(2, 12)
    body = b"".join(piece(rng) + b"q" + bytes([place]) for place in range(places))
    steps = [step(rng, places) for _ in range(rng.randrange(1, 5))]
    body += b"(" + b"".join(steps) * rng.choice((1, 300, 40_000))
    body += rng.choice((b"l", b"t", b"d", b"1}", b"0" + b"}"))
    whole = forge.pickle(body, protocol=rng.choice((2, 4)))
    return rng.choice((forge.saved(whole), forge.legacy(body=whole), forge.old(pickle=whole), whole))


LOOK = """
import json, re, sys, time
from pathlib import Path
from flambeau import errors
from flambeau.sources import inspection

rows = []
for path in sorted(Path(sys.argv[1]).iterdir()):
    began = time.process_time()
    report = inspection.inspect(path).report
    rows.append((path.name, report.verdict, time.process_time() - began))
most = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())
print(json.dumps({"rows": rows, "memory": int(most[1]) * 1024}))
"""


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3))])
def test_pickles_at_random_cost_no_more_either_a4(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    for index in range(60):
        (tmp_path / f"{index:03}").write_bytes(generated(rng))
    looked = subprocess.run(
        [sys.executable, "-c", LOOK, tmp_path], capture_output=True, text=True, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (4 * 10**9, 4 * 10**9)),
    )  # fmt: skip
    assert looked.returncode == 0, looked.stderr
    told = json.loads(looked.stdout)
    assert len(told["rows"]) == 60
    assert max(seconds for _, _, seconds in told["rows"]) < MOST_SECONDS
    assert told["memory"] < MOST_MEMORY
    print(told["memory"] // 10**6, "MB;", sorted(told["rows"], key=lambda row: -row[2])[:3])
