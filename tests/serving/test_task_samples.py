"""The four tasks over images beside others: strangers in a batch (W6), golden samples, and tables."""

import csv
import io
import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet
import pytest
import torch

import flambeau
from flambeau.bundle import storage
from flambeau.types import Classification, Tensors
from tests.support import task_models
from tests.support.server import Serve
from tests.support.task_models import NAMES, Made, close
from tests.support.warm import run_with_torch

# W6: strangers


@pytest.mark.long
def test_an_answer_does_not_depend_on_strangers_w6(tmp_path: Path, serve: Serve, pictures: list[bytes]) -> None:
    made = task_models.strangers(tmp_path / "strangers", one_row="an answer depends on the rows beside it")
    alone = [made.answers(picture).softmax(0) for picture in pictures]
    together = made.network(torch.cat([made.pixels(picture) for picture in pictures])).softmax(1)
    assert (together[0] - alone[0]).abs().max() > 0.01  # or this test would show nothing
    with serve(made.bundle.path, "--replicas", "1", "--max-batch-size", "8", "--max-queue-delay-ms", "50") as server:
        parts = [("image", picture) for picture in pictures]
        for answer, expected in zip(server.post(files=parts).json()["predictions"], alone, strict=True):
            assert close(answer["probabilities"], expected)
        begin = threading.Barrier(6)

        def ask(which: int) -> tuple[int, list[float]]:
            begin.wait()
            found: list[float] = server.post(files={"image": pictures[which % 3]}).json()["probabilities"]
            return which, found

        with ThreadPoolExecutor(6) as clients:
            for which, found in clients.map(ask, range(6)):
                assert close(found, alone[which % 3])


@pytest.mark.long
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_every_engine_is_given_one_row_w6(tmp_path: Path, engine: str, pictures: list[bytes]) -> None:
    """Probes, golden samples in a batch and the measuring of costs go through the same engine."""
    from flambeau import engines
    from flambeau.runners.base import ReplicaSpec
    from flambeau.runners.replica import TensorReplica, open_replica
    from flambeau.types import Item, Options, Payload

    if not engines.installed(engine):
        pytest.skip(f"{engine} is not installed")
    made = task_models.strangers(tmp_path / "strangers", one_row="an answer depends on the rows beside it")
    spec = ReplicaSpec(
        bundle=str(made.bundle.path), name="strangers", engine=engine, device="cpu", threads=1, allow_code=False,
        threshold=None, max_image_pixels=10**8, wide_threads=2,
    )  # fmt: skip
    replica = open_replica(spec)
    assert isinstance(replica, TensorReplica)
    try:
        replica.warm_up()  # the probes were answered alone, and would not agree together
        assert replica.cost is not None
        assert replica.cost.two == float("inf")  # a batch is of one, unless the user says another size
        for wide in (False, True):
            items = [Item(Payload("file", picture), Options(probabilities=True)) for picture in pictures]
            for outcome, picture in zip(replica.run(items, wide=wide), pictures, strict=True):
                assert isinstance(outcome.result, Classification)
                assert close(outcome.result.probabilities, made.answers(picture).softmax(0))
    finally:
        replica.close()


# Golden samples


def golden(made: Made, folder: Path, pictures: list[bytes]) -> Path:
    """A copy of the bundle with two samples, as a build keeps them."""
    from flambeau.builder import golden_samples
    from flambeau.pipelines.base import open_pipeline
    from tests.support.golden import golden_folder

    shutil.copytree(made.bundle.path, folder)
    manifest = made.bundle.manifest
    pipeline = open_pipeline(
        made.pipeline, labels=made.bundle.labels(), inputs=manifest.inputs, outputs=manifest.outputs,
        task=manifest.what_it_does, activation=manifest.activated_by,
    )  # fmt: skip

    def compute(rows: Tensors) -> Tensors:
        with torch.inference_mode():
            return {"output": made.network(torch.from_numpy(rows["input"])).numpy()}

    given = golden_samples.gather(
        golden_folder(folder.with_name("given"), {"a.png": pictures[0], "b.png": pictures[1]})
    )
    golden_samples.collect(given, folder, pipeline=pipeline, compute=compute)
    storage.write_manifest(folder, manifest)
    return folder


