"""`flambeau.Batcher` and `flambeau.load`: the same batching and models in other people's programs."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import flambeau
from flambeau.bundle import Bundle


def test_concurrent_calls_go_through_together_and_get_their_own_answers() -> None:
    sizes: list[int] = []
    gate = threading.Event()

    def double(batch: list[int]) -> list[int]:
        gate.wait(10)
        sizes.append(len(batch))
        return [2 * item for item in batch]

    with flambeau.Batcher(double, max_batch_size=16) as predict, ThreadPoolExecutor(33) as pool:
        answers = [pool.submit(predict, item) for item in range(33)]
        gate.set()
        assert [answer.result() for answer in answers] == [2 * item for item in range(33)]
    assert sum(sizes) == 33
    assert max(sizes) > 1


def test_a_lone_call_does_not_wait_for_company() -> None:
    with flambeau.Batcher(lambda batch: [len(batch)] * len(batch)) as predict:
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
    with flambeau.Batcher(lambda batch: []) as predict, pytest.raises(flambeau.RequestError) as caught:
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
    with flambeau.Batcher(lambda batch: batch) as predict:
        assert predict(token) is token


def test_bounds_are_checked() -> None:
    with pytest.raises(flambeau.SetupError, match="max_batch_size 0 is too small"):
        flambeau.Batcher(lambda batch: batch, max_batch_size=0)


def test_it_works_in_a_forked_child() -> None:
    """F-24: as under gunicorn --preload."""
    predict = flambeau.Batcher(lambda batch: [2 * item for item in batch])
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
