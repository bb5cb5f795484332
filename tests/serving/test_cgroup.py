"""What control groups leave a process: in trees as the kernel lays them out, and in real groups where these can be
made (P9).
"""

import contextlib
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from flambeau.system import machine
from tests.support.server import FLAMBEAU, started

MIB = 1024 * 1024
V1_UNLIMITED = 9223372036854771712


def tree(root: Path, own: str, mounts: str) -> Path:
    """A root whose /proc says so."""
    proc = root / "proc/self"
    proc.mkdir(parents=True)
    (proc / "cgroup").write_text(own)
    (proc / "mountinfo").write_text(mounts)
    return root


def put(root: Path, files: dict[str, object]) -> None:
    """Write files of groups, by their paths."""
    for name, text in files.items():
        file = root / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")


V2 = (
    "23 1 0:20 / /proc rw - proc proc rw\n"
    "29 22 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
)
V1 = (
    "33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n"
)


def test_a_service_of_systemd_is_bound_by_its_own_group_and_by_all_above_it_p9(tmp_path: Path) -> None:
    root = tree(tmp_path, "0::/system.slice/flambeau.serving.service\n", V2)
    put(
        root,
        {
            "cpu.stat": "usage_usec 1",  # the root group has no limits
            "system.slice/cpu.max": "150000 100000",
            "system.slice/memory.max": "max",
            "system.slice/memory.events": "low 0\nhigh 0\noom 9\noom_kill 9",
            "system.slice/flambeau.serving.service/cpu.max": "max 100000",
            "system.slice/flambeau.serving.service/memory.max": 300 * MIB,
            "system.slice/flambeau.serving.service/memory.events": "low 0\nhigh 0\noom 3\noom_kill 2\noom_group_kill 0",
        },
    )
    assert machine.cpu_quota(root) == 1.5
    assert machine.memory_limit(root) == 300 * MIB
    assert machine.oom_kills(root) == 2
    put(root, {"system.slice/flambeau.serving.service/cpu.max": "20000 50000", "system.slice/memory.max": 200 * MIB})
    assert machine.cpu_quota(root) == 0.4
    assert machine.memory_limit(root) == 200 * MIB


def test_a_group_to_which_a_controller_is_not_given_is_bound_by_the_next_above_p9(tmp_path: Path) -> None:
    root = tree(tmp_path, "0::/user.slice/app.scope\n", V2)
    put(
        root,
        {
            "user.slice/app.scope/cgroup.procs": "1",
            "user.slice/memory.max": 100 * MIB,
            "user.slice/memory.events": "oom_kill 4",
        },
    )
    assert machine.cpu_quota(root) is None
    assert machine.memory_limit(root) == 100 * MIB
    assert machine.oom_kills(root) == 4


def test_version_1_p9(tmp_path: Path) -> None:
    root = tree(tmp_path, "9:name=systemd:/x\n4:memory:/a/b\n1:cpu,cpuacct:/c/d\n0::/\n", V1)
    put(
        root,
        {
            "cpu,cpuacct/cpu.cfs_quota_us": -1,
            "cpu,cpuacct/cpu.cfs_period_us": 100000,
            "cpu,cpuacct/c/cpu.cfs_quota_us": 250000,
            "cpu,cpuacct/c/cpu.cfs_period_us": 100000,
            "cpu,cpuacct/c/d/cpu.cfs_quota_us": -1,
            "cpu,cpuacct/c/d/cpu.cfs_period_us": 100000,
            "memory/memory.limit_in_bytes": V1_UNLIMITED,
            "memory/a/memory.limit_in_bytes": 64 * MIB,
            "memory/a/b/memory.limit_in_bytes": V1_UNLIMITED,
            "memory/a/b/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 5",
        },
    )
    assert machine.cpu_quota(root) == 2.5
    assert machine.memory_limit(root) == 64 * MIB
    assert machine.oom_kills(root) == 5


def test_a_container_that_sees_its_own_group_alone_p9(tmp_path: Path) -> None:
    mounts = (
        "35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
        "33 31 0:30 /docker/abc /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu\n"
    )
    root = tree(tmp_path, "4:memory:/docker/abc\n1:cpu:/docker/abc/deeper\n", mounts)
    put(
        root,
        {
            "memory/memory.limit_in_bytes": V1_UNLIMITED,
            "memory/memory.stat": f"cache 0\nhierarchical_memory_limit {32 * MIB}",  # by a group that is not to be seen
            "cpu/cpu.cfs_quota_us": 100000,
            "cpu/cpu.cfs_period_us": 50000,
        },
    )
    assert machine.memory_limit(root) == 32 * MIB
    assert machine.cpu_quota(root) == 2.0


