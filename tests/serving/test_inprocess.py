"""`flambeau.Batcher` and `flambeau.load`: the same batching and models in other people's programs."""

import os
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import flambeau
from flambeau.bundle import storage
from flambeau.bundle.storage import Bundle
from flambeau.serving.service import Service
from flambeau.settings.service import Settings


def test_concurrent_calls_go_through_together_and_get_their_own_answers() -> None:
    sizes: list[int] = []
    gate = threading.Event()

    def double(batch: list[int]) -> list[int]:
        gate.wait(60)
        sizes.append(len(batch))
        return [2 * item for item in batch]

    with flambeau.Batcher(double, max_batch_size=16) as predict, ThreadPoolExecutor(33) as pool:
        answers = [pool.submit(predict, item) for item in range(33)]
        gate.set()
        assert [answer.result() for answer in answers] == [2 * item for item in range(33)]
    assert sum(sizes) == 33
    assert max(sizes) > 1


def test_a_lone_call_does_not_wait_for_company() -> None:
    with flambeau.Batcher[Any, Any](lambda batch: [len(batch)] * len(batch)) as predict:
        assert predict("alone") == 1


def test_a_call_raises_what_the_function_raised_over_its_item() -> None:
    """F-04: the neighbours in its batch get their answers."""

    def root(batch: list[float]) -> list[float]:
        if min(batch) < 0:
            raise ValueError(f"{min(batch)} has no root")
        return [item**0.5 for item in batch]

    with flambeau.Batcher(root) as predict:
        with pytest.raises(ValueError, match="-1 has no root"):
            predict(-1)
        with ThreadPoolExecutor(8) as pool:
            answers = [pool.submit(predict, item) for item in (4, -1, 9, -1, 16, 25, -1, 36)]
        good = [answer.result() for answer in answers if answer.exception() is None]
    assert good == [2, 3, 4, 5, 6]


def test_an_exception_as_an_answer_fails_that_item_alone() -> None:
    def pick(batch: list[str]) -> list[object]:
        return [KeyError(item) if item == "bad" else item for item in batch]

    with flambeau.Batcher(pick) as predict:
        assert predict("good") == "good"
        with pytest.raises(KeyError):
            predict("bad")
        assert predict.map(["a", "b"]) == ["a", "b"]


def test_answers_of_the_wrong_number_are_an_error() -> None:
    """F-46."""
    with flambeau.Batcher[Any, Any](lambda batch: []) as predict, pytest.raises(flambeau.RequestError) as caught:
        predict(1)
    assert caught.value.code == "model_output_invalid"


def test_a_full_queue_refuses_at_once_and_a_deadline_ends_the_wait() -> None:
    gate = threading.Event()

    def wait(batch: list[int]) -> list[int]:
        gate.wait(20)
        return batch

    with flambeau.Batcher(wait, max_batch_size=1, max_queue_size=1, deadline=0.2) as predict:
        with pytest.raises(flambeau.RequestError) as caught:
            predict(1)
        assert caught.value.code == "deadline_exceeded"
        with ThreadPoolExecutor(8) as pool:
            codes = {getattr(each.exception(), "code", None) for each in [pool.submit(predict, i) for i in range(8)]}
        assert "queue_full" in codes
        gate.set()


def test_objects_stay_objects() -> None:
    token = object()
    with flambeau.Batcher[Any, Any](lambda batch: batch) as predict:
        assert predict(token) is token


def test_bounds_are_checked() -> None:
    with pytest.raises(flambeau.SetupError, match="max_batch_size 0 is too small"):
        flambeau.Batcher[Any, Any](lambda batch: batch, max_batch_size=0)


@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit, type("Timeout", (BaseException,), {})])
def test_a_call_over_which_the_function_is_interrupted_fails_alone_a8(raised: type[BaseException]) -> None:
    together = threading.Barrier(8)

    def check(batch: list[int]) -> list[int]:
        if 3 in batch:
            raise raised
        return batch

    def ask(item: int) -> int | str:
        together.wait(20)
        try:
            return predict(item)
        except raised:
            return "interrupted"

    with flambeau.Batcher(check) as predict, ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            assert list(pool.map(ask, range(8))) == [0, 1, 2, "interrupted", 4, 5, 6, 7]


def test_more_items_than_the_queue_takes_go_slice_by_slice_a19() -> None:
    with flambeau.Batcher[Any, Any](lambda batch: [2 * item for item in batch], max_queue_size=100) as predict:
        assert predict.map(range(257)) == [2 * item for item in range(257)]


def test_closing_beside_calls_leaves_nobody_waiting_a9() -> None:
    """Every call ends: with its answer, or told that the Batcher is closed."""
    for _ in range(20):
        predict = flambeau.Batcher[Any, Any](lambda batch: batch, max_queue_size=10_000)
        begun = threading.Barrier(9)

        def ask(item: int, predict: "flambeau.Batcher[int, int]" = predict, begun: threading.Barrier = begun) -> str:
            begun.wait(20)
            for turn in range(10_000):
                try:
                    assert predict(item) == item
                except flambeau.RequestError as error:
                    return f"{error.code} {turn > 0 or error.code}"
            return "never closed"

        with ThreadPoolExecutor(8) as pool:
            answers = [pool.submit(ask, item) for item in range(8)]
            begun.wait(20)
            predict.close()
            assert {each.result(30).split()[0] for each in answers} == {"draining"}
        predict.close()  # a second time does nothing
        with pytest.raises(flambeau.RequestError, match="the Batcher is closed"):
            predict(1)


