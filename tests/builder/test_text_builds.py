"""Networks over texts from a file to an answer: found, pooled, checked, and the same one by one and together."""

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import torch

import flambeau
from flambeau.bundle.pipeline_config import TextConfig
from flambeau.bundle.storage import Activation, Bundle
from flambeau.errors import RequestError, SourceError
from flambeau.settings.source import SourceOptions
from flambeau.sources import build_cache
from flambeau.sources.request import Note
from tests.networks.text_nets import Bag, Recurrent
from tests.support import text_models
from tests.support.server import Serve, ServerProcess, answer_examples
from tests.support.text_models import VOCABULARY, embedded, encoder, seeded, tokenizer_json, tokens
from tests.support.warm import run_with_torch

pytestmark = pytest.mark.usefixtures("warm_builds")

NETWORKS = Path(__file__).parents[1] / "networks" / "text_nets.py"
TEXTS = (
    "the cat sleeps",
    "a wonderful film",
    "it was not good",
    "no",
    "the quick brown fox jumps over the lazy dog and runs",
)


def build(source: Path, notes: list[str], **options: Any) -> Bundle:
    def hear(event: object) -> None:
        if isinstance(event, Note):
            notes.append(event.text)

    return build_cache.open_source(SourceOptions(source=str(source), **options), progress=hear)


@pytest.fixture(scope="module")
def notes() -> list[str]:
    return []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sentences")


@pytest.fixture(scope="module")
def network(folder: Path) -> torch.nn.Module:
    return encoder(folder)


@pytest.fixture(scope="module")
def sentences(network: torch.nn.Module, folder: Path, notes: list[str], warm_builds: None) -> Bundle:
    """Built of the path alone, beside its tokenizer and its neighbours."""
    return build(folder / "model.onnx", notes)


@pytest.fixture(scope="module")
def server(serve: Serve, sentences: Bundle) -> Iterator[ServerProcess]:
    arguments = ("--replicas", "1", "--platform", "huggingface", "--host", "127.0.0.1", "--name", "sentences")
    with serve(sentences.path, *arguments) as running:
        yield running


def test_a_sentence_encoder_is_found_with_all_that_lies_beside_it(sentences: Bundle, notes: list[str]) -> None:
    manifest = sentences.manifest
    assert (manifest.task, manifest.activation) == ("embedding", Activation("l2", known="said"))
    pipeline = manifest.pipeline
    assert isinstance(pipeline, TextConfig)
    assert (pipeline.ids, pipeline.mask, pipeline.types) == ("input_ids", "attention_mask", "token_type_ids")
    assert (pipeline.most, pipeline.pooling, pipeline.truncate, pipeline.block) == (20, "mean", False, 16)
    said = "\n".join(notes)
    assert "texts become token ids by tokenizer.json; at most 20 tokens, as sentence_bert_config.json says" in said
    assert "the vector of a text is the mean of its tokens' vectors, as 1_Pooling/config.json says" in said
    assert "divided by their length, as modules.json says" in said


def test_a_folder_of_links_is_read_as_the_hub_lays_it(folder: Path, network: torch.nn.Module, tmp_path: Path) -> None:
    """It was served over numbers: no file lies beside the one that the link leads to."""
    for number, file in enumerate(sorted(each for each in folder.rglob("*") if each.is_file())):
        link = tmp_path / "snapshot" / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "blobs").mkdir(exist_ok=True)
        shutil.copy(file, tmp_path / "blobs" / str(number))
        link.symlink_to(tmp_path / "blobs" / str(number))
    inspected = run_with_torch("inspect", tmp_path / "snapshot" / "model.onnx")
    assert "of a text, made token ids by tokenizer.json" in inspected.stdout
    said: list[str] = []
    pipeline = build(tmp_path / "snapshot" / "model.onnx", said).manifest.pipeline
    assert isinstance(pipeline, TextConfig)
    assert (pipeline.most, pipeline.pooling) == (20, "mean")


