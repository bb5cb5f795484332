"""Golden samples at build: what a folder may hold, and what of the answers may be insisted on."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from flambeau.builder import golden_samples as build_samples
from flambeau.bundle import storage
from flambeau.bundle.storage import Activation
from flambeau.errors import SourceError
from flambeau.pipelines.base import open_pipeline
from flambeau.tasks import TaskName
from flambeau.types import Classification, Label, Scored, Tensors, TensorSpec, Value
from tests.support.golden import INPUT, OUTPUT, collected, golden_folder, python_bundle
from tests.support.photographs import encoded
from tests.support.warm import run_with_torch

# What a folder of samples may hold


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({}, "holds no samples"),
        ({"expected.json": {}}, "holds no samples"),
        ({".hidden.json": {"input": 1}}, "holds no samples"),
        ({f"{number}.json": {"input": 1} for number in range(65)}, "holds 65 files, and the most is 64"),
        ({"a:b.json": {"input": 1}}, "sample 'a:b.json' has a name"),
        ({"line\nbreak.json": {"input": 1}}, "sample 'line.*break.json' has a name"),
        ({"a.json": b'{"input": [1, 2'}, "sample a.json is not a JSON text .*truncated"),
        ({"a.json": b'{"input": "\xff"}'}, "sample a.json is not a JSON text .*utf-8"),
        ({"a.json": b'{"input": ' + b"[" * 100_000}, "sample a.json is not a JSON text"),
        ({"a.json": b'{"input": %s}' % (b"[" * 100_000 + b"]" * 100_000)}, "nested too deeply"),
        ({"a.json": {"inputs": [[1]]}}, "sample a.json .* unknown field `inputs`"),
        ({"a.json": {"output": 1}}, "sample a.json .* missing required field `input`"),
        ({"a.json": [1]}, "sample a.json .* got `array`"),
        ({"a.json": {"input": 1}, "expected.json": {"b.json": {}}}, "expected.json names b.json, but"),
        ({"a.json": {"input": 1}, "expected.json": b"{"}, "expected.json is not a table like .*truncated"),
        ({"a.json": {"input": 1}, "expected.json": {"a.json": {"class": 1}}}, "under a.json, .* unknown field `class`"),
        ({"a.json": {"input": 1}, "expected.json": {"a.json": {"min_probability": 2}}}, "under a.json, .* <= 1.0"),
        ({"a.json": {"input": 1, "output": 2}, "expected.json": {"a.json": {"output": 3}}}, "is given in it and"),
    ],
)  # fmt: skip
def test_a_folder_that_holds_something_else_is_refused_by_name(
    tmp_path: Path, files: dict[str, object], why: str
) -> None:
    with pytest.raises(SourceError, match=f"(?s){why}"):
        build_samples.gather(golden_folder(tmp_path / "golden", files))


def test_a_folder_with_what_is_no_file_or_too_much_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"--samples .*none cannot be read \(No such file or directory\)"):
        build_samples.gather(tmp_path / "none")
    golden = golden_folder(tmp_path / "golden", {})
    with (golden / "large.png").open("wb") as file:
        file.truncate(64 * 1024 * 1024 + 1)
    with pytest.raises(SourceError, match=r"holds 64 MiB, and the most is 64 MiB"):
        build_samples.gather(golden)
    (golden / "large.png").unlink()
    (golden / "inner").mkdir()
    with pytest.raises(SourceError, match=r"inner in --samples .* is not a file"):
        build_samples.gather(golden)


# How the network answers them


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"a.json": {"input": [1, 2], "output": [2, 5]}}, r"sample a\.json .*: output\[1\] is 4\.0 where 5 is"),
        ({"a.json": {"input": [1]}}, r"sample a\.json is not a valid input for this model: .*shape is \[1\]"),
        ({"a.png": b"\x89PNG"}, r"sample a\.png is not a valid input for this model: this model takes numbers"),
        ({"a.json": {"input": [3e38, 1]}}, r"sample a\.json with numbers that are not finite, in y"),
        (
            {"a.json": {"input": [1, 2]}, "expected.json": {"a.json": {"class_index": 1}}},
            r"sample a\.json .*: the answer is no class, and has no class_index",
        ),
    ],
)  # fmt: skip
def test_a_build_ends_at_the_sample_that_is_not_answered_as_expected(
    tmp_path: Path, files: dict[str, object], why: str
) -> None:
    with np.errstate(over="ignore"), pytest.raises(SourceError, match=why):
        collected(tmp_path / "bundle", files)


def test_the_command_ends_when_an_expectation_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("import torch\n\n\ndef net():\n    return torch.nn.Linear(2, 1)\n")
    save_file({"weight": np.ones((1, 2), np.float32), "bias": np.zeros(1, np.float32)}, tmp_path / "net.safetensors")
    golden = golden_folder(tmp_path / "golden", {"sum.json": {"input": [2, 3], "output": [6]}})
    done = run_with_torch(
        "build", tmp_path / "net.safetensors", "--arch", f"{tmp_path / 'net.py'}:net", "--allow-code",
        "--samples", golden, "-o", tmp_path / "out",
    )  # fmt: skip
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "sample sum.json is not answered as expected: output[0] is 5.0 where 6 is expected: " in last
    assert not (tmp_path / "out").exists()


# What of an image's answer may be insisted on


def logits(batch: Tensors) -> Tensors:
    """Of three classes the second wins, with a probability of about 0.79."""
    return {"y": np.tile(np.array([0, 2, 0.5], np.float32), (len(batch["x"]), 1))}


@pytest.mark.parametrize(
    ("expected", "why"),
    [
        ({"class_index": 1, "class_id": "b", "class_name": "bee", "min_probability": 0.7}, None),
        ({}, None),
        ({"class_index": 2}, "class_index is 1 where 2 is expected"),
        ({"class_id": "c"}, "class_id is 'b' where 'c' is expected"),
        ({"class_name": "cat"}, "class_name is 'bee' where 'cat' is expected"),
        ({"class_name": "bee", "min_probability": 0.8}, r"probability of bee is 0\.7\d\d where 0\.8 is the least"),
        ({"output": [1]}, "the answer is a class, and has no output"),
    ],
)
def test_each_part_of_a_class_may_be_insisted_on(tmp_path: Path, expected: dict[str, object], why: str | None) -> None:
    pipeline = open_pipeline(
        storage.ImageConfig(resize=4, crop=4), labels=[Label("a", "ant"), Label("b", "bee"), Label("c", "cat")],
        inputs=[TensorSpec("x", "float32", (3, 4, 4))], outputs=[TensorSpec("y", "float32", (3,))],
    )  # fmt: skip
    files = {"grey.png": encoded(Image.new("RGB", (8, 8), "grey")), "expected.json": {"grey.png": expected}}
    if why is None:
        collected(tmp_path / "bundle", files, pipeline=pipeline, compute=logits)
        table = json.loads((tmp_path / "bundle" / storage.SAMPLES).read_text())
        assert table == {"grey.png": {"class_index": 1, "class_id": "b", "class_name": "bee"}}
        assert load_file(tmp_path / "bundle" / storage.SAMPLE_OUTPUTS)["grey.png/y"].tolist() == [[0, 2, 0.5]]
    else:
        with pytest.raises(SourceError, match=f"sample grey.png is not answered as expected: .*{why}"):
            collected(tmp_path / "bundle", files, pipeline=pipeline, compute=logits)


@pytest.mark.parametrize(
    ("content", "why"), [(b"GIF89a", "broken or cut short|not an image"), (b"text", "not an image")]
)
def test_a_sample_that_is_no_image_is_named(tmp_path: Path, content: bytes, why: str) -> None:
    pipeline = open_pipeline(storage.ImageConfig(), labels=None, inputs=[INPUT], outputs=[OUTPUT])
    with pytest.raises(SourceError, match=f"sample a.gif is not a valid input for this model: .*({why})"):
        collected(tmp_path / "bundle", {"a.gif": content}, pipeline=pipeline)


# Answers that are JSON


@pytest.mark.parametrize(
    ("expected", "found", "why"),
    [
        (1.0, 1.0009, None),
        (1.0, 1.002, "output is 1.002 where 1.0 is expected"),
        (2, 2.0, None),
        (0.0, 1e-7, None),
        (0.5, -0.5, "output is -0.5 where 0.5 is expected"),
        (100_000, 100_001, "output is 100001 where 100000 is expected"),
        (10**400, 1.5, "output is 1.5 where 1000"),
        (1, True, "output is true where 1 is expected"),
        (None, None, None),
        (None, 0, "output is 0 where null is expected"),
        ("a", "b", "output is \"b\" where \"a\" is expected"),
        ("a", "b" * 99, "…"),
        ([1, [2.0, 3]], [1, [2.0001, 3]], None),
        ([1, [2.0, 3]], [1, [2.1, 3]], "output[1][0] is 2.1 where 2.0 is expected"),
        ([1, 2], [1], "output has 1 elements where 2 are expected"),
        ({"a": {"b": [0.5]}}, {"a": {"b": [0.4]}}, "output['a']['b'][0] is 0.4 where 0.5 is expected"),
        ({"a": 1}, {"a": 1, "b": 2}, "output has 'b'"),
        ({"a": 1, "b": 2}, {"a": 1}, "output lacks 'b'"),
        ({"a": 1}, [1], "output is [1] where {\"a\":1} is expected"),
    ],
)  # fmt: skip
def test_json_answers_are_compared_number_by_number(expected: object, found: object, why: str | None) -> None:
    told = Value(json.dumps(found).encode()).differs({"output": expected})
    assert told == why if why is None else told is not None and why in told


def test_a_probability_that_is_nan_is_not_enough() -> None:
    answer = Classification((Scored(0, Label("0", "cat"), float("nan")),), threshold=0.0)
    assert answer.differs({"min_probability": 0.0}) is not None


# Several labels, numbers, vectors


@pytest.mark.parametrize(
    ("task", "expected", "why"),
    [
        ("multi-label", {"labels": ["cat", "bee"], "min_score": 0.6}, None),
        ("multi-label", {"labels": ["bee", "cat", "ant"]}, None),  # ant stands at the threshold, and 0.0005 below it
        ("multi-label", {"labels": ["bee"]}, r"labels are \['bee', 'cat'\] where \['bee'\] are expected"),
        ("multi-label", {"labels": ["bee", "cat", "dog"]}, r"where \['bee', 'cat', 'dog'\] are expected"),
        ("multi-label", {"min_score": 0.7}, r"the score of cat is 0\.622 where 0\.7 is the least"),
        ("multi-label", {"class_name": "bee"}, "the answer is a list of labels, and has no class_name"),
        ("regression", {"output": [-0.002, 2, 0.5001]}, None),
        ("regression", {"output": [-0.002, 2.1, 0.5]}, r"output\[1\] is 2.0 where 2.1 is expected"),
        ("regression", {"output": 2.0}, r"output is \[-0\.002.* where 2.0 is expected"),
        ("regression", {"min_probability": 0.5}, "the answer is a number, and has no min_probability"),
        ("embedding", {"embedding": [-0.001, 2, 0.5]}, None),
        ("embedding", {"embedding": [-0.002, 2, 0.51]}, r"embedding is 5\.0e-03 apart \(tolerance 1e-03\)"),
        ("embedding", {"embedding": [1, 2]}, "embedding has 3 numbers where 2 are expected"),
        ("embedding", {"output": [1, 2]}, "the answer is a vector, and has no output"),
    ],
)
def test_each_task_has_its_own_expectations_w3(
    tmp_path: Path, task: TaskName, expected: dict[str, object], why: str | None
) -> None:
    """W3 to W5: what is insisted on is held against the answer of the task."""
    pipeline = open_pipeline(
        storage.ImageConfig(resize=4, crop=4, threshold=0.5), task=task,
        activation=Activation("sigmoid" if task == "multi-label" else "none"),
        labels=[Label("a", "ant"), Label("b", "bee"), Label("c", "cat")],
        inputs=[TensorSpec("x", "float32", (3, 4, 4))], outputs=[TensorSpec("y", "float32", (3,))],
    )  # fmt: skip
    files = {"grey.png": encoded(Image.new("RGB", (8, 8), "grey")), "expected.json": {"grey.png": expected}}

    def compute(rows: Tensors) -> Tensors:
        return {"y": np.array([[-0.002, 2, 0.5]], np.float32)}

    if why is None:
        collected(tmp_path / "bundle", files, pipeline=pipeline, compute=compute)
        table = json.loads((tmp_path / "bundle" / storage.SAMPLES).read_text())
        assert table == {"grey.png": {"labels": ["bee", "cat"]} if task == "multi-label" else {}}
        outputs = load_file(tmp_path / "bundle" / storage.SAMPLE_OUTPUTS)["grey.png/y"]
        assert outputs.tolist() == compute({})["y"].tolist()
    else:
        with pytest.raises(SourceError, match=f"sample grey.png is not answered as expected: .*{why}"):
            collected(tmp_path / "bundle", files, pipeline=pipeline, compute=compute)


# A Python model


@pytest.mark.parametrize(
    ("expected", "why"),
    [
        ({}, r"sample a\.json has no output, and a Python model is not run when it is built"),
        ({"class_name": "cat"}, r"expected\.json wants class_name of a\.json"),
    ],
)
def test_the_whole_output_of_a_python_model_must_be_stated(
    tmp_path: Path, expected: dict[str, object], why: str
) -> None:
    with pytest.raises(SourceError, match=why):
        python_bundle(tmp_path / "out", "", {"a.json": {"input": 1}, "expected.json": {"a.json": expected}})
