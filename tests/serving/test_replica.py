"""Replicas: one outcome per item whatever a model does, and a bad item fails alone."""

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from flambeau.bundle import storage
from flambeau.bundle.storage import Bundle, TensorConfig
from flambeau.errors import EngineError, RequestError
from flambeau.pipelines.base import open_pipeline
from flambeau.pipelines.tensor import TensorPipeline
from flambeau.runners.base import BatchCost
from flambeau.runners.replica import TensorReplica
from flambeau.serving.batch_sizes import measured_sizes
from flambeau.types import Item, Payload, Tensors, TensorSpec, Value
from tests.support.replicas import SUBSETS, items, manifest, results

INPUT, OUTPUT = TensorSpec("x", "float32", (2,)), TensorSpec("y", "float32", (2,))


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


def test_plain_rows_are_prepared_in_one_go_and_each_item_gets_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine()
    replica = tensor_replica(engine)
    monkeypatch.setattr(TensorPipeline, "preprocess", lambda *_: pytest.fail("an item was prepared by itself"))
    outcomes = replica.run(items("[1, 2]", "[3, 4]", " [5, 6]"))
    assert results(outcomes) == ["[2.0,4.0]", "[6.0,8.0]", "[10.0,12.0]"]
    assert engine.sizes == [3]
    assert len({outcome.timings.preprocess for outcome in outcomes}) == 1  # each has its part
    assert outcomes[0].timings.preprocess > 0


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


def test_one_slow_moment_of_the_machine_does_not_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside other workers that start, an item of 12 ms took more than 50 once, and was served alone from then on."""
    engine = Engine()
    runs = iter([0.08])
    now = [0.0]

    def compute(rows: np.ndarray) -> np.ndarray:
        now[0] += next(runs, 0.012) if len(engine.sizes) >= 2 else 0.0  # as it is measured, and not as it warms up
        return rows * 2

    engine.compute = compute
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    replica = tensor_replica(engine)
    replica.warm_up()
    assert replica.cost is not None
    assert (replica.cost.one, replica.cost.two) == pytest.approx((0.012, 0.012))
    assert measured_sizes(replica.cost).most > 1


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
