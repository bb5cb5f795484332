"""A task is one module, one template and nothing else: the recipe of docs/architecture.md, tried.

A copy of the package is given the two files that the recipe names. A bundle of the new task is built with it, served by
worker processes, shown on the page, told in /openapi.json and scored into a table.
"""

import csv
import json
import re
import shutil
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

import flambeau
from tests.support.browser import open_browser
from tests.support.photographs import encoded
from tests.support.server import Serve, run_flambeau

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
SIDE = 16

MODULE = '''"""How bright a picture is."""

from collections.abc import Mapping
from typing import Any, ClassVar

from flambeau.answers import Answer, Asked
from flambeau.answers.schemas import record
from flambeau.tasks.base import CellKind, NetworkFacts, Postprocess, Renderer, Task


class Brightness(Answer, frozen=True):
    level: float

    def body(self, asked: Asked) -> dict[str, Any]:
        return {"brightness": self.level, "dark": self.level < 0.5}

    def row(self, *, top_k: int | None, probabilities: bool) -> dict[str, Any]:
        return self.body(Asked())


class BrightnessTask(Task):
    name = "brightness"
    title = "Brightness"
    told = "How bright the picture is, and whether that is dark."
    answer = Brightness
    columns: ClassVar[Mapping[str, CellKind]] = {"brightness": "number", "dark": "truth"}
    media_types: ClassVar[Mapping[str, Renderer]] = {
        "text/plain": lambda found: "\\n".join(f"{each.level:.2f}" for each in found).encode()
    }

    def postprocess(self, network: NetworkFacts) -> Postprocess:
        self.row_of(network)
        output = network.outputs[0].name
        return lambda outputs, item: Brightness(float(outputs[output][0, 0]))

    def schemas(self, network: NetworkFacts) -> tuple[dict[str, Any], ...]:
        return (record({"brightness": {"type": "number"}, "dark": {"type": "boolean"}}),)


TASK = BrightnessTask()
'''

TEMPLATE = """{%- from "card.html" import card -%}
{{- card("Dark" if answer.level < 0.5 else "Bright", text=answer.level | digits, stages=stages) -}}
"""


def places() -> list[str]:
    """Where the recipe puts the files of a task called `brightness`."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    recipe = text.split("## Add a task")[1].split("\n## ")[0]
    assert len(recipe.strip().splitlines()) <= 15
    return [found.replace("NAME", "brightness") for found in re.findall(r"`src/(flambeau/[\w/]+/NAME\.\w+)`", recipe)]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with the task in it."""
    folder = tmp_path_factory.mktemp("with-brightness")
    without = shutil.ignore_patterns("__pycache__", "vendor")
    shutil.copytree(Path(flambeau.__file__).parent, folder / "flambeau", ignore=without)
    module, template = places()
    for place, text in ((module, MODULE), (template, TEMPLATE)):
        assert not (folder / place).exists()
        (folder / place).write_text(text)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dark picture, a bright one, and none."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, grey in (("a-dark", 51), ("b-bright", 204)):
        (folder / f"{name}.png").write_bytes(encoded(Image.new("RGB", (40, 30), (grey,) * 3)))
    (folder / "c-none.png").write_bytes(b"none")
    return folder


