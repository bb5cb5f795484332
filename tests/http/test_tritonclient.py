"""KServe v2 over REST as the real `tritonclient` speaks it, unmodified: every call of its HTTP client that fits."""

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from tests.support import fleet
from tests.support.kserve_models import Served
from tests.support.photographs import encoded, photograph
from tests.support.server import Serve, ServerProcess


@pytest.fixture(scope="module")
def server(serve: Serve, models: Served) -> Iterator[ServerProcess]:
    with serve(models.folder, "--allow-code", "--replicas", "1") as running:
        yield running


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[triton.InferenceServerClient]:
    opened = triton.InferenceServerClient(server.url.removeprefix("http://"), concurrency=4, network_timeout=60.0)
    yield opened
    opened.close()


def given(rows: int, seed: int = 0) -> dict[str, Any]:
    numbers = np.random.default_rng(seed)
    return {
        "a": numbers.standard_normal((rows, 4)).astype(np.float32),
        "b": numbers.integers(0, 9, (rows, 2, 3)).astype(np.int64),
    }


def inputs(arrays: dict[str, Any], *, binary: bool = True) -> list[triton.InferInput]:
    names = {"float32": "FP32", "int64": "INT64", "object": "BYTES"}
    made = []
    for name, array in arrays.items():
        each = triton.InferInput(name, list(array.shape), names[array.dtype.name])
        each.set_data_from_numpy(array, binary_data=binary)
        made.append(each)
    return made


def assert_right(models: Served, arrays: dict[str, Any], found: triton.InferResult) -> None:
    for name, right in models.several.answers(arrays).items():
        array = found.as_numpy(name)
        assert (array.dtype, array.shape) == (right.dtype, right.shape)
        np.testing.assert_allclose(array, right, rtol=1e-6, atol=1e-6 * np.abs(right).max())  # a row's sums cancel


def test_a_request_that_one_model_knows_is_read_anew_for_another(
    client: triton.InferenceServerClient, models: Served
) -> None:
    """The same bytes, but for the path: what a text says is kept for each model on its own."""
    for seed in range(2):
        arrays = given(1, seed)
        assert_right(models, arrays, client.infer("several", inputs(arrays)))
        with pytest.raises(InferenceServerException, match="there is no input 'a'"):
            client.infer("line", inputs(arrays))


def test_the_server_and_its_models_describe_themselves(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("several")
    assert client.is_model_ready("several", "1")
    assert not client.is_model_ready("nobody")
    assert client.get_server_metadata()["name"] == "flambeau"
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]

    numbers = client.get_model_metadata("several")
    assert numbers["versions"] == ["1"]
    assert numbers["inputs"] == [
        {"name": "a", "datatype": "FP32", "shape": [-1, 4]},
        {"name": "b", "datatype": "INT64", "shape": [-1, 2, 3]},
    ]
    assert [each["name"] for each in numbers["outputs"]] == ["sums", "scores"]
    animals = client.get_model_metadata("animals", "1")
    assert animals["inputs"] == [
        {"name": "input", "datatype": "FP32", "shape": [-1, 3, 32, 32]},
        {"name": "images", "datatype": "BYTES", "shape": [-1]},
    ]
    assert {each["name"]: (each["datatype"], each["shape"]) for each in animals["outputs"]} == {
        "output": ("FP32", [-1, 5]), "probabilities": ("FP32", [-1, 5]), "labels": ("BYTES", [-1, -1]),
        "scores": ("FP32", [-1, -1]), "class_index": ("INT64", [-1, -1]), "recognised": ("BOOL", [-1]),
    }  # fmt: skip

    config = client.get_model_config("several")
    assert config["input"][1] == {"name": "b", "data_type": "TYPE_INT64", "dims": [2, 3]}
    assert config["max_batch_size"] == 64 * 1024
    with pytest.raises(InferenceServerException, match="there is no model of that name") as caught:
        client.get_model_metadata("nobody")
    assert caught.value.status() == "404"


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("wanted", [None, True, False])
def test_numbers_are_torchs_in_every_form(
    client: triton.InferenceServerClient, models: Served, binary: bool, wanted: bool | None
) -> None:
    arrays = given(5)
    outputs = None
    if wanted is not None:
        outputs = [triton.InferRequestedOutput(name, binary_data=wanted) for name in ("scores", "sums")]
    found = client.infer("several", inputs(arrays, binary=binary), outputs=outputs, request_id="mine")
    assert_right(models, arrays, found)
    assert found.get_response()["id"] == "mine"
    assert found.get_response()["model_version"] == "1"


