"""What a handler is given and may answer, without a worker."""

import importlib
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from flambeau.errors import ConfigError
from flambeau.handlers.base import TS_PATH
from flambeau.handlers.torchserve import ENVELOPES, row_of
from flambeau.items import HandlerCall, HandlerPart
from flambeau.tasks import ANSWERS
from flambeau.tasks.handler import Handled

JSON = "application/json"


def _call(*parts: tuple[str, str, bytes]) -> HandlerCall:
    return HandlerCall("id", {}, tuple(HandlerPart(*each) for each in parts))


@pytest.mark.parametrize(
    ("parts", "row"),
    [
        ([("body", JSON, b"[1]")], {"body": [1]}),
        ([("body", JSON, b"{broken")], {"body": bytearray(b"{broken")}),
        ([("body", "", b"[1]")], {"body": bytearray(b"[1]")}),
        ([("body", "text/plain", b"hi")], {"body": "hi"}),
        ([("body", "application/x-www-form-urlencoded", b"a=1&a=2&b=")], {"a": bytearray(b"2"), "b": bytearray()}),
        ([("a", "", b"1"), ("a", "", b"2")], {"a": bytearray(b"2")}),
        ([("a", JSON, b'{"x": 1}')], {"a": {"x": 1}}),
    ],
)
def test_a_request_becomes_the_row_that_torchserve_makes_of_it(
    parts: list[tuple[str, str, bytes]], row: dict[str, object]
) -> None:
    assert row_of(_call(*parts)) == row


@pytest.mark.parametrize(
    ("media_type", "headers"),
    [
        ("text/html\r\nX: y", ()),
        (JSON, (("X-A", "b\r\nSet-Cookie: c"),)),
        (JSON, (("Content-Length", "1"),)),
        (JSON, (("Set-Cookie", "a=b"),)),
        (JSON, (("Access-Control-Allow-Origin", "*"),)),
        (JSON, (("bad name", "x"),)),
    ],
)
def test_no_worker_can_send_headers_that_are_not_a_handlers(
    media_type: str, headers: tuple[tuple[str, str], ...]
) -> None:
    honest = msgspec.msgpack.encode(Handled(b"x", JSON, 200, (("X-A", "b"),)))
    decoder = msgspec.msgpack.Decoder(ANSWERS)
    assert decoder.decode(honest).headers == (("X-A", "b"),)
    forged = msgspec.msgpack.encode(["handled", b"x", media_type, 200, headers])
    with pytest.raises(msgspec.ValidationError):
        decoder.decode(forged)


def test_an_address_is_a_host_and_a_port() -> None:
    from flambeau.settings.hosts import host_and_port
    from flambeau.settings.service import Settings

    assert host_and_port("management_address", "[::1]:81") == ("::1", 81)
    for text in ("8081", ":8081", "host:", "host:0", "host:70000"):
        with pytest.raises(ConfigError, match="is not an address"):
            Settings(management_address=text)
    assert Settings(host="0.0.0.0", management_address="127.0.0.1:81").managed_here
    assert not Settings(management_address="0.0.0.0:81").managed_here


# Envelopes


