"""`flambeau predict` into COCO's results: by the rules of the form, and by pycocotools itself where it is installed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flambeau.answers import instance_masks
from flambeau.bundle.storage import Bundle
from tests.http.test_detection import BLACK, DARK, WHITE
from tests.support import detector_bundles, segmenter_bundles
from tests.support.detector_bundles import CLASSES, KINDS, MOST, NAMES, STRENGTHS, TABLE
from tests.support.warm import run_with_torch

TASKS = tuple(KINDS)
IDS = {"cat": 17, "dog": 18}  # COCO's own


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return detector_bundles.detector(tmp_path_factory.mktemp("detector") / "bundle")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, data in (("a", BLACK), ("b", DARK), ("c", WHITE)):
        (folder / f"{name}.png").write_bytes(data)
    return folder


def loaded(file: Path) -> list[dict[str, Any]]:
    """The results, checked by the rules of https://cocodataset.org/#format-results."""
    found: list[dict[str, Any]] = json.loads(file.read_text())
    listed = json.loads(file.with_suffix(".images.json").read_text())
    images, categories = ({each["id"] for each in listed[part]} for part in ("images", "categories"))
    for each in found:
        assert each["image_id"] in images
        assert each["category_id"] in categories
        assert len(each["bbox"]) == 4
        assert min(each["bbox"][2:]) > 0
        assert 0 <= each["score"] <= 1
    return found


@pytest.mark.long
@pytest.mark.parametrize("task", TASKS)
def test_what_a_detector_finds_is_written_as_cocos_results(pictures: Path, tmp_path: Path, task: str) -> None:
    model, file = detector_bundles.detector(tmp_path / "model", task=task), tmp_path / "found.json"
    done = run_with_torch("predict", model.path, pictures, "-o", file, "--threshold", "0.9")
    assert done.returncode == 0, done.stderr
    assert "image_id counts the inputs from 1; category_id is COCO's own, 1 to 90; " in done.stderr
    found, most = loaded(file), int((STRENGTHS >= 0.9).sum())
    assert [each["image_id"] for each in found] == [2] + [3] * most
    boxes = TABLE[:most].astype(np.float64)
    np.testing.assert_allclose(
        [each["bbox"] for each in found[1:]], np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    )
    assert [each["category_id"] for each in found[1:]] == [IDS[NAMES[index]] for index in CLASSES[:most]]
    listed = json.loads((tmp_path / "found.images.json").read_text())
    assert [Path(each["file_name"]).name for each in listed["images"]] == ["a.png", "b.png", "c.png"]
    assert {each["name"]: each["id"] for each in listed["categories"]} == IDS
    told = run_with_torch("predict", model.path, pictures, "--format", "jsonl", "--threshold", "0.9").stdout
    row = json.loads(told.splitlines()[2])
    if task == "instance-segmentation":
        assert [each["segmentation"]["counts"] for each in found[1:]] == row["masks"]
        size = (row["height"], row["width"])
        assert all(each["segmentation"]["size"] == list(size) for each in found[1:])
        assert [instance_masks.unpacked(each, size).pixels for each in row["masks"]] == row["pixels"]
    if task == "keypoint-detection":
        ours = [[number for x, y, _ in each for number in (x, y, 1)] for each in row["keypoints"]]
        assert [each["keypoints"] for each in found[1:]] == ours
    again = run_with_torch("predict", model.path, pictures, "-o", file, "--threshold", "0.9")
    assert "found.json is complete: 3 rows, 0 errors" in again.stderr


