"""gRPC as the real `tritonclient` speaks it, unmodified: every call of it that fits."""

import asyncio
import queue
import threading
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

from tests.support.grpc_server import GrpcServer, assert_right, inputs, rows, sleeping
from tests.support.tensor_bundles import Several


def status_of(refused: "pytest.ExceptionInfo[InferenceServerException]") -> str:
    return str(refused.value.status()).removeprefix("StatusCode.")


def test_health(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("several")
    assert client.is_model_ready("several", "2")
    with pytest.raises(InferenceServerException, match="no model of that name") as refused:
        client.is_model_ready("nothing")
    assert status_of(refused) == "NOT_FOUND"


def test_metadata_says_what_a_request_needs(client: triton.InferenceServerClient) -> None:
    server = client.get_server_metadata()
    assert server.name == "flambeau"
    assert {"binary_tensor_data", "statistics"} <= set(server.extensions)
    found = client.get_model_metadata("several", as_json=True)
    assert (found["name"], found["platform"]) == ("several", "flambeau_onnxruntime")
    assert [(each["name"], each["datatype"], each["shape"]) for each in found["inputs"]] == [
        ("a", "FP32", ["-1", "4"]), ("b", "INT64", ["-1", "2", "3"])
    ]  # fmt: skip
    assert [each["name"] for each in found["outputs"]] == ["sums", "scores"]


def test_configuration(client: triton.InferenceServerClient) -> None:
    config = client.get_model_config("several").config
    assert (config.name, config.backend, config.max_batch_size > 0) == ("several", "onnxruntime", True)
    assert [list(each.dims) for each in config.input] == [[4], [2, 3]]


def test_numbers_are_the_networks_own(client: triton.InferenceServerClient, network: Several) -> None:
    arrays = rows(5)
    found = client.infer("several", inputs(arrays), request_id="my own")
    assert_right(network, arrays, found)
    assert found.get_response().id == "my own"
    assert (found.get_response().model_name, found.get_response().model_version) == ("several", "2")


def test_a_version_can_be_named(client: triton.InferenceServerClient) -> None:
    found = client.infer("several", inputs(rows(1)), model_version="2")
    assert found.get_response().model_version == "2"
    with pytest.raises(InferenceServerException, match="version 1 of model 'several' is not loaded") as refused:
        client.infer("several", inputs(rows(1)), model_version="1")
    assert status_of(refused) == "UNAVAILABLE"
    assert not client.is_model_ready("several", "1")
    with pytest.raises(InferenceServerException) as refused:
        client.infer("several", inputs(rows(1)), model_version="7")
    assert status_of(refused) == "NOT_FOUND"


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests(client: triton.InferenceServerClient, network: Several, algorithm: str) -> None:
    arrays = rows(9)
    assert_right(network, arrays, client.infer("several", inputs(arrays), compression_algorithm=algorithm))


def test_outputs_on_request_and_their_best_classes(client: triton.InferenceServerClient, network: Several) -> None:
    arrays = rows(2)
    asked = [triton.InferRequestedOutput("scores", class_count=1)]
    found = client.infer("several", inputs(arrays), outputs=asked)
    assert found.as_numpy("sums") is None
    best = [int(text.decode().split(":")[1]) for (text,) in found.as_numpy("scores")]
    assert best == network.answers(arrays)["scores"].argmax(1).tolist()


def test_a_value_of_own_code(client: triton.InferenceServerClient) -> None:
    assert client.infer("sleepy", sleeping(0, "hello")).as_numpy("output").tolist() == [b'"hello"']


def test_several_calls_at_once(client: triton.InferenceServerClient, network: Several) -> None:
    answers: queue.SimpleQueue[tuple[int, Any, Any]] = queue.SimpleQueue()
    given = {seed: rows(3, seed) for seed in range(20)}

    def taking(seed: int) -> Any:
        return lambda result, error: answers.put((seed, result, error))

    for seed, arrays in given.items():
        client.async_infer("several", inputs(arrays), taking(seed))
    for _ in given:
        seed, result, error = answers.get(timeout=60)
        assert error is None
        assert_right(network, given[seed], result)


def test_a_cancelled_call_is_over(client: triton.InferenceServerClient) -> None:
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
    call = client.async_infer("sleepy", sleeping(0.3), lambda result, error: answers.put(error))
    call.cancel()
    assert "CANCELLED" in str(answers.get(timeout=60).status())


def test_a_stream_answers_in_any_order_and_goes_on_after_errors(client: triton.InferenceServerClient) -> None:
    answers: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    client.async_stream_infer("sleepy", sleeping(0.5, "slow"), request_id="slow")
    client.async_stream_infer("nothing", inputs(rows(1)), request_id="wrong")
    for number in range(3):
        client.async_stream_infer("several", inputs(rows(1)), request_id=f"quick-{number}")
    found = [answers.get(timeout=60) for _ in range(5)]
    client.stop_stream()
    good = [result.get_response().id for result, error in found if error is None]
    assert (good[-1], sorted(good[:-1])) == ("slow", ["quick-0", "quick-1", "quick-2"])
    [wrong] = [error.message() for _, error in found if error is not None]
    assert wrong.startswith("there is no model of that name ('nothing'): name one of ")


def test_the_asyncio_client(server: GrpcServer, network: Several) -> None:
    async def talk() -> None:
        async with triton_aio.InferenceServerClient(server.target) as client:
            assert await client.is_model_ready("several")
            given = [rows(2, seed) for seed in range(8)]
            found = await asyncio.gather(*(client.infer("several", inputs(arrays)) for arrays in given))
            for arrays, result in zip(given, found, strict=True):
                assert_right(network, arrays, result)

            async def asked() -> Any:
                for arrays in given:
                    yield {"model_name": "several", "inputs": inputs(arrays), "request_id": str(len(arrays))}

            count = 0
            async for _, error in client.stream_infer(asked()):
                assert error is None
                count += 1
                if count == len(given):
                    break
            assert count == len(given)

    asyncio.run(talk())


def test_timeouts_of_the_client_and_of_the_request(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException) as refused:
        client.infer("sleepy", sleeping(0.6), client_timeout=0.2)
    assert status_of(refused) == "DEADLINE_EXCEEDED"
    with pytest.raises(InferenceServerException) as refused:
        client.infer("sleepy", sleeping(0.6), timeout=200_000)  # microseconds
    assert status_of(refused) == "DEADLINE_EXCEEDED"
    assert client.infer("sleepy", sleeping(0, "later")).as_numpy("output").tolist() == [b'"later"']


def test_statistics_count_what_was_answered(client: triton.InferenceServerClient) -> None:
    def counted() -> tuple[int, int]:
        (stats,) = client.get_inference_statistics("several", "2").model_stats
        return stats.inference_count, stats.inference_stats.success.count

    before = counted()
    client.infer("several", inputs(rows(4)))
    assert [now - then for now, then in zip(counted(), before, strict=True)] == [1, 1]
    assert {each.name for each in client.get_inference_statistics().model_stats} == {"several", "sleepy"}


def test_the_repository_is_listed_loaded_and_unloaded(client: triton.InferenceServerClient) -> None:
    def states() -> dict[tuple[str, str], str]:
        return {(each.name, each.version): each.state for each in client.get_model_repository_index().models}

    assert states()[("sleepy", "1")] == "READY"
    client.unload_model("sleepy")
    assert states()[("sleepy", "1")] == "UNAVAILABLE"
    assert not client.is_model_ready("sleepy")
    with pytest.raises(InferenceServerException):
        client.infer("sleepy", sleeping(0))
    client.load_model("sleepy")
    assert client.is_model_ready("sleepy")
    with pytest.raises(InferenceServerException) as refused:
        client.load_model("sleepy", config="{}")
    assert status_of(refused) == "UNIMPLEMENTED"


def test_what_is_not_there_says_so(client: triton.InferenceServerClient) -> None:
    for call in (
        lambda: client.register_system_shared_memory("region", "/region", 8),
        client.get_system_shared_memory_status,
        client.get_cuda_shared_memory_status,
        client.unregister_system_shared_memory,
    ):
        with pytest.raises(InferenceServerException, match="shared memory is not supported: send") as refused:
            call()
        assert status_of(refused) == "UNIMPLEMENTED"
    assert client.get_trace_settings().settings["trace_level"].value == ["OFF"]
    assert client.get_log_settings().settings["log_info"].bool_param is True
    with pytest.raises(InferenceServerException) as refused:
        client.update_trace_settings(settings={"trace_rate": "2"})
    assert status_of(refused) == "UNIMPLEMENTED"
    with pytest.raises(InferenceServerException) as refused:
        client.update_log_settings({"log_verbose_level": 1})
    assert status_of(refused) == "UNIMPLEMENTED"


def test_many_clients_each_get_their_own(server: GrpcServer, network: Several) -> None:
    wrong: list[BaseException] = []

    def ask(number: int) -> None:
        try:
            with triton.InferenceServerClient(server.target) as client:
                for seed in range(10):
                    arrays = rows(1 + seed % 3, 100 * number + seed)
                    assert_right(network, arrays, client.infer("several", inputs(arrays)))
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not wrong


def test_errors_name_what_is_wrong(client: triton.InferenceServerClient) -> None:
    arrays = rows(1)
    lacking = inputs({"a": arrays["a"]})
    with pytest.raises(InferenceServerException, match="the input 'b' is missing") as refused:
        client.infer("several", lacking)
    assert status_of(refused) == "INVALID_ARGUMENT"
    odd = triton.InferInput("a", [1, 4], "FP32").set_data_from_numpy(np.zeros((1, 4), np.float32))
    odd.set_shape([1, 5])
    with pytest.raises(InferenceServerException, match="unexpected size for input 'a'"):
        client.infer("several", [odd, *inputs({"b": arrays["b"]})])