@pytest.fixture
def envelopes(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes TorchServe's envelopes by name, around a function, with a context that knows one request."""
    monkeypatch.syspath_prepend(str(TS_PATH))
    from ts.context import Context, RequestProcessor

    manifest = {"model": {"modelName": "m", "modelVersion": "2.0"}}
    context = Context(model_name="m", manifest=manifest, properties={}, yaml={})
    context.request_ids, context.request_processor = {0: "id"}, [RequestProcessor({})]

    def make(name: str, function: Any) -> Any:
        module = importlib.import_module(f"ts.torch_handler.request_envelope.{name}")
        envelope = getattr(module, ENVELOPES[name])(function)
        return lambda data: envelope.handle(data, context)

    yield make
    for name in [each for each in sys.modules if each.partition(".")[0] == "ts"]:
        del sys.modules[name]


def test_the_envelopes_of_kserve(envelopes: Any) -> None:
    first = envelopes("kserve", lambda data, context: [each["data"] for each in data])
    assert first([{"body": {"instances": [{"data": 1}, {"data": 2}]}}]) == [{"predictions": [1, 2]}]
    assert first([{"data": b'{"instances": [{"data": 1}]}'}]) == [{"predictions": [1]}]
    assert envelopes("body", lambda data, context: data)([{"body": b"x"}]) == [b"x"]
    second = envelopes("kservev2", lambda data, context: [each["data"] for each in data])
    inputs = [{"name": "a", "shape": [2, 2], "datatype": "INT64", "data": [1, 2, 3, 4]},
              {"name": "b", "shape": [1], "datatype": "BYTES", "data": ["text"]}]  # fmt: skip
    [found] = second([{"body": {"id": "7", "inputs": inputs}}])
    assert (found["id"], found["model_name"], found["model_version"]) == ("7", "m", "2.0")
    assert found["outputs"] == [
        {"name": "a", "datatype": "INT64", "data": [1, 2, 3, 4], "shape": [4]},
        {"name": "b", "datatype": "BYTES", "data": ["text"], "shape": [1]},
    ]
    refused: list[dict[str, Any]] = [
        {}, {"inputs": []}, {"inputs": [{"name": "a"}]}, {"inputs": [{**inputs[0], "shape": [3]}]},
    ]  # fmt: skip
    for bad in refused:
        with pytest.raises(Exception, match=r"400"):
            second([{"body": bad or {"x": 1}}])


def test_the_documents_handler_of_texts_answers_in_the_place_of_text_classifier(
    envelopes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = (Path(__file__).parents[2] / "docs" / "migrating-from-torchserve.md").read_text()
    source = document.partition("<!-- test: file texts.py -->\n```python\n")[2].partition("```")[0]
    torch.manual_seed(0)
    network = "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
    network += "        self.embedding, self.fc = nn.EmbeddingBag(4, 3), nn.Linear(3, 2)\n\n"
    network += "    def forward(self, text, offsets):\n        return self.fc(self.embedding(text, offsets))\n"
    (tmp_path / "net.py").write_text(f"from torch import nn\n\n\n{network}")
    names: dict[str, Any] = {"nn": torch.nn}
    exec(network, names)
    eager = names["Net"]().eval()
    torch.save(eager.state_dict(), tmp_path / "net.pt")
    torch.save({"good": 1, "bad": 2, "film": 3}, tmp_path / "source_vocab.pt")
    (tmp_path / "index_to_name.json").write_text('{"0": "no", "1": "yes"}')
    (tmp_path / "texts.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    model = {"modelName": "m", "modelFile": "net.py", "serializedFile": "net.pt"}
    properties = {"model_dir": str(tmp_path), "gpu_id": None}
    from ts.context import Context

    context = Context(model_name="m", manifest={"model": model}, properties=properties, yaml={})
    names = {}
    exec(source, names)
    handler = names["Texts"]()
    handler.initialize(context)
    context.request_processor = []
    found = handler.handle([{"data": bytearray(b"Good film")}, {"body": "bad unknown film"}], context)
    with torch.inference_mode():
        right = eager(torch.tensor([1, 3, 2, 0, 3]), torch.tensor([0, 2])).softmax(1).tolist()
    assert [list(each.values()) for each in found] == right
    assert [list(each) for each in found] == [["no", "yes"]] * 2


def test_a_table_of_class_names_in_each_of_its_forms(envelopes: Any, tmp_path: Path) -> None:
    load = importlib.import_module("ts.utils.util").load_label_mapping
    file = tmp_path / "index_to_name.json"
    assert load(str(file)) is None
    for text in ('{"0": "cat"}', '{"0": ["n01", "cat"]}', '{"object_type_names": ["cat"]}'):
        file.write_text(text)
        assert load(str(file)) == {"0": "cat"}
    for text in ("[]", '{"0": 7}'):
        file.write_text(text)
        with pytest.raises(ValueError, match="class"):
            load(str(file))