@pytest.mark.long
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # its own
def test_pycocotools_loads_and_evaluates_the_results(pictures: Path, tmp_path: Path, task: str) -> None:
    """What was found is its own truth, of which every object is found again."""
    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    model, file = detector_bundles.detector(tmp_path / "model", task=task), tmp_path / "found.json"
    run_with_torch("predict", model.path, pictures, "-o", file, "--threshold", "0.97")
    truth = json.loads(file.with_suffix(".images.json").read_text())
    for number, each in enumerate(json.loads(file.read_text()), 1):
        area = each["bbox"][2] * each["bbox"][3]
        points = {"num_keypoints": len(each.get("keypoints", ())) // 3}
        truth["annotations"].append({**each, **points, "id": number, "area": area, "iscrowd": 0})
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    annotations = coco.COCO(str(tmp_path / "truth.json"))
    results = annotations.loadRes(str(file))
    assert len(results.anns) == 1 + int((STRENGTHS >= 0.97).sum())
    for each in results.anns.values():
        if task == "instance-segmentation":
            assert annotations.annToMask(each).sum() > 0
    kind = {"object-detection": "bbox", "instance-segmentation": "segm"}.get(task, "bbox")
    measured = cocoeval.COCOeval(annotations, results, kind)
    measured.evaluate()
    measured.accumulate()
    measured.summarize()
    assert measured.stats[1] == pytest.approx(1, abs=0.1)


@pytest.mark.long
def test_ids_are_those_of_a_file_of_annotations(bundle: Bundle, pictures: Path, tmp_path: Path) -> None:
    given = {
        "info": {}, "images": [{"id": 900, "file_name": "b.png"}, {"id": 7, "file_name": "pictures/c.png"}],
        "annotations": [], "categories": [{"id": 5, "name": "dog"}, {"id": 3, "name": "cat"}],
    }  # fmt: skip
    (tmp_path / "truth.json").write_text(json.dumps(given))
    command = ("predict", bundle.path, pictures, "-o", tmp_path / "found.json", "--coco-annotations",
               tmp_path / "truth.json")  # fmt: skip
    done = run_with_torch(*command)
    assert done.returncode == 3
    assert "3 rows, 1 error" in done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert [each["image_id"] for each in found] == [900] + [7] * MOST
    assert {each["category_id"] for each in found} == {3, 5}
    listed = json.loads((tmp_path / "found.images.json").read_text())
    assert listed["images"][0]["error"] == "the file of --coco-annotations has no image of this name"
    given["categories"] = [{"id": 3, "name": "cat"}]
    (tmp_path / "truth.json").write_text(json.dumps(given))
    done = run_with_torch(*command, "--overwrite")
    assert done.returncode == 78
    assert "has no category 'dog', which is a class of the model" in done.stderr


@pytest.mark.long
def test_ids_that_are_not_certain_are_refused(bundle: Bundle, pictures: Path, tmp_path: Path) -> None:
    """Two inputs that would be one image, and a file of annotations in which an id or a name stands for two things."""
    (pictures / "more").mkdir()
    (pictures / "more" / "b.png").write_bytes(DARK)
    truth, file = tmp_path / "truth.json", tmp_path / "found.json"
    categories = [{"id": 5, "name": "dog"}, {"id": 3, "name": "cat"}]
    images = [{"id": 900, "file_name": "b.png"}, {"id": 7, "file_name": str(pictures / "c.png")}]
    truth.write_text(json.dumps({"images": images, "categories": categories}))
    command = ("predict", bundle.path, pictures, "-o", file, "--coco-annotations", truth)
    assert run_with_torch(*command).returncode == 3
    assert [each["image_id"] for each in json.loads(file.read_text())] == [900] + [7] * MOST
    listed = json.loads(file.with_suffix(".images.json").read_text())["images"]
    assert "no image of this name" in listed[0]["error"]
    assert listed[3]["file_name"].endswith("more/b.png")
    assert "image 900 of --coco-annotations was an input before this" in listed[3]["error"]
    for wrong, told in (
        ({"images": [*images, {"id": 7, "file_name": "d.png"}]}, "has the image id 7 twice"),
        ({"images": [*images, {"id": 8, "file_name": "b.png"}]}, "has the file_name 'b.png' twice"),
        ({"categories": [*categories, {"id": 9, "name": "dog"}]}, "has the category 'dog' twice"),
        ({"categories": [*categories, {"id": 3, "name": "cow"}]}, "has the category id 3 twice"),
    ):
        truth.write_text(json.dumps({"images": images, "categories": categories, **wrong}))
        done = run_with_torch(*command, "--overwrite")
        assert done.returncode == 78
        assert told in done.stderr


def test_no_file_of_the_user_is_written_over(bundle: Bundle, pictures: Path, tmp_path: Path) -> None:
    """A file that happens to have the name of the list of images, and the annotations themselves."""
    file, beside = tmp_path / "found.json", tmp_path / "found.images.json"
    own = json.dumps({"images": [], "categories": [{"id": 5, "name": "dog"}, {"id": 3, "name": "cat"}]})
    beside.write_text(own)
    done = run_with_torch("predict", bundle.path, pictures, "-o", file)
    assert done.returncode == 1
    assert f"{beside} exists, and there is no record that" in done.stderr
    done = run_with_torch("predict", bundle.path, pictures, "-o", file, "--overwrite", "--coco-annotations", beside)
    assert done.returncode == 78
    assert f"{beside} is both read and written" in done.stderr
    assert beside.read_text() == own
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [beside.name]


def test_classes_that_are_not_cocos_keep_their_numbers(pictures: Path, tmp_path: Path) -> None:
    model = detector_bundles.detector(tmp_path / "model", labels=("background", "cat", "gnu"))
    done = run_with_torch("predict", model.path, pictures, "-o", tmp_path / "found.json")
    assert "category_id is the number of the model's class" in done.stderr
    assert {each["category_id"] for each in loaded(tmp_path / "found.json")} == {1, 2}


def test_what_has_no_such_form_is_told(bundle: Bundle, pictures: Path, tmp_path: Path) -> None:
    segmenter = segmenter_bundles.segmenter(tmp_path / "segmenter").path
    for words, told in (
        ((segmenter, pictures, "-o", tmp_path / "x.json"), "--format coco is for detectors, and "),
        ((bundle.path, pictures, "--format", "coco"), "--format coco needs a file: name it with -o"),
        ((bundle.path, pictures, "--coco-annotations", "x.json"), "has an effect on --format coco only"),
        ((bundle.path, pictures, "-o", tmp_path / "x.json", "--coco-annotations", pictures), "cannot be read"),
    ):
        done = run_with_torch("predict", *words)
        assert done.returncode in (1, 78)
        assert told in done.stderr
