"""A replica of a Python model: what it is given, what it may answer, and what becomes of what it raises."""

import asyncio
import os
import py_compile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flambeau.bundle.storage import Bundle, CodeReference, PythonConfig
from flambeau.errors import CodeNotAllowed, EngineError, InvalidInput, SourceError
from flambeau.runners.base import RunnerState, Work
from flambeau.runners.python_replica import open_python_model
from flambeau.runners.replica import Replica
from flambeau.runners.threads import ThreadsRunner
from flambeau.types import Item, Options, Payload, Value
from tests.support.replicas import SUBSETS, items, manifest, results

MODEL = """
import flambeau
import numpy as np
import torch

class Model(flambeau.PythonModel):
    def predict(self, batch):
        {}
"""


PYTHON_MODEL = PythonConfig(CodeReference("Model", file="model.py"))


def python_bundle(folder: Path, source: str) -> Bundle:
    (folder / "model.py").write_text(source)
    return Bundle(folder, manifest(pipeline=PYTHON_MODEL, engine="python"))


def python_replica(folder: Path, body: str) -> Replica:
    found = python_bundle(folder, MODEL.format(body.replace("\n", "\n" + " " * 8)))
    assert isinstance(found.manifest.pipeline, PythonConfig)
    return open_python_model(found, found.manifest.pipeline, allow_code=True)


def test_a_python_model_gets_plain_values_and_bytes(tmp_path: Path) -> None:
    replica = python_replica(tmp_path, "return [repr(item) for item in batch]")
    batch = [*items('{"a": [1, null, 0.5]}', '"text"', "-0"), Item(Payload("file", memoryview(b"ab")), Options())]
    assert results(replica.run(batch)) == ["\"{'a': [1, None, 0.5]}\"", "\"'text'\"", '"0"', "\"b'ab'\""]


def test_an_item_that_python_cannot_hold_never_reaches_the_model_f34(tmp_path: Path) -> None:
    replica = python_replica(tmp_path, "return [len(batch)] * len(batch)")
    assert results(replica.run(items("1", "1e999", '"\\ud800"', "2"))) == ["2", "invalid_json", "invalid_json", "2"]
    assert results(replica.run(items("1e999"))) == ["invalid_json"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ("ValueError('x')", "model_error"),
        ("flambeau.InvalidInput('negative')", "input_rejected"),
        ("MemoryError", "out_of_memory"),
    ],
)
def test_when_a_model_raises_exactly_the_guilty_items_fail_for_all_subsets_f04(
    tmp_path: Path, error: str, code: str
) -> None:
    replica = python_replica(tmp_path, f"if min(batch) < 0:\n    raise {error}\nreturn [item * 2 for item in batch]")
    for bad in SUBSETS:
        batch = items(*(str(-1 if index in bad else index) for index in range(8)))
        assert results(replica.run(batch)) == [code if index in bad else str(2 * index) for index in range(8)], bad


@pytest.mark.parametrize(
    ("error", "code"),
    [("ValueError('x')", "model_error"), ("flambeau.InvalidInput('negative')", "input_rejected"),
     ("StopIteration()", "model_error"), ("MemoryError()", "out_of_memory")],
)  # fmt: skip
def test_an_exception_as_an_answer_fails_that_item_alone_f04(tmp_path: Path, error: str, code: str) -> None:
    replica = python_replica(tmp_path, f"return [{error} if item < 0 else item for item in batch]")
    assert results(replica.run(items("1", "-1", "2", "-1"))) == ["1", code, "2", code]


def test_the_sentence_of_a_model_that_refuses_reaches_the_client(tmp_path: Path) -> None:
    replica = python_replica(tmp_path, "raise flambeau.InvalidInput('send a positive number', hint='like 3')")
    [outcome] = replica.run(items("-1"))
    assert isinstance(outcome.result, InvalidInput)
    assert (outcome.result.message, outcome.result.hint) == ("send a positive number", "like 3")


