"""The four tasks over images, served: every answer is PyTorch's own, and says who applied which activation.

The ids are those of the faults: a softmax applied twice (W2), a softmax over sigmoids (W3) or over logits of several
labels (W4), a class out of an embedding (W5), and an answer that depends on strangers (W6).
"""

import asyncio
import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import flambeau
from flambeau.bundle.storage import Activation
from flambeau.errors import BundleError
from flambeau.types import Classification, Embedding, MultiLabel, Regression
from tests.support import task_models
from tests.support.photographs import encoded, photograph
from tests.support.server import Serve, ServerProcess
from tests.support.task_models import NAMES, Made, close

NPY = {"Accept": "application/x-npy"}


class Servers:
    """One server for each model, started when it is first asked for: in processes, as it is by default."""

    def __init__(self, stack: contextlib.ExitStack, serve: Serve, made: dict[str, Made]) -> None:
        self._stack = stack
        self._serve = serve
        self._made = made
        self._running: dict[str, ServerProcess] = {}

    def __getitem__(self, name: str) -> ServerProcess:
        if name not in self._running:
            server = self._serve(self._made[name].bundle.path, "--replicas", "1")
            self._running[name] = self._stack.enter_context(server)
        return self._running[name]


@pytest.fixture(scope="module")
def servers(serve: Serve, made: dict[str, Made]) -> Iterator[Servers]:
    with contextlib.ExitStack() as stack:
        yield Servers(stack, serve, made)


# Classification: W2


@pytest.mark.parametrize("name", ["softmax-inside", "log-softmax-inside"])
def test_a_softmax_in_the_network_is_not_applied_again_w2(
    servers: Servers, made: dict[str, Made], pictures: list[bytes], name: str
) -> None:
    for picture in pictures:
        expected = made[name].answers(picture)
        expected = expected.exp() if name.startswith("log") else expected
        answer = servers[name].post(files={"image": picture}).json()
        assert close(answer["probabilities"], expected)
        assert answer["class_index"] == int(expected.argmax())
        [first, *_] = servers[name].post("/predict?top_k=5", files={"file": picture}).json()["predictions"]
        assert close(first["probability"], expected.max())
        assert first["class_name"] == NAMES[int(expected.argmax())]


def test_the_threshold_counts_against_the_networks_own_probability_w2(
    servers: Servers, made: dict[str, Made], pictures: list[bytes]
) -> None:
    best = float(made["softmax-inside"].answers(pictures[0]).max())
    assert 0.3 < best < 0.999  # a softmax of it would be another number
    below, above = best - 1e-3, best + 1e-3
    server = servers["softmax-inside"]
    assert server.post(f"/predict?threshold={below:.5f}", files={"file": pictures[0]}).json()["class_name"] is not None
    refused = server.post(f"/predict?threshold={above:.5f}", files={"file": pictures[0]}).json()
    assert refused["class_name"] is None
    assert f"the top probability {best:.3f} is below" in refused["reason"]


def test_an_old_bundle_is_read_as_what_it_was(tmp_path: Path, pictures: list[bytes]) -> None:
    old = task_models.make(tmp_path / "old", task_models.network(5), task=None, activation=None, labels=NAMES)
    with flambeau.load(old.bundle.path) as model:
        answer = model.predict(pictures[0])
    assert isinstance(answer, Classification)
    assert close(answer.probabilities, old.answers(pictures[0]).softmax(0))


def test_one_output_is_never_a_softmax_w1(tmp_path: Path) -> None:
    """An older build would have served it: class 0 with 1.0 for every picture."""
    old = task_models.make(tmp_path / "old", task_models.network(1), task=None, activation=None)
    with pytest.raises(flambeau.SetupError, match=r"softmax over one output is 1\.0 .*--task multi-label"):
        flambeau.load(old.bundle.path)


# Several labels: W3, W4