@pytest.mark.parametrize("path", ["/", "/../../elsewhere", "/not/there"])
def test_a_path_that_is_not_to_be_found_here_means_the_top_p9(tmp_path: Path, path: str) -> None:
    root = tree(tmp_path, f"0::{path}\n", V2)
    put(root, {"cpu.max": "100000 100000", "memory.max": 48 * MIB, "memory.events": "oom_kill 1"})
    assert (machine.cpu_quota(root), machine.memory_limit(root), machine.oom_kills(root)) == (1.0, 48 * MIB, 1)


def test_a_mount_point_with_a_space_p9(tmp_path: Path) -> None:
    root = tree(tmp_path, "0::/a\n", "29 22 0:26 / /sys/fs/cgroup/my\\040groups rw - cgroup2 cgroup2 rw\n")
    put(root, {"my groups/a/memory.max": 48 * MIB})
    assert machine.memory_limit(root) == 48 * MIB


def test_without_groups_there_are_the_machines_own_limits_p9(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/vmstat").write_text("nr_free_pages 7\noom_kill 3\n")
    assert machine.cpu_quota(tmp_path) is None
    assert machine.memory_limit(tmp_path) == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert machine.oom_kills(tmp_path) == 3
    assert machine.oom_kills(tmp_path / "nowhere") == 0


def own_group(controller: str) -> Path:
    """The folder of this process's group of version 1, where it can be written to."""
    for group in machine._groups(controller, Path("/")):
        if (group / "tasks").exists() and os.access(group, os.W_OK):
            return group
    pytest.skip(f"no groups of {controller} can be made here")


@contextlib.contextmanager
def real_group(controller: str, limits: dict[str, object]) -> Iterator[Path]:
    """A new group with limits, below this process's own, and one in it without: the folder of that."""
    outer = own_group(controller) / f"flambeau-test-{os.getpid()}"
    try:
        outer.mkdir()
        for name, value in limits.items():
            (outer / name).write_text(str(value))
        (outer / "inner").mkdir()
    except OSError as error:
        pytest.skip(f"no groups of {controller} can be made here: {error}")
    try:
        yield outer / "inner"
    finally:
        for folder in (outer / "inner", outer):
            for _ in range(100):
                with contextlib.suppress(OSError):
                    folder.rmdir()
                    break
                time.sleep(0.05)


def inside(group: Path, code: str) -> str:
    """What Python code prints in a process of that group."""
    enter = f"import os; open({str(group / 'tasks')!r}, 'w').write(str(os.getpid()))\n"
    return subprocess.run([sys.executable, "-c", enter + code], capture_output=True, text=True, check=True).stdout


def test_in_a_real_group_the_quota_above_counts_p9() -> None:
    with real_group("cpu", {"cpu.cfs_period_us": 100000, "cpu.cfs_quota_us": 100000}) as group:
        code = "from flambeau.system import machine\nprint(machine.cpu_quota(), machine.usable_cores())"
        assert inside(group, code).split() == ["1.0", "1"]


def test_in_a_real_group_the_memory_above_counts_p9() -> None:
    with real_group("memory", {"memory.limit_in_bytes": 256 * MIB}) as group:
        assert inside(group, "from flambeau.system import machine; print(machine.memory_limit())") == f"{256 * MIB}\n"


GLUTTON = """
import flambeau

class Glutton(flambeau.PythonModel):
    def predict(self, batch):
        return [len(b"x" * item) for item in batch]
"""


@pytest.mark.long
def test_an_input_over_which_the_kernel_kills_its_worker_is_guilty_at_once_p9(tmp_path: Path) -> None:
    (tmp_path / "glutton.py").write_text(GLUTTON)
    with real_group("memory", {"memory.limit_in_bytes": 500 * MIB}) as group:
        serve = shlex.join(
            [*FLAMBEAU, "serve", "glutton.py:Glutton", "--allow-code", "--port", "0", "--deadline", "120"]
        )
        command = ["sh", "-c", f"echo $$ > {group}/tasks; exec {serve}"]
        with started(command, tmp_path, cwd=tmp_path) as server:
            asked = [
                requests.post(f"{server.url}/predict", json={"input": size}, timeout=130)
                for size in (1000, 2000 * MIB, 2000 * MIB, 1000)
            ]
            assert [each.status_code for each in asked] == [200, 507, 422, 200], [each.text for each in asked]
            assert server.log().count("worker lost") == 1