def test_texts_of_unlike_lengths_are_answered_together_as_one_by_one(
    network: torch.nn.Module, server: ServerProcess
) -> None:
    expected = np.stack([embedded(network, text) for text in TEXTS])
    alone = np.array([server.post("/predict", json={"input": text}).json()["embedding"] for text in TEXTS])
    assert np.abs(alone - expected).max() <= 1e-5
    together = server.post("/predict", json={"input": list(TEXTS)}).json()["predictions"]
    assert np.array_equal(np.array([each["embedding"] for each in together]), alone)
    v1 = server.post("/v1/models/sentences:predict", json={"instances": list(TEXTS)}).json()["predictions"]
    assert np.array_equal(np.array([each["embedding"] for each in v1]), alone)
    tensor = {"name": "text", "shape": [len(TEXTS)], "datatype": "BYTES", "data": list(TEXTS)}
    [output] = server.post("/v2/models/sentences/infer", json={"inputs": [tensor]}).json()["outputs"]
    assert (output["name"], output["shape"]) == ("embedding", [len(TEXTS), 16])
    assert np.allclose(np.array(output["data"]).reshape(len(TEXTS), 16), alone, atol=1e-7)


def test_hugging_faces_client_gets_the_vector_of_a_text(network: torch.nn.Module, server: ServerProcess) -> None:
    client = server.hugging_face()
    found = client.feature_extraction(TEXTS[1], normalize=True, truncate=True)
    assert np.abs(found - embedded(network, TEXTS[1])[None]).max() <= 1e-5
    both = server.post("/", json={"inputs": list(TEXTS[:2])}).json()
    assert np.array(both).shape == (2, 16)


@pytest.mark.parametrize(
    ("given", "status", "told"),
    [
        ("", 400, "nothing in the text is a token"), (" \n", 400, "nothing in the text is a token"),
        (3, 400, "it is a number"), (None, 400, "it is null"), ({"text": "a"}, 400, "it is an object"),
        ([], 400, "no text in the list"), ([["a"]], 400, "it is a list"), (True, 400, "it is a truth value"),
        ("cat " * 19, 400, "has 21 tokens, and the model takes 20: send it in parts, or build the model again"),
        ("cat " * 17_000, 413, "the most is 65,536"), ("x" * 1_000_000, 413, "the most is 65,536"),
        (["x" * 600_000] * 2, 413, "the most is 1,048,576"), ("\ud800", 400, "surrogate"),
        (["a"] * 65, 413, "65 items"), ("é" * 32_769, 413, "the text has 65,538 bytes"),
    ],
)  # fmt: skip
def test_hostile_texts_are_refused_with_a_sentence(server: ServerProcess, given: Any, status: int, told: str) -> None:
    answer = server.post("/predict", json={"input": given})
    assert answer.status_code == status, answer.text
    assert told in answer.json()["error"]


def test_an_instance_of_v1_that_is_no_text_is_not_sent_in_a_circle(server: ServerProcess) -> None:
    """It was told to send {"input": "a sentence"}, which is what it was."""
    refused = server.post("/v1/models/sentences:predict", json={"instances": ["cat", {"input": "dog"}]})
    assert refused.json()["error"] == 'instance 1: input must be a text, such as "a sentence", but it is an object'


@pytest.mark.parametrize("text", ["é" * 32_768, '"' * 65_536], ids=["accents", "quotes"])
def test_a_texts_bytes_are_counted_as_it_is_and_not_as_json_spells_it(server: ServerProcess, text: str) -> None:
    """Python's json writes é as six bytes. Texts of a third of the most were refused, and their bytes miscounted."""
    sent = {"Content-Type": "application/json"}
    answers = [
        server.post("/predict", data=json.dumps({"input": text}, ensure_ascii=escaped).encode(), headers=sent)
        for escaped in (True, False)
    ]
    answers.append(server.post("/v2/models/sentences/infer", json={"inputs": [
        {"name": "text", "shape": [1], "datatype": "BYTES", "data": [text]}
    ]}))  # fmt: skip
    assert [each.status_code for each in answers] == [200, 200, 200], answers[0].text
    vectors = [answers[0].json()["embedding"], answers[1].json()["embedding"], answers[2].json()["outputs"][0]["data"]]
    assert vectors[0] == vectors[1] == pytest.approx(vectors[2], abs=1e-6)