@pytest.fixture(scope="module")
def built(package: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a network that means over a picture, with a golden sample that states the whole answer."""
    folder = tmp_path_factory.mktemp("built")
    value, float_ = helper.make_tensor_value_info, TensorProto.FLOAT
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["x"], ["channels"]),
            helper.make_node("Flatten", ["channels"], ["three"]),
            helper.make_node("ReduceMean", ["three"], ["y"], axes=[1], keepdims=1),
        ],
        "mean", [value("x", float_, ["n", 3, SIDE, SIDE])], [value("y", float_, ["n", 1])],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "mean.onnx")
    (folder / "samples").mkdir()
    shutil.copy(pictures / "b-bright.png", folder / "samples")
    expected = {"b-bright.png": {"output": {"brightness": 0.8, "dark": False}}}
    (folder / "samples" / "expected.json").write_text(json.dumps(expected))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(package))
        done = run_flambeau(
            "build", folder / "mean.onnx", "--task", "brightness", "--mean", "0,0,0", "--std", "1,1,1",
            "--samples", folder / "samples", "-o", folder / "bundle",
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "task: brightness; its 1 outputs are answered as they are" in done.stderr
    return folder / "bundle"


def test_a_task_of_two_files_is_served_shown_and_told(
    serve: Serve, package: Path, pictures: Path, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(package))
    dark, bright, none = [file.read_bytes() for file in sorted(pictures.iterdir())]
    with serve(built, "--replicas", "1") as server:
        assert "runner=processes" in server.log()
        assert server.post(files={"file": dark}).json() == {"brightness": pytest.approx(0.2), "dark": True}
        several = server.post(files=[("file", bright), ("file", none), ("image", dark)]).json()["predictions"]
        assert [each.get("dark", each.get("code")) for each in several] == [False, "unsupported_image_format", True]
        in_words = server.post(files=[("file", bright), ("file", dark)], headers={"Accept": "text/plain"})
        assert (in_words.headers["Content-Type"], in_words.text) == ("text/plain", "0.80\n0.20")
        page = server.post("/", files={"file": ("dark.png", dark)}).text
        assert '<h3 class="verdict">Dark</h3>' in page
        assert re.search(r'<pre class="text"[^>]*>0\.2</pre>', page)
        assert "Show it a picture, and see what it makes of it." in page
        operation = server.get("/openapi.json").json()["paths"]["/predict"]["post"]
    assert operation["description"].startswith("Brightness. No activation is applied")
    content = operation["responses"]["200"]["content"]
    assert content.keys() == {"application/json", "text/plain"}
    one, _ = content["application/json"]["schema"]["anyOf"]
    assert one["required"] == ["brightness", "dark"]
    assert {each.get("name") for each in operation["parameters"]} == {"X-Request-Timeout-Ms", None}


def test_a_script_that_does_not_know_the_task_shows_the_same_card(
    serve: Serve, package: Path, pictures: Path, built: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    chromium: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("PYTHONPATH", str(package))
    with serve(built, "--replicas", "1") as server, open_browser(tmp_path) as browser:
        browser.open(server.url)
        browser.find("#file").send_keys("\n".join(str(file) for file in sorted(pictures.iterdir())))
        browser.until(lambda: len(browser.all(".card")) == 3 and not browser.all(".card.busy"))
        assert browser.texts(".card .verdict") == ["Dark", "Bright", "Not answered"]
        assert browser.texts(".card .source") == ["a-dark.png", "b-bright.png", "c-none.png"]
        assert [text for text in browser.texts(".card .text") if text] == ["0.2", "0.8"]
        assert browser.complaints(refusals=True) == []


def test_a_task_of_two_files_is_scored_into_a_table(
    package: Path, pictures: Path, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(package))
    table = tmp_path / "table.csv"
    done = run_flambeau("predict", built, pictures, "-o", table)
    assert done.returncode == 3, done.stderr
    dark, bright, none = csv.DictReader(table.read_text().splitlines())
    assert list(dark) == ["input", "brightness", "dark", "error", "code"]
    assert [float(each["brightness"]) for each in (dark, bright)] == pytest.approx([0.2, 0.8])
    assert [dark["dark"], bright["dark"], none["dark"]] == ["true", "false", ""]
    assert none["code"] == "unsupported_image_format"
    shown = run_flambeau("predict", built, pictures / "a-dark.png", "--format", "table").stdout
    assert re.search(r'\{"brightness":0\.[12]\d*,"dark":true\}', shown)


def test_without_its_module_there_is_no_such_task(built: Path, tmp_path: Path) -> None:
    """The package itself knows nothing of it: neither the command line nor a manifest may name it."""
    done = run_flambeau("serve", built)
    assert done.returncode != 0
    assert "is damaged: Invalid enum value 'brightness' - at `$.task`" in done.stderr
    refused = run_flambeau("build", tmp_path / "m.onnx", "--task", "brightness", "-o", tmp_path / "made")
    known = "classification, multi-label, regression, embedding, image-to-image, instance-segmentation"
    known += ", keypoint-detection, object-detection, semantic-segmentation, audio-classification, text-classification"
    assert f"--task brightness is not one of {known}\n" in refused.stderr