@pytest.mark.parametrize("name", ["sigmoid-inside", "sigmoid-outside"])
@pytest.mark.parametrize("part", ["file", "image", "raw"])
def test_each_class_has_its_own_probability_w3_w4(
    servers: Servers, made: dict[str, Made], pictures: list[bytes], name: str, part: str
) -> None:
    for picture in pictures:
        raw = made[name].answers(picture)
        expected = raw if name == "sigmoid-inside" else raw.sigmoid()
        body = (
            {"data": picture, "headers": {"Content-Type": "image/png"}} if part == "raw" else {"files": {part: picture}}
        )
        answer = servers[name].post(**body).json()
        assert answer.keys() == {"labels", "scores"}
        assert close(answer["scores"], expected)
        order = [int(index) for index in expected.argsort(descending=True) if expected[index] >= 0.5]
        assert [each["label"] for each in answer["labels"]] == [NAMES[index] for index in order]
        assert close([each["score"] for each in answer["labels"]], expected[order])


def test_the_threshold_and_the_ranking_are_the_requests_w4(
    servers: Servers, made: dict[str, Made], pictures: list[bytes]
) -> None:
    server, picture = servers["sigmoid-outside"], pictures[0]
    scores = made["sigmoid-outside"].answers(picture).sigmoid()
    for threshold in (0.0, 0.01, 0.3, 0.9, 1.0):
        answer = server.post(f"/predict?threshold={threshold}", files={"file": picture}).json()
        assert {each["label"] for each in answer["labels"]} == {
            NAMES[index] for index in range(5) if float(scores[index]) >= threshold
        }
    ranked = server.post("/predict?top_k=2", files={"file": picture}).json()["predictions"]
    best = scores.argsort(descending=True)[:2].tolist()
    assert [each["class_name"] for each in ranked] == [NAMES[index] for index in best]
    assert [each["class_id"] for each in ranked] == [str(index) for index in best]
    assert close([each["probability"] for each in ranked], scores[best])
    assert len(server.post("/predict?top_k=1000", files={"file": picture}).json()["predictions"]) == 5


def test_several_pictures_and_a_bad_one_w4(servers: Servers, pictures: list[bytes]) -> None:
    parts = [("file", pictures[0]), ("image", b"no picture"), ("image", pictures[1])]
    first, bad, last = servers["sigmoid-outside"].post(files=parts).json()["predictions"]
    assert (bad["code"], first.keys(), last.keys()) == ("unsupported_image_format", {"labels", "scores"}, first.keys())


def test_the_sigmoid_is_torchs_and_never_overflows_w4() -> None:
    from flambeau.answers.activation import sigmoid

    numbers = np.concatenate([np.linspace(-120, 120, 20_001), [np.inf, -np.inf, 3.4e38, -3.4e38, 0.0, -0.0]])
    numbers = numbers.astype(np.float32)
    with np.errstate(all="raise", under="ignore"):
        found = sigmoid(numbers)
    expected = torch.from_numpy(numbers).sigmoid().numpy()
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-37)
    assert np.isnan(sigmoid(np.array([np.nan], np.float32))).all()


# Embeddings: W5


def test_an_embedding_is_a_vector_and_no_class_w5(
    servers: Servers, made: dict[str, Made], pictures: list[bytes]
) -> None:
    server = servers["embedding"]
    expected = [made["embedding"].answers(picture) for picture in pictures]
    one = server.post(files={"file": pictures[0]}).json()
    assert one.keys() == {"embedding"}
    assert close(one["embedding"], expected[0], 1e-4)
    several = server.post(files=[("image", pictures[0]), ("file", pictures[1])]).json()["predictions"]
    for answer, vector in zip(several, expected, strict=False):
        assert close(answer["embedding"], vector, 1e-4)


def read_npy(data: bytes) -> np.ndarray:
    return np.load(io.BytesIO(data), allow_pickle=False)