@pytest.mark.parametrize(
    "body",
    ["return [1]", "return [1, 2, 3, 4]", "return []", "return None", "return 5", "return {'a': 1, 'b': 2}",
     "return 'ab'", "return (item for item in batch)", "return map(str, batch)", "return {1, 2}",
     "return np.zeros((5, 2))", "return torch.zeros(5)", "return [object() for item in batch]",
     "return [1j for item in batch]", "return [(n for n in [1]) for item in batch]", "return np.array([1j, 2j])"],
)  # fmt: skip
def test_answers_that_cannot_be_sent_are_the_models_fault_f46(tmp_path: Path, body: str) -> None:
    replica = python_replica(tmp_path, f"if len(batch) == 2:\n    {body}\nreturn ['alone', 'extra']")
    assert results(replica.run(items("1", "2"))) == ["model_output_invalid"] * 2


def test_a_wrong_number_of_answers_makes_the_items_run_alone_once_f46(tmp_path: Path) -> None:
    replica = python_replica(tmp_path, "return [batch[0] * 10]")
    assert results(replica.run(items("1", "2", "3"))) == ["10", "20", "30"]


@pytest.mark.parametrize(
    ("body", "answers"),
    [
        ("return np.array(batch) * 2", ["2", "4"]),
        ("return np.array([[item, item] for item in batch], np.float32)", ["[1.0,1.0]", "[2.0,2.0]"]),
        ("return torch.tensor(batch)", ["1", "2"]),
        ("return torch.tensor([[1.5], [2.5]], requires_grad=True)", ["[1.5]", "[2.5]"]),
        ("return [torch.tensor([item]) for item in batch]", ["[1]", "[2]"]),
        ("return tuple(batch)", ["1", "2"]),
        ("return [{'n': np.int64(item)} for item in batch]", ['{"n":1}', '{"n":2}']),
        ("return [None for item in batch]", ["null", "null"]),
    ],
)
def test_arrays_tensors_and_plain_values_are_answers(tmp_path: Path, body: str, answers: list[str]) -> None:
    assert results(python_replica(tmp_path, body).run(items("1", "2"))) == answers


def test_answers_that_are_not_finite_become_null_and_are_counted_f27(tmp_path: Path) -> None:
    replica = python_replica(tmp_path, "return [[float('nan'), None, item] for item in batch]")
    [outcome] = replica.run(items("1"))
    assert outcome.result == Value(b"[null,null,1]", nonfinite=1)


def test_a_model_that_empties_its_batch_does_not_confuse_the_replica(tmp_path: Path) -> None:
    replica = python_replica(tmp_path, "taken = [batch.pop() for _ in list(batch)]\nreturn taken[::-1]")
    assert results(replica.run(items("1", "2", "3"))) == ["1", "2", "3"]


@pytest.mark.parametrize("left", ["half of it", "another's"])
def test_what_runs_is_the_source_and_no_bytecode_beside_it(tmp_path: Path, left: str) -> None:
    """Python leaves half a file of bytecode on a full disk; and nobody verifies what else might lie there."""
    source = MODEL.format("return [1 for item in batch]")
    file = tmp_path / "model.py"
    file.write_text(source.replace("1", "2"))  # as long, and as old
    os.utime(file, (1, 1))
    bytecode = Path(str(py_compile.compile(str(file), doraise=True)))
    if left == "half of it":
        bytecode.write_bytes(bytecode.read_bytes()[:100])
    file.write_text(source)
    os.utime(file, (1, 1))
    before = bytecode.read_bytes()
    replica = open_python_model(
        Bundle(tmp_path, manifest(pipeline=PYTHON_MODEL, engine="python")), PYTHON_MODEL, allow_code=True
    )
    assert results(replica.run(items("0"))) == ["1"]
    assert bytecode.read_bytes() == before