def test_a_bad_text_fails_alone_and_odd_ones_are_answered(server: ServerProcess) -> None:
    found = server.post("/predict", json={"input": ["cat", 3, "😀 unknown\x00 words", ""]}).json()["predictions"]
    assert [sorted(each)[0] for each in found] == ["embedding", "code", "embedding", "code"]
    for body, headers in ((b"a cat", {"Content-Type": "text/plain"}), (b"a cat", {}), (b"\xff\xfe", {})):
        refused = server.post("/predict", data=body, headers=headers)
        assert (refused.status_code, "JSON" in refused.json()["error"]) == (415, True)
    array = {"Accept": "application/x-npy"}  # which has no place for an error, and names the text
    refused = server.post("/predict", json={"input": ["cat", "dog", ""]}, headers=array)
    assert refused.status_code == 400
    assert refused.json()["error"] == "item 2: nothing in the text is a token of the model: send some words"
    cut = server.post("/predict", json={"input": "cat " * 18}).json()["embedding"]  # as many as it takes
    assert len(cut) == 16


def test_the_client_says_how_to_send_several_texts(network: torch.nn.Module, server: ServerProcess) -> None:
    """It ended with a KeyError: a list is several inputs, and a Prediction is the answer to one."""
    with flambeau.Client(server.url) as client:
        with pytest.raises(flambeau.ClientError, match=r"the list was taken for 2 inputs.*predict_many.*as_json=True"):
            client.predict(list(TEXTS[:2]), as_json=True)
        found = [each.json()["embedding"] for each in client.predict_many(TEXTS[:2], as_json=True)]  # type: ignore[union-attr]
    assert np.abs(np.array(found) - [embedded(network, text) for text in TEXTS[:2]]).max() <= 1e-5
    form = server.post("/predict", files={"text": (None, "a cat")})
    assert (form.status_code, "takes texts, not a form: send JSON" in form.json()["error"]) == (400, True), form.text


def test_a_text_is_answered_in_proper_schema_and_on_the_page(server: ServerProcess) -> None:
    document = server.get("/openapi.json").json()["paths"]["/predict"]["post"]
    [body] = document["requestBody"]["content"].values()
    assert [each["type"] for each in body["schema"]["properties"]["input"]["anyOf"]] == ["string", "array"]
    assert answer_examples(server) >= {"/predict", "/v1/models/sentences:predict", "/v2/models/sentences/infer"}
    page = requests.get(f"{server.url}/", timeout=10).text
    assert '<label for="input">Text ' in page
    assert "at most 20 tokens" in page