@pytest.mark.long
def test_a_function_that_hangs_holds_up_neither_its_callers_nor_close_a9() -> None:
    gate = threading.Event()

    def hang(batch: list[int]) -> list[int]:
        gate.wait(60)
        return batch

    predict = flambeau.Batcher(hang, max_batch_size=1, deadline=3.0)
    with ThreadPoolExecutor(4) as pool:
        started = time.monotonic()
        answers = [pool.submit(predict, item) for item in range(4)]
        time.sleep(1)  # all four wait by then
        predict.close()
        codes = {getattr(each.exception(30), "code", None) for each in answers}
        assert codes == {"deadline_exceeded"}
        assert time.monotonic() - started < 30  # of the 60 that the function takes
    gate.set()


@pytest.mark.parametrize("used", [False, True])
def test_close_in_a_forked_child_returns_and_ends_nothing_of_the_parents_p6(used: bool, double_py: Path) -> None:
    predict = flambeau.Batcher[Any, Any](lambda batch: [2 * item for item in batch])
    model = flambeau.load(f"{double_py}:Double", allow_code=True)
    assert (predict(1), model.predict(2)) == (2, 4)
    child = os.fork()
    if not child:
        signal.alarm(60)  # ends the child if it waits for ever
        status = 1
        try:
            if used:
                assert (predict(3), model.predict(4)) == (6, 8)
            predict.close()
            model.close()
            for call in (predict, model.predict):
                with pytest.raises(flambeau.RequestError, match="is closed"):
                    call(5)
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert (predict(21), model.predict(21)) == (42, 42)
    predict.close()
    model.close()


def test_what_was_closed_before_a_fork_stays_closed_p6() -> None:
    predict = flambeau.Batcher[Any, Any](lambda batch: batch)
    predict.close()
    child = os.fork()
    if not child:
        status = 1
        try:
            with pytest.raises(flambeau.RequestError, match="is closed"):
                predict(1)
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


def test_the_first_calls_of_a_forked_child_wait_for_its_own_model_p8(double_py: Path) -> None:
    """Eight threads at once, as under gunicorn --preload --threads 8: none meets what the parent alone has."""
    model = flambeau.load(f"{double_py}:Double", allow_code=True)
    child = os.fork()
    if not child:
        signal.alarm(60)
        status = 1
        try:
            together = threading.Barrier(8)

            def ask(item: int) -> int:
                together.wait(20)
                return model.predict(item)

            with ThreadPoolExecutor(8) as pool:
                assert list(pool.map(ask, range(8))) == [2 * item for item in range(8)]
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    model.close()


def test_two_bundles_of_one_name_are_refused_p15(default_bundle: Bundle, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(default_bundle.path, other)
    with pytest.raises(flambeau.SetupError, match=r"are both called 'efficientnet_lite0': serve them apart"):
        Service([default_bundle, storage.read(other)], Settings(runner="threads"))


def test_it_works_in_a_forked_child() -> None:
    """F-24: as under gunicorn --preload."""
    predict = flambeau.Batcher[Any, Any](lambda batch: [2 * item for item in batch])
    assert predict(1) == 2
    child = os.fork()
    if not child:
        os._exit(0 if predict(21) == 42 else 1)
    assert os.waitpid(child, 0)[1] == 0
    predict.close()


def test_a_model_is_used_without_http(default_bundle: Bundle, cat: bytes, tmp_path: Path) -> None:
    with flambeau.load(default_bundle.path) as model:
        answer = model.predict(cat, top_k=2)
        assert [each.label.name for each in answer.top] == ["Egyptian_cat", "tabby"]
        assert answer.recognised
        assert len(answer.probabilities) == 1000
        (tmp_path / "cat.png").write_bytes(cat)
        assert model.predict(tmp_path / "cat.png").top[0].index == 285
        with pytest.raises(flambeau.InvalidInput) as caught:
            model.predict(b"no picture")
        assert caught.value.code == "unsupported_image_format"


def test_a_python_model_takes_and_gives_values(double_py: Path) -> None:
    with flambeau.load(f"{double_py}:Double", allow_code=True) as model:
        assert model.predict(3) == 6.0
        with pytest.raises(flambeau.InvalidInput, match="must be a number"):
            model.predict("three")


def test_a_python_model_in_other_processes_is_refused_when_it_is_loaded(double_py: Path) -> None:
    """Every call failed with "the model could not be reached", and bytes came as a memoryview."""
    with pytest.raises(flambeau.SetupError, match=r"Double is a Python model.*: leave runner='processes' out"):
        flambeau.load(f"{double_py}:Double", allow_code=True, runner="processes")


@pytest.mark.long
def test_a_network_in_other_processes_answers_in_a_forked_child_too(default_bundle: Bundle, cat: bytes) -> None:
    model = flambeau.load(default_bundle.path, runner="processes", replicas=1)
    assert model.predict(cat).top[0].label.name == "Egyptian_cat"
    child = os.fork()
    if not child:
        signal.alarm(60)
        status = 1
        try:
            assert model.predict(cat).top[0].label.name == "Egyptian_cat"
            model.close()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert model.predict(cat).top[0].label.name == "Egyptian_cat"
    model.close()