def test_a_python_model_needs_permission_and_the_right_class(tmp_path: Path) -> None:
    found = python_bundle(tmp_path, "raise SystemError('it ran')")
    pipeline = found.manifest.pipeline
    assert isinstance(pipeline, PythonConfig)
    with pytest.raises(CodeNotAllowed):
        open_python_model(found, pipeline, allow_code=False)
    for source, why in (
        ("raise SystemError('it ran')", "SystemError: it ran"),
        ("class Model: pass", "is not a subclass of flambeau.PythonModel"),
        ("import flambeau\nclass Model(flambeau.PythonModel): pass", "cannot be loaded: TypeError"),
        ("Other = 1", "has no Model"),
    ):
        (tmp_path / "model.py").write_text(source)
        with pytest.raises(SourceError, match=why):
            open_python_model(found, pipeline, allow_code=True)


def test_a_model_that_exits_fails_that_item_alone(tmp_path: Path) -> None:
    replica = python_replica(tmp_path, "if 'exit' in batch:\n    raise SystemExit(3)\nreturn batch")
    assert results(replica.run(items("1", '"exit"', "2"))) == ["1", "model_error", "2"]


@pytest.mark.parametrize(
    "raised", ["KeyboardInterrupt()", "SystemExit(3)", "GeneratorExit()", "type('Timeout', (BaseException,), {})()"]
)
def test_whatever_a_model_raises_over_one_item_fails_that_item_alone_a8(tmp_path: Path, raised: str) -> None:
    """In a thread of its own, where no Ctrl-C arrives: such as a timeout of gevent's, which is no `Exception`."""
    replica = python_replica(tmp_path, f"if 'bad' in batch:\n    raise {raised}\nreturn batch")
    with ThreadPoolExecutor(1) as pool:
        outcomes = pool.submit(replica.run, items("1", '"bad"', "2")).result()
    assert results(outcomes) == ["1", "model_error", "2"]


def test_ctrl_c_in_the_main_thread_is_the_users_a8(tmp_path: Path) -> None:
    replica = python_replica(tmp_path, "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        replica.run(items("1"))


def test_a_model_that_exits_neither_ends_its_thread_nor_the_process(tmp_path: Path) -> None:
    source = MODEL.format("if 'exit' in batch:\n            raise SystemExit(3)\n        return batch")
    runner = threads_runner(python_bundle(tmp_path, source))

    async def talk() -> list[list[str]]:
        changes = asyncio.Event()
        assert (await runner.start(changes.set)).device == "cpu"
        found = []
        for texts in (['"exit"'], ["1", "2"], ['"exit"', "4"], ["3"]):
            slot = runner.reserve()
            assert slot is not None
            assert runner.reserve() is None
            changes.clear()
            found.append(results(await slot([Work(item, 60.0) for item in items(*texts)])))
            await asyncio.wait_for(changes.wait(), 10)
        assert runner.state() is RunnerState.READY
        await runner.close(timeout=10)
        assert runner.state() is RunnerState.FAILED
        return found

    assert asyncio.run(talk()) == [["model_error"], ["1", "2"], ["model_error", "4"], ["3"]]


@pytest.mark.parametrize(
    ("body", "error", "why"),
    [
        ("raise FileNotFoundError('weights.bin')", SourceError, "FileNotFoundError: weights.bin"),
        ("raise SystemExit(3)", EngineError, "SystemExit: 3"),
    ],
)
def test_starting_in_threads_says_why_a_model_cannot_be_loaded_f26(
    tmp_path: Path, body: str, error: type[Exception], why: str
) -> None:
    source = MODEL.format("return batch") + f"\n    def load(self):\n        {body}\n"
    with pytest.raises(error, match=why):
        asyncio.run(threads_runner(python_bundle(tmp_path, source)).start(lambda: None))


def threads_runner(found: Bundle) -> ThreadsRunner:
    pipeline = found.manifest.pipeline
    assert isinstance(pipeline, PythonConfig)
    return ThreadsRunner(lambda: open_python_model(found, pipeline, allow_code=True), name="net", replicas=1)