@pytest.mark.parametrize("request_form", [None, "gzip", "deflate"])
@pytest.mark.parametrize("response_form", [None, "gzip", "deflate"])
def test_bodies_may_be_compressed(
    client: triton.InferenceServerClient, models: Served, request_form: str | None, response_form: str | None
) -> None:
    arrays = given(900)
    found = client.infer(
        "several", inputs(arrays), request_compression_algorithm=request_form,
        response_compression_algorithm=response_form,
    )  # fmt: skip
    assert_right(models, arrays, found)


def test_a_batch_of_rows_is_split_and_joined_in_order(client: triton.InferenceServerClient, models: Served) -> None:
    arrays = given(3000)
    assert_right(models, arrays, client.infer("several", inputs(arrays)))


def test_several_at_once_get_their_own(client: triton.InferenceServerClient, models: Served) -> None:
    sent = [given(1 + seed % 3, seed) for seed in range(24)]
    waiting = [client.async_infer("several", inputs(each)) for each in sent]
    for arrays, each in zip(sent, waiting, strict=True):
        assert_right(models, arrays, each.get_result())


def test_images_are_answered_as_predict_answers_them(
    client: triton.InferenceServerClient, server: ServerProcess, models: Served
) -> None:
    files = [encoded(photograph(name)) for name in ("chelsea", "coffee", "rocket")]
    pictures = np.array(files, np.object_)
    found = client.infer("animals", inputs({"images": pictures}))
    right = np.stack([models.animals.answers(each).softmax(0).numpy() for each in files])
    np.testing.assert_allclose(found.as_numpy("probabilities"), right, rtol=1e-4, atol=1e-5)
    native = [server.post("/predict/animals?threshold=0", files={"file": each}).json()["class_name"] for each in files]
    assert [each.decode() for each in found.as_numpy("labels")[:, 0]] == native
    assert found.as_numpy("class_index")[:, 0].tolist() == right.argmax(1).tolist()
    assert found.as_numpy("recognised").tolist() == (right.max(1) >= 0.5).tolist()

    columns = client.infer("animals", inputs({"images": pictures[:, None]}))  # with Triton's batch axis
    np.testing.assert_array_equal(columns.as_numpy("probabilities"), found.as_numpy("probabilities"))
    # prepared pixels, as Triton would have them, are answered with the network's own numbers
    pixels = np.concatenate([models.animals.pixels(each).numpy() for each in files])
    raw = client.infer("animals", inputs({"input": pixels})).as_numpy("output")
    np.testing.assert_allclose(raw, [models.animals.answers(each).numpy() for each in files], rtol=1e-5, atol=1e-5)


def test_the_best_classes_come_as_texts(client: triton.InferenceServerClient, models: Served) -> None:
    file = encoded(photograph("coffee"))
    right = models.animals.answers(file)
    order = right.argsort(descending=True).tolist()
    names = ("cat", "dog", "bird", "fish", "horse")
    for binary in (True, False):
        outputs = [triton.InferRequestedOutput("output", binary_data=binary, class_count=3)]
        found = client.infer("animals", inputs({"input": models.animals.pixels(file).numpy()}), outputs=outputs)
        texts = found.as_numpy("output")
        assert texts.shape == (1, 3)
        for text, index in zip(texts[0], order, strict=False):
            value, place, name = (text.decode() if isinstance(text, bytes) else text).split(":")
            assert (int(place), name) == (index, names[index])
            assert float(value) == pytest.approx(float(right[index]), abs=1e-4)
    outputs = [triton.InferRequestedOutput("probabilities", class_count=9)]
    texts = client.infer("animals", inputs({"images": np.array([file], np.object_)}), outputs=outputs)
    assert texts.as_numpy("probabilities").shape == (1, 5)