@pytest.mark.parametrize("name", ["softmax-inside", "sigmoid-outside", "regressions", "embedding"])
def test_every_task_reproduces_its_samples_whatever_the_threshold_is_w3(
    tmp_path: Path, made: dict[str, Made], pictures: list[bytes], name: str
) -> None:
    folder = golden(made[name], tmp_path / "golden", pictures)
    for threshold in (None, 0.999):
        with flambeau.load(folder, threshold=threshold) as model:
            model.predict(pictures[0])


def test_other_labels_end_the_service_before_it_is_ready_w3(
    tmp_path: Path, made: dict[str, Made], pictures: list[bytes]
) -> None:
    folder = golden(made["sigmoid-outside"], tmp_path / "golden", pictures)
    labels = made["sigmoid-outside"].bundle.labels()
    assert labels is not None
    storage.write_labels(folder, labels[::-1])
    storage.write_manifest(folder, made["sigmoid-outside"].bundle.manifest)
    with pytest.raises(flambeau.SetupError, match=r"the answer to its sample a\.png: labels are .* are expected"):
        flambeau.load(folder)


# Tables


@pytest.mark.long
def test_rows_of_every_task_w3_w5(tmp_path: Path, made: dict[str, Made], pictures: list[bytes]) -> None:
    (tmp_path / "in").mkdir()
    for index, picture in enumerate((*pictures[:2], b"no picture")):
        (tmp_path / "in" / f"{index}.png").write_bytes(picture)

    def predicted(name: str, kind: str, *more: str) -> Path:
        file = tmp_path / f"{name}.{kind}"
        done = run_with_torch("predict", made[name].bundle.path, tmp_path / "in", "-o", file, *more)
        assert done.returncode == 3, done.stderr  # one of the inputs is no picture
        return file

    scores = [made["sigmoid-outside"].answers(picture).sigmoid() for picture in pictures[:2]]
    lines = [json.loads(line) for line in predicted("sigmoid-outside", "jsonl").read_text().splitlines()]
    for row, expected in zip(lines, scores, strict=False):
        assert list(row) == ["input", "labels", "scores", "error", "code"]
        assert close(row["scores"], expected)
        assert set(row["labels"]) == {NAMES[index] for index in range(5) if expected[index] >= 0.5}
    assert (lines[2]["labels"], lines[2]["scores"], lines[2]["code"]) == (None, None, "unsupported_image_format")

    table = pyarrow.parquet.read_table(predicted("sigmoid-outside", "parquet"))
    assert [str(table.schema.field(name).type) for name in ("labels", "scores")] == [
        "list<element: string>", "list<element: float>",
    ]  # fmt: skip
    assert table["labels"].to_pylist() == [row["labels"] for row in lines]

    rows = list(csv.DictReader(io.StringIO(predicted("sigmoid-outside", "csv", "--threshold", "0.01").read_text())))
    assert set(json.loads(rows[0]["labels"])) == {NAMES[index] for index in range(5) if scores[0][index] >= 0.01}
    assert close(json.loads(rows[0]["scores"]), scores[0])
    assert (rows[2]["labels"], rows[2]["code"]) == ("", "unsupported_image_format")

    table = pyarrow.parquet.read_table(predicted("embedding", "parquet"))
    assert str(table.schema.field("embedding").type) == "list<element: float>"
    assert close(table["embedding"].to_pylist()[1], made["embedding"].answers(pictures[1]), 1e-4)
    rows = list(csv.DictReader(io.StringIO(predicted("embedding", "csv").read_text())))
    assert close(json.loads(rows[0]["embedding"]), made["embedding"].answers(pictures[0]), 1e-4)

    table = pyarrow.parquet.read_table(predicted("regression", "parquet"))
    assert str(table.schema.field("output").type) == "double"
    rows = list(csv.DictReader(io.StringIO(predicted("regression", "csv").read_text())))
    assert close([float(row["output"]) for row in rows[:2]], torch.stack([
        made["regression"].answers(picture)[0] for picture in pictures[:2]
    ]))  # fmt: skip
    shown = run_with_torch("predict", made["embedding"].bundle.path, tmp_path / "in", "--format", "table").stdout
    assert "512 numbers: " in shown


@pytest.mark.parametrize(("name", "option"), [("sigmoid-outside", "--probabilities"), ("embedding", "--top-k=3")])
def test_what_a_task_has_not_is_refused(tmp_path: Path, made: dict[str, Made], name: str, option: str) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    done = run_with_torch("predict", made[name].bundle.path, tmp_path / "a.png", option)
    assert done.returncode == 1
    assert f"{option.partition('=')[0]} has no effect on {name}: leave it out" in done.stderr