def test_numpy_is_answered_with_arrays_w5(servers: Servers, made: dict[str, Made], pictures: list[bytes]) -> None:
    server = servers["embedding"]
    one = server.post(data=pictures[0], headers={"Content-Type": "image/png", **NPY})
    assert (one.status_code, one.headers["Content-Type"]) == (200, "application/x-npy")
    vector = read_npy(one.content)
    assert (vector.dtype, vector.shape) == (np.float32, (512,))
    assert close(vector, made["embedding"].answers(pictures[0]), 1e-4)
    all_three = read_npy(server.post(files=[("file", picture) for picture in pictures], headers=NPY).content)
    assert all_three.shape == (3, 512)
    assert close(all_three[2], made["embedding"].answers(pictures[2]), 1e-4)
    bad = server.post(files=[("file", pictures[0]), ("file", b"no picture")], headers=NPY)
    assert (bad.status_code, bad.json()["code"]) == (415, "unsupported_image_format")


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("application/x-npy, application/json;q=0.9", "application/x-npy"),
        ("Application/X-NPY", "application/x-npy"),
        ("application/json, application/x-npy;q=0.5", "application/json"),
        ("application/x-npy;q=0", "application/json"),
        ("application/x-npy;q=nonsense", "application/x-npy"),
        ("*/*", "application/json"),
        ("application/*", "application/json"),
    ],
)
def test_json_is_usual_and_numpy_is_asked_for_w5(
    servers: Servers, pictures: list[bytes], accept: str, kind: str
) -> None:
    answer = servers["embedding"].post(files={"file": pictures[0]}, headers={"Accept": accept})
    assert answer.headers["Content-Type"] == kind


def test_of_no_other_task_is_numpy_given_w5(servers: Servers, pictures: list[bytes]) -> None:
    answer = servers["sigmoid-outside"].post(files={"file": pictures[0]}, headers=NPY)
    assert answer.headers["Content-Type"] == "application/json"


def test_many_long_vectors_do_not_hold_the_loop_w5() -> None:
    """64 vectors of 2048 numbers are 2.6 MB of text, 19 ms of work: others have their turn in between."""
    from flambeau.protocols.native import Call, render
    from flambeau.types import Options, Outcome

    found = Embedding(np.linspace(-1, 1, 2048, dtype="<f4").tobytes())
    call = Call(items=[], options=Options(), top_k=None)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def both() -> bytes:
        beside = asyncio.create_task(others())
        answer = await render(call, [("file", Outcome(found))] * 64, request_id="x")
        beside.cancel()
        return answer.body

    body = json.loads(asyncio.run(both()))
    assert len(body["predictions"]) == 64
    assert body["predictions"][63]["embedding"] == found.embedding.tolist()
    assert turns >= 12


# Regressions


def test_a_regression_is_the_networks_number_w1(servers: Servers, made: dict[str, Made], pictures: list[bytes]) -> None:
    for picture in pictures:
        for part in ("file", "image"):
            answer = servers["regression"].post(files={part: picture}).json()
            assert answer.keys() == {"output"}
            assert isinstance(answer["output"], float)
            assert close(answer["output"], made["regression"].answers(picture)[0])
    several = servers["regressions"].post(files={"file": pictures[0]}).json()["output"]
    assert close(several, made["regressions"].answers(pictures[0]))


def test_what_is_no_number_is_null_and_counted(tmp_path: Path, serve: Serve, pictures: list[bytes]) -> None:
    class Broken(torch.nn.Module):
        """The logarithm of what may be below zero: finite over the probes, and NaN over a dark picture."""

        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            means = rows.abs().mean((2, 3)) - 0.5
            return torch.cat([means.log(), means[:, :1]], 1)

    made = task_models.make(
        tmp_path / "broken", Broken(), task="regression", activation=task_models.Activation("none"),
        pipeline=task_models.ImageConfig(resize=32, crop=32, mean=(0.5,) * 3, std=(1.0,) * 3),
    )  # fmt: skip
    grey = encoded(photograph("chelsea").resize((32, 32)).point(lambda _: 128))
    with serve(made.bundle.path, "--replicas", "1") as server:
        answer = server.post(files={"file": grey})
    assert answer.json()["output"][:3] == [None] * 3
    assert answer.json()["output"][3] < 0
    assert answer.headers["X-Nonfinite-Outputs"] == "3"


# In this process, and the client


def test_answers_in_this_process_have_types(made: dict[str, Made], pictures: list[bytes]) -> None:
    picture = pictures[0]
    with flambeau.load(made["sigmoid-outside"].bundle.path) as model:
        labelled = model.predict(picture, threshold=0.2)
        assert isinstance(labelled, MultiLabel)
        assert close(labelled.scores, made["sigmoid-outside"].answers(picture).sigmoid())
        assert all(each.probability >= 0.2 for each in labelled.labels)
    with flambeau.load(made["regression"].bundle.path) as model:
        number = model.predict(picture)
        assert isinstance(number, Regression)
        assert close(number.output, made["regression"].answers(picture)[0])
    with flambeau.load(made["embedding"].bundle.path) as model:
        vector = model.predict(picture)
        assert isinstance(vector, Embedding)
        assert (vector.embedding.dtype, vector.embedding.shape) == (np.float32, (512,))
        assert close(vector.embedding, made["embedding"].answers(picture), 1e-4)


