"""Replicas: one outcome per item whatever a model does, and a bad item fails alone."""

import asyncio
import itertools
import os
import py_compile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from flambeau.bundle import storage
from flambeau.bundle.storage import Bundle, CodeReference, Manifest, PythonConfig, Source, TensorConfig
from flambeau.errors import CodeNotAllowed, EngineError, InvalidInput, RequestError, SourceError
from flambeau.pipelines.base import open_pipeline
from flambeau.runners.base import BatchCost, RunnerState, Work
from flambeau.runners.python_replica import open_python_model
from flambeau.runners.replica import Replica, TensorReplica
from flambeau.runners.threads import ThreadsRunner
from flambeau.serving.batch_sizes import measured_sizes
from flambeau.types import Answer, Item, Options, Outcome, Payload, Tensors, TensorSpec, Value

INPUT, OUTPUT = TensorSpec("x", "float32", (2,)), TensorSpec("y", "float32", (2,))
SUBSETS = [frozenset(bad) for count in range(9) for bad in itertools.combinations(range(8), count)]


def items(*texts: str) -> list[Item]:
    return [Item(Payload("json", text.encode()), Options()) for text in texts]


def results(outcomes: Sequence[Outcome]) -> list[str]:
    """The JSON of each answer, or the code of each error."""
    return [_result(outcome.result) for outcome in outcomes]


def _result(result: Answer | RequestError) -> str:
    if isinstance(result, RequestError):
        return result.code
    assert isinstance(result, Value)
    return result.json.decode()


class Engine:
    """Doubles its rows, or does what a test wants instead."""

    inputs: tuple[TensorSpec, ...] = (INPUT,)
    outputs: tuple[TensorSpec, ...] = (OUTPUT,)

    def __init__(self, compute: Callable[[np.ndarray], object] = lambda rows: rows * 2) -> None:
        self.compute = compute
        self.sizes: list[int] = []
        self.closed = False

    def run(self, batch: Tensors) -> Tensors:
        self.sizes.append(len(batch["x"]))
        return {"y": self.compute(batch["x"])}  # type: ignore[dict-item]

    def close(self) -> None:
        self.closed = True


def manifest(**fields: object) -> Manifest:
    return Manifest(
        **{"format": 1, "name": "net", "flambeau": "0", "source": Source(kind="checkpoint", name="net.pth"),
           "pipeline": storage.TensorConfig(), "engine": "eager", **fields}  # type: ignore[arg-type]
    )  # fmt: skip


def tensor_replica(
    engine: Engine, folder: Path = Path(), *, wide: Engine | None = None, **fields: Any
) -> TensorReplica:
    pipeline = open_pipeline(TensorConfig(), labels=None, inputs=[INPUT], outputs=[OUTPUT])
    return TensorReplica(Bundle(folder, manifest(**fields)), engine, pipeline, device="cpu", wide=wide)


def test_items_are_computed_together_and_each_gets_its_own_rows() -> None:
    engine = Engine()
    outcomes = tensor_replica(engine).run(items("[1, 2]", "[[3, 4], [5, 6]]", "[[7, 8]]", "[0, 0]"))
    assert results(outcomes) == ["[2.0,4.0]", "[[6.0,8.0],[10.0,12.0]]", "[[14.0,16.0]]", "[0.0,0.0]"]
    assert engine.sizes == [5]
    assert all(outcome.timings.inference == outcomes[0].timings.inference for outcome in outcomes)
    assert all(min(outcome.timings.preprocess, outcome.timings.postprocess) >= 0 for outcome in outcomes)


def test_an_item_that_cannot_be_prepared_fails_before_the_engine_sees_it_f04() -> None:
    engine = Engine()
    outcomes = tensor_replica(engine).run(items("[1, 2]", '"text"', "[3, 4]", "[1]"))
    assert results(outcomes) == ["[2.0,4.0]", "invalid_tensor", "[6.0,8.0]", "invalid_tensor"]
    assert engine.sizes == [2]


def test_a_batch_of_bad_items_never_reaches_the_engine_f04() -> None:
    engine = Engine()
    assert results(tensor_replica(engine).run(items("null", "{}"))) == ["invalid_tensor"] * 2
    assert results(tensor_replica(engine).run([])) == []
    assert engine.sizes == []


