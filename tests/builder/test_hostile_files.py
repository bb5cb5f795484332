"""Every hostile file is told for what it is, and nothing in it runs (T-01 to T-05, T-25).

One process of its own examines the whole corpus under an audit hook: whatever Python itself would report of code, of
processes, of sockets and of files opened for writing is in its account. The tests read that account case by case.
"""

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flambeau.checkpoints import allowlist, examine
from tests.support import forge, hostile

MOST_MEMORY = 96 * 2**20
HANGS_AFTER = 20

EXAMINE_ALL = """
import faulthandler, json, resource, sys, time
from pathlib import Path
from flambeau.checkpoints import examine

events, watched = [], ("compile", "exec", "import", "os.", "pickle.", "subprocess.", "socket.", "ctypes.", "shutil.",
                       "marshal.", "urllib.", "webbrowser.", "pty.", "ftplib.", "sqlite3.", "code.")
harmless = ("os.listdir", "os.scandir")

def watch(event, arguments):
    if event == "open" and arguments[1] is not None and set(str(arguments[1])) & set("wax+"):
        events.append(f"open {arguments[0]}")
    elif event.startswith(watched) and event not in harmless:
        events.append(f"{event} {arguments}"[:200])

memory = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
examine(Path(sys.argv[2]))  # the codecs and modules that a first look needs
sys.addaudithook(watch)
before, answers = memory(), {}
for name, path in json.loads(sys.stdin.read()).items():
    faulthandler.dump_traceback_later(float(sys.argv[1]), exit=True)
    events.clear()
    start = time.perf_counter()
    report = examine(Path(path))
    took = time.perf_counter() - start
    answers[name] = {
        "format": report.format, "verdict": report.verdict, "reason": report.reason, "remedy": report.remedy,
        "globals": {found.name: found.danger for found in report.globals if not found.harmless},
        "seconds": took, "memory": memory() - before, "events": list(events),
    }
faulthandler.cancel_dump_traceback_later()
print(json.dumps(answers))
"""

Account = dict[str, dict[str, Any]]


@pytest.fixture(scope="session")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("canary") / "canary"


@pytest.fixture(scope="session")
def account(tmp_path_factory: pytest.TempPathFactory, canary: Path) -> Account:
    """What `examine` said of every file, by the name of its case."""
    folder = tmp_path_factory.mktemp("hostile")
    files = {name: str(path) for name, path in hostile.write_corpus(folder, canary).items()}
    ended = subprocess.run(
        [sys.executable, "-c", EXAMINE_ALL, str(HANGS_AFTER), files["protocol-0"]],
        input=json.dumps(files), capture_output=True, text=True, timeout=100, check=False, cwd=folder,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    answers: Account = json.loads(ended.stdout)
    return answers


@pytest.mark.parametrize("case", hostile.CORPUS, ids=lambda case: f"{case.fault}-{case.name}")
def test_a_hostile_file_is_refused_for_what_it_is(case: hostile.Hostile, account: Account, canary: Path) -> None:
    answer = account[case.name]
    assert answer["verdict"] == ("code" if case.code else "refused"), answer
    for words in case.words:
        assert words in answer["reason"]
    assert answer["remedy"]
    assert answer["reason"].isprintable()
    assert answer["remedy"].isprintable()
    assert answer["events"] == []
    assert not canary.exists()


def test_memory_stays_bounded_over_the_whole_corpus_t04(account: Account) -> None:
    """Prints the table of all files, the slowest first (to be seen with `pytest -s`)."""
    for name, answer in sorted(account.items(), key=lambda item: -item[1]["seconds"]):
        print(f"{answer['seconds'] * 1000:7.1f} ms  {answer['verdict']:8} {name:40} {answer['reason']}")
    assert max(answer["memory"] for answer in account.values()) <= MOST_MEMORY


def test_the_corpus_is_as_large_as_was_promised() -> None:
    names = [case.name for case in hostile.CORPUS]
    assert len(set(names)) == len(names)
    assert len(names) >= 70
    assert {case.fault for case in hostile.CORPUS} == {"T-01", "T-02", "T-04", "T-05", "T-25"}


@pytest.mark.parametrize(
    "body",
    [
        lambda canary: forge.pickle(hostile.run(canary)),
        lambda canary: forge.pickle(forge.call("builtins", "eval", hostile.script(canary))),
        lambda canary: b"(" + hostile.shell(canary) + b"ios\nsystem\n.",
    ],
    ids=["os.system", "eval", "inst"],
)
def test_the_payloads_would_work_t01(body: Any, tmp_path: Path) -> None:
    """The control: a canary that stays away proves nothing if no payload could have touched it."""
    canary = tmp_path / "canary"
    pickle.loads(body(str(canary)))
    assert canary.exists()


def test_the_allow_list_decides_and_not_the_table_of_dangers_t03(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "file.pth"
    file.write_bytes(forge.saved(forge.pickle(hostile.run("canary"))))
    monkeypatch.setattr(allowlist, "danger", lambda name: "")
    report = examine(file)
    assert report.verdict == "code"
    assert "os.system" in report.reason