def test_the_client_has_a_field_for_each_task(servers: Servers, made: dict[str, Made], pictures: list[bytes]) -> None:
    picture = pictures[0]
    with flambeau.Client(servers["sigmoid-outside"].url) as client:
        answer = client.predict(picture, threshold=0.0, top_k=2)
        scores = made["sigmoid-outside"].answers(picture).sigmoid()
        assert close(answer.scores, scores)
        assert [each.label for each in answer.labels] == [NAMES[i] for i in scores.argsort(descending=True)]
        assert close([each.score for each in answer.labels], scores.sort(descending=True).values)
        assert len(answer.top) == 2
    with flambeau.Client(servers["embedding"].url) as client:
        assert close(client.predict(picture).embedding, made["embedding"].answers(picture), 1e-4)
    with flambeau.Client(servers["regression"].url) as client:
        assert close(client.predict(picture).output, made["regression"].answers(picture)[0])


# What is said


@pytest.mark.parametrize(
    ("name", "task", "sentence"),
    [
        ("assumed", "Classification", "Softmax is applied by Flambeau. This is assumed: nothing in the file says"),
        (
            "softmax-inside",
            "Classification",
            "Softmax is applied by the network (its last operation",
        ),
        ("log-softmax-inside", "Classification", "The network gives the logarithm of a softmax (its last"),
        ("sigmoid-inside", "Multi-label classification", "Sigmoid is applied by the network (its last"),
        ("sigmoid-outside", "Multi-label classification", "Sigmoid is applied by Flambeau (chosen at build)."),
        (
            "embedding",
            "Embedding",
            "No activation is applied (a known architecture): the",
        ),
        (
            "regression",
            "Regression",
            "No activation is applied (chosen at build): the",
        ),
    ],
)
def test_every_surface_says_who_applies_which_activation_w4(
    servers: Servers, name: str, task: str, sentence: str
) -> None:
    from html import unescape

    server = servers[name]
    told = f"{task}. {sentence}"
    assert told in server.get("/openapi.json").json()["paths"]["/predict"]["post"]["description"]
    assert told in unescape(server.get("/").text)
    assert told in unescape(server.get("/dashboard").text)
    assert f"{name}: {told}" in server.output()


def test_the_document_has_the_schema_of_the_task_w4(servers: Servers) -> None:
    def schema(name: str) -> Any:
        post = servers[name].get("/openapi.json").json()["paths"]["/predict"]["post"]
        return post["responses"]["200"]["content"]["application/json"]["schema"]["anyOf"][0]

    assert schema("sigmoid-outside")["required"] == ["labels", "scores"]
    assert schema("sigmoid-outside")["properties"]["scores"]["minItems"] == 5
    assert schema("embedding")["properties"]["embedding"]["maxItems"] == 512
    assert schema("regression")["properties"]["output"]["type"] == ["number", "null"]
    assert schema("regressions")["properties"]["output"]["maxItems"] == 3
    post = servers["embedding"].get("/openapi.json").json()["paths"]["/predict"]["post"]
    assert "application/x-npy" in post["responses"]["200"]["content"]
    assert "top_k" not in json.dumps(post["parameters"])


@pytest.mark.parametrize("missing", ["task", "activation"])
def test_a_bundle_that_names_one_of_task_and_activation_is_refused_a17(tmp_path: Path, missing: str) -> None:
    """Without its activation a bundle would serve scores for probabilities, and without its task a class."""
    said = {"task": "multi-label", "activation": Activation("sigmoid"), missing: None}
    with pytest.raises(BundleError, match=f"names its .* and not its {missing}"):
        task_models.make(tmp_path / "half", task_models.network(5), labels=NAMES, **said)  # type: ignore[arg-type]