def _refuse_negative(rows: np.ndarray) -> np.ndarray:
    if (rows < 0).any():
        raise ValueError("/secret/path: a negative number")
    return rows * 2


def test_when_the_engine_fails_exactly_the_guilty_items_fail_for_all_subsets_f04() -> None:
    replica = tensor_replica(Engine(_refuse_negative))
    for bad in SUBSETS:
        batch = items(*(f"[{-1 if index in bad else 1}, {index}]" for index in range(8)))
        expected = ["model_error" if index in bad else f"[2.0,{2.0 * index}]" for index in range(8)]
        assert results(replica.run(batch)) == expected, bad


def test_the_client_never_sees_the_text_of_a_foreign_exception() -> None:
    [outcome] = tensor_replica(Engine(_refuse_negative)).run(items("[-1, 0]"))
    assert isinstance(outcome.result, RequestError)
    assert outcome.result.message == "the model failed on this input"


def _out_of_memory(rows: np.ndarray) -> np.ndarray:
    if len(rows) > 1:
        raise MemoryError
    return rows


def test_a_batch_too_large_for_memory_is_computed_one_by_one() -> None:
    engine = Engine(_out_of_memory)
    answers = results(tensor_replica(engine).run(items("[1, 2]", "[[1, 2], [3, 4]]", "[5, 6]")))
    assert answers == ["[1.0,2.0]", "out_of_memory", "[5.0,6.0]"]
    assert engine.sizes == [4, 1, 2, 1]


@pytest.mark.parametrize(
    "compute", [lambda rows: rows[:-1], lambda rows: np.concatenate([rows, rows]), lambda rows: rows[:0]]
)
def test_an_engine_with_the_wrong_number_of_rows_gives_no_answer_f46(compute: Callable[[np.ndarray], object]) -> None:
    replica = tensor_replica(Engine(compute))
    assert results(replica.run(items("[1, 2]", "[3, 4]"))) == ["model_output_invalid"] * 2


@pytest.mark.parametrize("compute", [lambda rows: None, lambda rows: np.float32(1), lambda rows: 1 / 0])
def test_an_engine_that_gives_nonsense_gives_an_error_for_every_item_f46(
    compute: Callable[[np.ndarray], object],
) -> None:
    replica = tensor_replica(Engine(compute))
    assert results(replica.run(items("[1, 2]", "[3, 4]"))) == ["model_error"] * 2


def test_numbers_that_are_not_finite_become_null_and_are_counted_f27() -> None:
    replica = tensor_replica(Engine(lambda rows: np.where(rows > 5, np.nan, rows)))
    fine, broken = replica.run(items("[1, 2]", "[6, 7]"))
    assert fine.result == Value(b"[1.0,2.0]", nonfinite=0)
    assert broken.result == Value(b"[null,null]", nonfinite=2)


class LoosePipeline:
    """Takes lists of any length as they are."""

    def preprocess(self, payload: Payload) -> Tensors:
        if payload.data == b"boom":
            raise KeyError("in the pipeline")
        return {"x": np.fromstring(bytes(payload.data).decode(), np.float32, sep=",")[None]}

    def postprocess(self, outputs: Tensors, item: Item) -> Value:
        if outputs["y"].sum() == 13:
            raise IndexError("in the pipeline")
        return Value(str(outputs["y"].tolist()).encode())

    def example(self) -> Payload:
        return Payload("json", b"1,2")


def test_items_of_unlike_shape_are_never_mixed() -> None:
    engine = Engine(lambda rows: rows)
    replica = TensorReplica(Bundle(Path(), manifest()), engine, LoosePipeline(), device="cpu")
    answers = results(replica.run(items("1,2", "1,2,3", "3,4", "5", "4,5,6")))
    assert answers == ["[[1.0, 2.0]]", "[[1.0, 2.0, 3.0]]", "[[3.0, 4.0]]", "[[5.0]]", "[[4.0, 5.0, 6.0]]"]
    assert sorted(engine.sizes) == [1, 2, 2]