def test_a_python_model_takes_json_and_gives_it(client: triton.InferenceServerClient) -> None:
    values = np.array([b"2", b"21"], np.object_)
    for binary in (True, False):
        found = client.infer("double", inputs({"input": values}, binary=binary)).as_numpy("output")
        assert [json.loads(each) for each in found] == [4, 42]
    with pytest.raises(InferenceServerException, match="element 1: input must be a number"):
        client.infer("double", inputs({"input": np.array([b"1", b'"2"'], np.object_)}))
    with pytest.raises(InferenceServerException, match="is not JSON"):
        client.infer("double", inputs({"input": np.array([b'1, "a": 2'], np.object_)}))


@pytest.mark.parametrize(
    ("model", "arrays", "says", "status"),
    [
        ("several", {"a": given(1)["a"]}, "the input 'b' is missing", "400"),
        ("several", {**given(1), "b": given(2)["b"]}, "has 2 rows", "400"),
        ("several", {"a": given(1)["b"], "b": given(1)["b"]}, "must be float32", "400"),
        ("animals", {"images": np.array([b"one", b"two"], np.object_)}, "image 0: this is text", "400"),
        ("animals", {"images": np.array([b""], np.object_)}, "element 0 of the input 'images' is empty", "400"),
        ("animals", {"images": np.array([b"x"] * 65, np.object_)}, "the most is 64", "400"),
        ("animals", {"images": np.zeros(3, np.float32)}, "'images' came as FP32: .* or images .BYTES", "400"),
        ("double", given(1), "a Python model has no tensors", "400"),
        ("nobody", given(1), "there is no model of that name", "404"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_sentence(
    client: triton.InferenceServerClient, model: str, arrays: dict[str, Any], says: str, status: str
) -> None:
    with pytest.raises(InferenceServerException, match=says) as caught:
        client.infer(model, inputs(arrays))
    assert caught.value.status() == status


def test_one_bad_image_refuses_its_request_and_nobody_elses(client: triton.InferenceServerClient) -> None:
    good = encoded(photograph("coffee"))
    bad = client.async_infer("animals", inputs({"images": np.array([good, good, b"GIF89a", good], np.object_)}))
    others = [client.async_infer("animals", inputs({"images": np.array([good], np.object_)})) for _ in range(6)]
    with pytest.raises(InferenceServerException, match="image 2: "):
        bad.get_result()
    assert all(each.get_result().as_numpy("probabilities").shape == (1, 5) for each in others)


def test_images_and_tensors_exclude_each_other(client: triton.InferenceServerClient, models: Served) -> None:
    file = encoded(photograph("coffee"))
    both = {"images": np.array([file], np.object_), "input": models.animals.pixels(file).numpy()}
    with pytest.raises(InferenceServerException, match="and not both"):
        client.infer("animals", inputs(both))


def test_a_timeout_is_microseconds(client: triton.InferenceServerClient, models: Served) -> None:
    arrays = given(2)
    assert_right(models, arrays, client.infer("several", inputs(arrays), timeout=30_000_000, priority=3))
    with pytest.raises(InferenceServerException) as caught:
        client.infer("several", inputs(given(3000)), timeout=1)
    assert caught.value.status() == "503"


def test_what_is_not_there_says_so(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="sequences are not supported") as caught:
        client.infer("several", inputs(given(1)), sequence_id=7, sequence_start=True)
    assert caught.value.status() == "501"
    memory = triton.InferInput("a", [1, 4], "FP32")
    memory.set_shared_memory("region", 16)
    for call in (
        lambda: client.infer("several", [memory]),
        lambda: client.register_system_shared_memory("region", "/key", 16),
        client.get_system_shared_memory_status,
        client.unregister_system_shared_memory,
        client.get_cuda_shared_memory_status,
        lambda: client.unregister_cuda_shared_memory("region"),
    ):
        with pytest.raises(InferenceServerException, match="shared memory is not supported") as caught:
            call()
        assert caught.value.status() == "501"
    assert client.get_trace_settings()["trace_level"] == ["OFF"]
    assert client.get_trace_settings("several")["trace_mode"] == "opentelemetry"
    assert client.get_log_settings()["log_verbose_level"] == 0
    for change in (
        lambda: client.update_trace_settings(settings={"trace_level": ["TIMESTAMPS"]}),
        lambda: client.update_trace_settings("several", {"trace_level": None}),
        lambda: client.update_log_settings({"log_verbose_level": 1}),
    ):
        with pytest.raises(InferenceServerException, match="cannot be changed over the protocol"):
            change()


def test_statistics_count_what_was_done(client: triton.InferenceServerClient) -> None:
    def of(model: str) -> dict[str, Any]:
        [one] = client.get_inference_statistics(model, "1")["model_stats"]
        assert one in client.get_inference_statistics()["model_stats"]
        return dict(one)

    before = of("several")
    for _ in range(3):
        client.infer("several", inputs(given(2)))
    after = of("several")
    assert after["inference_count"] - before["inference_count"] == 3
    stats = {
        name: each["count"] - before["inference_stats"][name]["count"]
        for name, each in after["inference_stats"].items()
    }
    assert (stats["success"], stats["compute_infer"], stats["queue"], stats["fail"]) == (3, 3, 3, 0)
    assert after["inference_stats"]["compute_infer"]["ns"] > before["inference_stats"]["compute_infer"]["ns"]
    with pytest.raises(InferenceServerException):
        client.infer("several", inputs({"a": given(1)["a"]}))
    assert of("several")["inference_stats"]["fail"]["count"] == before["inference_stats"]["fail"]["count"] + 1


def test_the_repository_is_listed_unloaded_and_loaded(client: triton.InferenceServerClient) -> None:
    def index() -> dict[str, str]:
        return {each["name"]: each["state"] for each in client.get_model_repository_index()}

    assert index() == {"several": "READY", "animals": "READY", "double": "READY", "line": "READY"}
    client.unload_model("double")
    assert index()["double"] == "UNAVAILABLE"
    assert not client.is_model_ready("double")
    with pytest.raises(InferenceServerException) as caught:
        client.infer("double", inputs({"input": np.array([b"2"], np.object_)}))
    assert caught.value.status() == "503"
    client.load_model("double")
    assert client.infer("double", inputs({"input": np.array([b"2"], np.object_)})).as_numpy("output") == [b"4.0"]
    with pytest.raises(InferenceServerException, match="the parameter 'config' is not supported"):
        client.load_model("double", config='{"max_batch_size": 1}')
    with pytest.raises(InferenceServerException, match="there is no model of that name") as caught:
        client.load_model("nobody")
    assert caught.value.status() == "404"


def test_killed_workers_lose_no_request(
    client: triton.InferenceServerClient, server: ServerProcess, models: Served
) -> None:
    """F-01, F-02: whoever is computed with a worker that is killed runs again, and is rightly answered."""
    sent = [given(1 + seed % 5, seed) for seed in range(200)]
    for start in range(0, len(sent), 40):
        waiting = [client.async_infer("several", inputs(each)) for each in sent[start : start + 40]]
        found = [waiting.pop(0).get_result()]  # so that the others are under way
        for worker in fleet.children(server.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
        found += [each.get_result() for each in waiting]
        for arrays, each in zip(sent[start:], found, strict=False):
            assert_right(models, arrays, each)
