"""`Service.infer`: the network's own inputs to its own outputs, through the same queue, batches and workers."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flambeau.errors import RequestError
from flambeau.serving.service import BlockingService, Service
from flambeau.settings.service import RunnerName, Settings
from flambeau.types import Options, Payload, Tensors
from tests.support import task_models
from tests.support.photographs import encoded, photograph
from tests.support.tensor_bundles import Several, several


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Several:
    return several(tmp_path_factory.mktemp("several"))


@pytest.fixture(scope="module", params=["threads", "processes"])
def service(request: pytest.FixtureRequest, network: Several) -> Iterator[BlockingService]:
    runner: RunnerName = request.param
    opened = BlockingService(lambda: Service([network.bundle], Settings(runner=runner, replicas=1, max_items=2)))
    yield opened
    opened.close()


def infer(service: BlockingService, tensors: Tensors, **asked: Any) -> Tensors:
    return service.call(lambda each: each.infer(each.get(), tensors, **{"timeout": 30.0, **asked}))


def given(rows: int, seed: int = 0) -> Tensors:
    numbers = np.random.default_rng(seed)
    return {
        "a": numbers.standard_normal((rows, 4)).astype(np.float32),
        "b": numbers.integers(0, 9, (rows, 2, 3)).astype(np.int64),
    }


@pytest.mark.parametrize("rows", [1, 5, 1500])  # 1024 are an item
def test_every_output_is_torchs_own_row_for_row(service: BlockingService, network: Several, rows: int) -> None:
    tensors = given(rows)
    found, expected = infer(service, tensors), network.answers(tensors)
    assert list(found) == ["sums", "scores"]
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6)


def test_whoever_comes_together_gets_his_own_rows(service: BlockingService, network: Several) -> None:
    sent = [given(1 + seed % 3, seed) for seed in range(12)]

    async def ask(each: Service) -> list[Tensors]:
        return list(await asyncio.gather(*(each.infer(each.get(), one, timeout=30.0) for one in sent)))

    for tensors, found in zip(sent, service.call(ask), strict=True):
        expected = network.answers(tensors)
        np.testing.assert_allclose(found["scores"], expected["scores"], rtol=1e-5, atol=1e-6)
        assert (found["sums"] == expected["sums"]).all()


def test_arrays_that_lie_otherwise_are_the_same_numbers(service: BlockingService, network: Several) -> None:
    tensors = given(3)
    turned = {"a": np.asfortranarray(tensors["a"]), "b": tensors["b"].astype(">i8")}
    np.testing.assert_allclose(
        infer(service, turned)["scores"], network.answers(tensors)["scores"], rtol=1e-5, atol=1e-6
    )


TAKEN = "this model takes a (float32 [N, 4]), b (int64 [N, 2, 3])"


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"a": None}, f"the input 'a' is missing: {TAKEN}"),
        ({"c": np.zeros((1, 4), np.float32)}, f"there is no input 'c': {TAKEN}"),
        (
            {"a": np.zeros((1, 4))},
            "the input 'a' must be float32 [N, 4], but it is float64 of shape [1, 4]",
        ),
        (
            {"b": np.zeros((1, 3, 2), np.int64)},
            "the input 'b' must be int64 [N, 2, 3], but it is int64 of shape [1, 3, 2]",
        ),
        ({"a": np.zeros(4, np.float32)}, "the input 'a' must be float32 [N, 4], but it is float32 of shape [4]"),
        ({"b": np.zeros((2, 2, 3), np.int64)}, "the input 'b' has 2 rows, but 'a' has 1"),
        (
            {"a": np.zeros((0, 4), np.float32), "b": np.zeros((0, 2, 3), np.int64)},
            "the input 'a' has no row",
        ),
        ({"a": np.array(["x"])}, "the input 'a' must be float32 [N, 4], but it is str32 of shape [1]"),
    ],
)
def test_what_does_not_fit_is_named_with_what_is_expected(
    service: BlockingService, wrong: dict[str, Any], sentence: str
) -> None:
    tensors = {name: each for name, each in {**given(1), **wrong}.items() if each is not None}
    with pytest.raises(RequestError) as caught:
        infer(service, tensors)
    assert (caught.value.message, caught.value.code) == (sentence, "invalid_tensor")


def test_the_limits_are_those_of_other_requests(service: BlockingService) -> None:
    with pytest.raises(RequestError, match="the request has 2049 rows: the most is 2048") as caught:
        infer(service, given(2049))
    assert caught.value.code == "too_many_items"
    with pytest.raises(RequestError) as late:
        infer(service, given(1), timeout=0.0)
    assert late.value.code == "deadline_exceeded"


def test_a_network_over_images_takes_its_tensor_and_gives_its_own_numbers(tmp_path: Path) -> None:
    """No softmax is applied, and a picture in a file is still answered with probabilities; both are named arrays."""
    made = task_models.make(
        tmp_path / "bundle", task_models.network(5), task="classification",
        activation=task_models.Activation("softmax"), labels=task_models.NAMES,
    )  # fmt: skip
    pictures = [encoded(photograph(name)) for name in ("chelsea", "coffee", "rocket")]
    rows = np.concatenate([made.pixels(each).numpy() for each in pictures])
    expected = torch.stack([made.answers(each) for each in pictures])
    service = BlockingService(lambda: Service([made.bundle], Settings(runner="threads", replicas=1)))
    try:
        [(_, found)] = infer(service, {made.bundle.manifest.inputs[0].name: rows}).items()
        np.testing.assert_allclose(found, expected.numpy(), rtol=2e-5, atol=2e-5)
        asked = Options(top_k=2, probabilities=True)
        [outcome] = service.call(
            lambda each: each.predict(each.get(), [Payload("file", pictures[0])], asked, timeout=30.0)
        )
        assert not isinstance(outcome.result, RequestError)
        named = outcome.result.tensors()
    finally:
        service.close()
    probabilities = expected[0].softmax(0)
    np.testing.assert_allclose(named["probabilities"][0], probabilities.numpy(), rtol=1e-4, atol=1e-5)
    assert named["class_index"].tolist() == [probabilities.topk(2).indices.tolist()]
    assert named["scores"].shape == (1, 2)


def test_a_python_model_has_no_tensors_of_its_own(double_py: Path) -> None:
    from flambeau.serving.service import split_options
    from flambeau.sources import build_cache

    source, settings = split_options({"source": f"{double_py}:Double", "allow_code": True, "runner": "threads"})
    opened = build_cache.open_source(source, progress=lambda event: None)
    service = BlockingService(lambda: Service([opened], settings))
    try:
        with pytest.raises(RequestError, match="is a Python model, which has no tensors of its own") as caught:
            infer(service, {"x": np.zeros((1, 1))})
    finally:
        service.close()
    assert caught.value.code == "unsupported_media_type"