def test_an_item_that_the_pipeline_trips_over_fails_alone_f04() -> None:
    replica = TensorReplica(Bundle(Path(), manifest()), Engine(lambda rows: rows), LoosePipeline(), device="cpu")
    assert results(replica.run(items("1,2", "boom", "6,7", "3,4"))) == [
        "[[1.0, 2.0]]", "model_error", "model_error", "[[3.0, 4.0]]",
    ]  # fmt: skip


def probed(folder: Path, outputs: np.ndarray) -> dict[str, Any]:
    inputs = np.array([[1, 2], [3, 4]], np.float32)
    save_file({"input.x": inputs, "output.y": outputs}, folder / storage.PROBES)
    return {"members": {storage.PROBES: storage.sha256_of(folder / storage.PROBES)}}


def test_warming_up_reproduces_the_probes_and_answers_the_example(tmp_path: Path) -> None:
    engine = Engine()
    tensor_replica(engine, tmp_path, **probed(tmp_path, np.array([[2, 4], [6, 8]], np.float32))).warm_up()
    assert engine.sizes[:2] == [2, 1]


def test_warming_up_measures_one_item_and_two_together(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()  # one tick between two looks at it, whatever was computed
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock) / 1024)
    engine = Engine()
    replica = tensor_replica(engine)
    replica.warm_up()
    assert engine.sizes[2:4] == [1, 2]
    assert replica.cost == BatchCost(1 / 1024, 1 / 1024)


def test_two_items_are_not_tried_where_one_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    engine = Engine()
    replica = tensor_replica(engine)
    replica.warm_up()
    assert set(engine.sizes) == {1}
    assert measured_sizes(replica.cost).most == 1


def refuses_company(rows: np.ndarray) -> np.ndarray:
    if len(rows) > 1:
        raise ValueError("one at a time")
    return rows * 2


def test_an_engine_that_takes_single_items_only_gets_single_items() -> None:
    replica = tensor_replica(Engine(refuses_company))
    replica.warm_up()
    assert measured_sizes(replica.cost).most == 1


def test_a_batch_that_is_alone_on_the_machine_goes_to_the_wide_engine() -> None:
    engine, wide = Engine(), Engine()
    replica = tensor_replica(engine, wide=wide)
    replica.warm_up()
    assert wide.sizes, "it is warmed, too"
    before = len(wide.sizes), len(engine.sizes)
    replica.run(items("[1, 2]"), wide=True)
    replica.run(items("[1, 2]"))
    assert (len(wide.sizes), len(engine.sizes)) == (before[0] + 1, before[1] + 1)
    replica.close()
    assert engine.closed
    assert wide.closed


def test_a_wide_engine_is_held_against_the_probes_too(tmp_path: Path) -> None:
    wrong = Engine(lambda rows: rows * 3)
    right = probed(tmp_path, np.array([[2, 4], [6, 8]], np.float32))
    with pytest.raises(EngineError, match="does not reproduce"):
        tensor_replica(Engine(), tmp_path, wide=wrong, **right).warm_up()


@pytest.mark.parametrize("wrong", [[[2, 4], [6, 9]], [[4, 2], [6, 8]], [[2, 4]], [[2, 4, 6], [6, 8, 10]]])
def test_warming_up_refuses_an_engine_that_does_not_reproduce_the_probes(
    tmp_path: Path, wrong: list[list[int]]
) -> None:
    replica = tensor_replica(Engine(), tmp_path, **probed(tmp_path, np.array(wrong, np.float32)))
    with pytest.raises(EngineError, match="net does not reproduce the answers it was built with"):
        replica.warm_up()


def test_warming_up_refuses_an_engine_whose_probes_become_nan(tmp_path: Path) -> None:
    engine = Engine(lambda rows: rows * np.nan)
    replica = tensor_replica(engine, tmp_path, **probed(tmp_path, np.array([[2, 4], [6, 8]], np.float32)))
    with pytest.raises(EngineError, match="does not reproduce"):
        replica.warm_up()


def test_warming_up_refuses_a_model_that_cannot_answer_its_own_example() -> None:
    with pytest.raises(EngineError, match="net cannot answer its own example: the model failed on this input"):
        tensor_replica(Engine(lambda rows: 1 / 0)).warm_up()


def test_closing_lets_go_of_the_engine() -> None:
    engine = Engine()
    tensor_replica(engine).close()
    assert engine.closed


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
