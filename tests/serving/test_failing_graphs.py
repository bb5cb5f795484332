"""A graph that fails while it computes: over HTTP, for the others of its batch, and in the Python API."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import flambeau
from tests.support.server import Serve
from tests.support.tensor_bundles import TENTHS, looking_up

OUTSIDE = 9


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return looking_up(tmp_path_factory.mktemp("graphs") / "places")


def test_only_the_request_at_fault_fails_and_no_worker_is_lost(serve: Serve, places: Path) -> None:
    asked = [3, OUTSIDE, 0, 4]
    with serve(places, "--replicas", "1", "--max-queue-delay-ms", "300", "--max-batch-size", "4") as server:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda place: server.post("/predict", json={"input": place}), asked))
        assert [each.status_code for each in found] == [200, 500, 200, 200]
        for place, each in zip(asked, found, strict=True):
            if place != OUTSIDE:
                assert each.json()["output"] == pytest.approx(float(TENTHS[place]))
        failed = found[1].json()
        assert (failed["code"], failed["retryable"]) == ("model_error", False)
        assert "Gather" not in found[1].text  # the words of the library may hold paths: they are in the log
        assert "InvalidArgument" in server.log()
        metrics = server.get("/metrics").text
        assert not [
            line for line in metrics.splitlines()
            if line.startswith("flambeau_worker_restarts_total{") and not line.endswith(" 0.0")
        ]  # fmt: skip
        assert server.post("/predict", json={"input": 1}).status_code == 200


def test_the_python_api_raises_our_error_with_the_librarys_words(places: Path) -> None:
    with flambeau.load(places) as model:
        with pytest.raises(
            flambeau.RequestError, match=r"^the model failed on this input: InvalidArgument: .*Gather"
        ) as caught:
            model.predict(OUTSIDE)
        assert caught.value.code == "model_error"
        assert "InvalidArgument" in type(caught.value.__cause__).__name__
        assert model.predict(3) == pytest.approx(float(TENTHS[3]))