def test_tables_of_texts_become_tables_of_vectors(network: torch.nn.Module, sentences: Bundle, tmp_path: Path) -> None:
    with (tmp_path / "texts.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["id", "text"], *([str(place), text] for place, text in enumerate((*TEXTS, "")))])
    done = run_with_torch("predict", sentences.path, tmp_path / "texts.csv", "-o", tmp_path / "found.jsonl")
    assert done.returncode == 3, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert (
        np.abs(np.array([row["embedding"] for row in rows[:-1]]) - [embedded(network, t) for t in TEXTS]).max() <= 1e-5
    )
    assert rows[-1]["code"] == "input_rejected"


# Own networks over token ids


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a classifier over token ids, with a tokenizer beside them."""
    place = tmp_path_factory.mktemp("bag")
    torch.save(seeded(Bag(len(VOCABULARY))).state_dict(), place / "bag.pth")
    (place / "tokenizer.json").write_text(tokenizer_json(ends=False))
    (place / "names.txt").write_text("good\nbad\nneither\n")
    return place


@pytest.fixture(scope="module")
def reviews(bag: Path, warm_builds: None) -> Bundle:
    options = {"arch": f"{NETWORKS}:Bag", "arch_args": {"words": len(VOCABULARY)}, "allow_code": True}
    return build(bag / "bag.pth", [], labels=str(bag / "names.txt"), **options)


def test_an_own_classifier_over_texts_has_labels(reviews: Bundle) -> None:
    network = seeded(Bag(len(VOCABULARY)))
    assert (reviews.manifest.task, reviews.manifest.inputs[0].below) == ("classification", len(VOCABULARY))
    with flambeau.load(reviews.path) as model:
        for text in TEXTS:
            with torch.inference_mode():
                expected = network(torch.tensor([tokens(text, ends=False)]))[0].softmax(0)
            found = model.predict(text)
            assert np.abs(found.probabilities - expected.numpy()).max() <= 1e-5
            assert found.top[0].label.name == ("good", "bad", "neither")[int(expected.argmax())]
        with pytest.raises(RequestError, match="nothing in the text is a token"):
            model.predict("")


@pytest.fixture(scope="module")
def classifying(serve: Serve, reviews: Bundle) -> Iterator[ServerProcess]:
    arguments = ("--replicas", "1", "--platform", "huggingface", "--host", "127.0.0.1", "--name", "reviews")
    with serve(reviews.path, *arguments) as running:
        yield running


def test_torchserves_clients_send_a_text_in_every_form(classifying: ServerProcess) -> None:
    """A body without the type of JSON was taken for JSON, and a plain text is none."""
    text = "this film is wonderful"
    told = json.dumps({"data": text})
    path = "/predictions/reviews"
    found = classifying.post(path, json=text)
    assert found.status_code == 200
    forms: list[dict[str, Any]] = [
        {"data": text}, {"data": text, "headers": {"Content-Type": "text/plain"}}, {"files": {"data": text}},
        {"data": text, "headers": {"Content-Type": "application/octet-stream"}},
        {"files": {"data": (None, text)}}, {"files": {"body": ("a.txt", text, "text/plain")}},
        {"files": {"data": (None, told, "application/json")}}, {"json": {"data": text}}, {"data": told},
        {"data": json.dumps({"input": text}), "headers": {"Content-Type": "application/x-www-form-urlencoded"}},
    ]  # fmt: skip
    for form in forms:
        assert classifying.post(path, **form).json() == found.json(), form
    quoted = classifying.post(path, data=f'"{text}')  # begins as JSON does, and is none
    assert (quoted.status_code, quoted.json() == found.json()) == (200, False)
    assert classifying.post(path, data="{ good } film").status_code == 200
    for refused, status, why in (
        ({"data": b"\xff\xfe"}, 400, "UTF-8"), ({"json": [text]}, 400, "it is a list"), ({"json": {"a": 1}}, 400, ""),
        ({"data": "film " * 20_000}, 413, "send it in parts"), ({"data": b""}, 400, "empty"),
        ({"data": '{"data": "good", "data": "bad"}', "headers": {"Content-Type": "application/json"}}, 400, "once"),
        ({"data": "film".encode("utf-16"), "headers": {"Content-Type": "text/plain; charset=utf-16"}}, 400, "UTF-8"),
    ):  # fmt: skip
        found = classifying.post(path, **refused)
        assert (found.status_code, why in found.json()["message"]) == (status, True), (refused, found.text)


def test_hugging_faces_client_classifies_a_text(classifying: ServerProcess) -> None:
    found = classifying.hugging_face().text_classification("a wonderful film", top_k=2)
    answer = classifying.post("/predict?top_k=2", json={"input": "a wonderful film"}).json()["predictions"]
    assert [(each.label, each.score) for each in found] == [
        (each["class_name"], pytest.approx(each["probability"])) for each in answer
    ]
    for ids, told in (([-1], "has -1"), ([len(VOCABULARY)], f"has {len(VOCABULARY)}")):
        tensor = {"name": "input", "shape": [1, 1], "datatype": "INT64", "data": ids}
        refused = classifying.post("/v2/models/reviews/infer", json={"inputs": [tensor]})
        assert (refused.status_code, told in refused.json()["error"]) == (400, True), refused.text


@pytest.mark.slow
def test_an_lstm_is_served_over_numbers_of_any_length(tmp_path: Path) -> None:
    network = seeded(Recurrent())
    torch.save(network.state_dict(), tmp_path / "lstm.pth")
    notes: list[str] = []
    bundle = build(tmp_path / "lstm.pth", notes, arch=f"{NETWORKS}:Recurrent", allow_code=True)
    assert (bundle.manifest.task, bundle.manifest.inputs[0].dtype) == ("tensor", "int64")
    assert "begins with a table of 40 vectors (Embedding)" in "\n".join(notes)
    with flambeau.load(bundle.path) as model:
        for ids in ([3], [5, 39, 0, 7], list(range(30))):
            with torch.inference_mode():
                expected = network(torch.tensor([ids]))[0]
            assert np.allclose(model.predict(ids), expected.numpy(), atol=1e-5)
        for wrong in ([-1], [40]):
            with pytest.raises(RequestError, match="the network's table has the places 0 to 39"):
                model.predict(wrong)
        with pytest.raises(RequestError, match="a decimal number where a whole number belongs"):
            model.predict([1.5])


@pytest.mark.long
def test_what_cannot_be_known_is_asked(tmp_path: Path, bag: Path, network: torch.nn.Module, folder: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "model.onnx").write_bytes((folder / "model.onnx").read_bytes())
    (bare / "tokenizer.json").write_text(tokenizer_json(ends=True))
    with pytest.raises(SourceError, match="a vector for every token: say --pooling mean"):
        build(bare / "model.onnx", [])
    (bare / "1_Pooling").mkdir()
    modes = {text_models.pooling_key("max"): True}
    (bare / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    with pytest.raises(SourceError, match="says pooling_mode_max_tokens, and mean or first"):
        build(bare / "model.onnx", [])
    (bare / "tokenizer.json").write_text("{}")
    with pytest.raises(SourceError, match=r"tokenizer\.json cannot be read"):
        build(bare / "model.onnx", [])
    (bare / "tokenizer.json").unlink()
    with pytest.raises(SourceError, match=r"--pipeline text needs a tokenizer\.json, and none lies beside"):
        build(bare / "model.onnx", [], pipeline="text")
    with pytest.raises(SourceError, match=r"is not a file: name a tokenizer\.json"):
        build(bare / "model.onnx", [], tokenizer=str(bare / "none.json"))


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "said", "told"),
    [
        ("modules.json", [{"type": f"sentence_transformers.models.{kind}"} for kind in ("Pooling", "Dense")],
         "has the step Dense, which is not in the graph"),
        ("config_sentence_transformers.json", {"prompts": {"query": "find: "}, "default_prompt_name": "query"},
         "puts the prompt query before every text"),
    ],
)  # fmt: skip
def test_a_step_that_is_not_served_is_refused(
    tmp_path: Path, network: torch.nn.Module, folder: Path, name: str, said: Any, told: str
) -> None:
    """Served without it, every vector would be another one than that of sentence-transformers."""
    shutil.copytree(folder, tmp_path / "more")
    (tmp_path / "more" / name).write_text(json.dumps(said))
    for options in ({}, {"pooling": "mean"}):
        with pytest.raises(SourceError, match=told):
            build(tmp_path / "more" / "model.onnx", [], **options)


@pytest.mark.long
def test_texts_are_written_in_lower_case_where_the_folder_says_so(
    tmp_path: Path, network: torch.nn.Module, folder: Path
) -> None:
    shutil.copytree(folder, tmp_path / "lower")
    cased = json.loads(tokenizer_json(ends=True)) | {"normalizer": None}
    (tmp_path / "lower" / "tokenizer.json").write_text(json.dumps(cased))
    (tmp_path / "lower" / "sentence_bert_config.json").write_text('{"max_seq_length": 20, "do_lower_case": true}')
    notes: list[str] = []
    with flambeau.load(build(tmp_path / "lower" / "model.onnx", notes).path) as model:
        found = model.predict("The CAT sleeps").embedding
    assert np.abs(found - embedded(network, "the cat sleeps")).max() <= 1e-5
    assert "texts are written in lower case first, as sentence_bert_config.json says" in notes


@pytest.mark.long
def test_a_network_of_few_tokens_has_an_example_that_fits(network: torch.nn.Module, folder: Path) -> None:
    """The usual one has twelve, and a model that cannot answer its own example is not served."""
    bundle = build(folder / "model.onnx", [], max_tokens=5)
    with flambeau.load(bundle.path) as model:
        assert np.abs(model.predict("the cat sleeps").embedding - embedded(network, "the cat sleeps")).max() <= 1e-5
        with pytest.raises(RequestError, match="the text has 6 tokens, and the model takes 5"):
            model.predict("the cat sleeps over")
    with pytest.raises(SourceError, match="no text that a build tries has 2 tokens or fewer: raise --max-tokens"):
        build(folder / "model.onnx", [], max_tokens=2)


@pytest.mark.slow
def test_a_fixed_length_is_filled_up_with_the_tokenizers_own_token(bag: Path, tmp_path: Path) -> None:
    """Without a mask that token counts: another one than in training would change every answer. The usual example, of
    ten tokens, does not fit either."""
    shutil.copy(bag / "bag.pth", tmp_path)
    own = json.loads(tokenizer_json(ends=False))
    own["padding"] = json.loads(tokenizer_json(ends=True))["padding"] | {"pad_id": VOCABULARY["[SEP]"]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(own))
    options = {"arch": f"{NETWORKS}:Bag", "arch_args": {"words": len(VOCABULARY)}, "allow_code": True}
    notes: list[str] = []
    bundle = build(tmp_path / "bag.pth", notes, input_shape=(8,), **options)
    filled = [*tokens("a good film", ends=False), *[VOCABULARY["[SEP]"]] * 5]
    with torch.inference_mode():
        expected = seeded(Bag(len(VOCABULARY)))(torch.tensor([filled]))[0].softmax(0).numpy()
    with flambeau.load(bundle.path) as model:
        assert np.abs(model.predict("a good film").probabilities - expected).max() <= 1e-5
    assert any("filled up to 8 tokens with the token 3, which counts" in note for note in notes)


@pytest.mark.slow
def test_a_tokenizer_of_another_network_is_refused(bag: Path, tmp_path: Path) -> None:
    torch.save(seeded(Bag(8)).state_dict(), tmp_path / "bag.pth")
    options = {"arch": f"{NETWORKS}:Bag", "arch_args": {"words": 8}, "allow_code": True}
    with pytest.raises(
        SourceError, match="makes 35 token ids, and the table of Bag has 8 vectors: it belongs to another network"
    ):
        build(tmp_path / "bag.pth", [], tokenizer=str(bag / "tokenizer.json"), **options)


@pytest.mark.slow
def test_cut_and_first_of_tokens(network: torch.nn.Module, folder: Path) -> None:
    bundle = build(folder / "model.onnx", [], pooling="first", truncate=True, max_tokens=6)
    with flambeau.load(bundle.path) as model:
        long = model.predict("cat " * 30).embedding
        assert np.allclose(long, model.predict("cat " * 4).embedding, atol=1e-6)  # with [CLS] and [SEP] six
        expected = embedded(network, "the cat sleeps", pooling="first")
        assert np.abs(model.predict("the cat sleeps").embedding - expected).max() <= 1e-5
