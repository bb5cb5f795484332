"""Every honest file is told for what it is, as torch itself would read it; damaged ones are refused and never raise."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch._weights_only_unpickler import _get_allowed_globals

from flambeau.bundle.storage import Bundle
from flambeau.checkpoints import Report, TensorInfo, TensorMapping, choose, examine, permitted_globals
from flambeau.checkpoints.allowlist import ALLOWED, BESIDE
from flambeau.errors import SourceError
from tests.support import forge
from tests.support.checkpoint_files import HONEST, WEIGHTS, Honest, saved

BY_NAME = {case.name: case for case in HONEST}
TORCH_DATA = [case for case in HONEST if case.format in ("torch-zip", "torch-legacy") and case.verdict == "data"]


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every honest file by the name of its case, with a suffix that says nothing."""
    folder = tmp_path_factory.mktemp("honest")
    written = {}
    for case in HONEST:
        written[case.name] = folder / f"{case.name}.file"
        case.write(written[case.name])
    return written


def described(weights: Mapping[str, Any]) -> dict[str, TensorInfo]:
    """The tensors among the members of a mapping, as a report describes them."""
    return {
        key: TensorInfo(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
        for key, tensor in weights.items()
        if isinstance(tensor, torch.Tensor)
    }


def loaded(path: Path) -> Any:
    with path.open("rb") as file, torch.serialization.safe_globals([*permitted_globals()]):
        return torch.load(file, weights_only=True)


def at(contents: Any, where: tuple[str, ...]) -> Any:
    for key in where:
        contents = contents[key]
    return contents


def report_of(tmp_path: Path, contents: bytes) -> Report:
    file = tmp_path / "file.pth"
    file.write_bytes(contents)
    return examine(file)


@pytest.mark.parametrize("case", HONEST, ids=lambda case: case.name)
def test_an_honest_file_is_told_for_what_it_is(case: Honest, files: dict[str, Path]) -> None:
    report = examine(files[case.name])
    assert (report.format, report.verdict) == (case.format, case.verdict)
    assert case.words in report.reason
    assert bool(report.reason) == bool(report.remedy) == (case.verdict != "data")
    assert report.size == files[case.name].stat().st_size
    if case.where is None:
        assert report.entries == ()
    else:
        assert choose(report, None)[0].where == case.where


@pytest.mark.parametrize("case", TORCH_DATA, ids=lambda case: case.name)
def test_what_passes_as_data_torch_reads_as_weights_and_sees_the_same(case: Honest, files: dict[str, Path]) -> None:
    report = examine(files[case.name])
    contents = loaded(files[case.name])
    for entry in report.entries:
        members = at(contents, entry.where)
        assert entry.tensors == described(members)
        assert set(entry.aside) == set(members) - set(entry.tensors)
    assert all(found.harmless for found in report.globals)


@pytest.mark.parametrize("case", HONEST, ids=lambda case: case.name)
def test_an_honest_file_is_told_the_same_when_it_is_compared_with_its_checksums(
    case: Honest, files: dict[str, Path]
) -> None:
    assert examine(files[case.name], whole=True) == examine(files[case.name])


@pytest.mark.parametrize("name", ["module", "module-legacy", "protocol-4", "with-a-config"])
def test_what_passes_as_code_torch_refuses_as_weights(name: str, files: dict[str, Path]) -> None:
    with pytest.raises(Exception, match=r"(?i)weights.only|unsupported"):
        loaded(files[name])


@pytest.mark.parametrize("name", ["module", "module-legacy", "module-within"])
def test_a_whole_module_is_described_by_its_state_dict(name: str, files: dict[str, Path]) -> None:
    entry, _ = choose(examine(files[name]), None)
    assert entry.tensors == described(WEIGHTS)


@pytest.mark.parametrize("name", ["module", "module-within", "with-a-config", "protocol-4"])
def test_the_conversion_that_is_proposed_gives_weights(
    name: str, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = examine(files[name]).remedy.split("alone, ")[1].split(", or give")[0]
    monkeypatch.chdir(tmp_path)
    exec(line.replace("'PATH'", repr(str(files[name]))), {"torch": torch})
    report = examine(Path("NEW"))
    assert report.verdict == "data"
    assert choose(report, None)[0].tensors == described(WEIGHTS)


def test_the_allow_list_is_within_torchs_own_t03() -> None:
    assert ALLOWED - set(BESIDE) <= set(_get_allowed_globals())
    assert {name for _, name in permitted_globals()} >= set(BESIDE)


def test_safetensors_are_described_as_the_library_does(files: dict[str, Path]) -> None:
    from safetensors.torch import load_file

    (entry,) = examine(files["safetensors"]).entries
    assert entry.tensors == described(load_file(files["safetensors"]))


def test_an_onnx_file_says_what_goes_in_and_out(files: dict[str, Path]) -> None:
    facts = examine(files["onnx-beside"]).facts
    assert facts["inputs"] == "numbers float32[batch, 4]"
    assert facts["outputs"] == "scores float32[batch, 3]"
    assert facts["opset"] == "ai.onnx 17"
    assert facts["external data"] == "tiny.data"


def test_a_mar_says_what_its_manifest_says(files: dict[str, Path]) -> None:
    facts = examine(files["mar"]).facts
    assert (facts["model"], facts["handler"], facts["weights"]) == ("tiny", "handler.py", "model.pth")


# Damage


@pytest.mark.parametrize("name", ["training", "training-legacy", "safetensors", "onnx", "mar", "module"])
def test_a_file_that_was_cut_short_is_refused_wherever_it_was_cut(
    name: str, files: dict[str, Path], tmp_path: Path
) -> None:
    whole = files[name].read_bytes()
    for length in range(0, len(whole), max(1, len(whole) // 120)):
        report = report_of(tmp_path, whole[:length])
        assert report.verdict == "refused", length
        assert report.remedy


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(sorted(BY_NAME)), changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4)
)
def test_a_changed_file_never_raises_and_what_passes_as_data_still_loads(
    name: str, changes: list[tuple[float, int]], files: dict[str, Path], tmp_path: Path
) -> None:
    contents = bytearray(files[name].read_bytes())
    for place, byte in changes:
        contents[int(place * (len(contents) - 1))] ^= byte
    file = tmp_path / "changed"
    file.write_bytes(contents)
    report = examine(file)
    assert (report.verdict == "data") == (report.reason == "")
    if report.verdict == "data" and report.format in ("torch-zip", "torch-legacy"):
        weights = loaded(file)
        for entry in report.entries:
            assert entry.tensors == described(at(weights, entry.where))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    contents=st.binary(max_size=200),
    head=st.sampled_from([b"", b"PK\3\4", b"\x80\2", b"\x10\0\0\0\0\0\0\0{", b"\x08\7"]),
)
def test_noise_never_raises(contents: bytes, head: bytes, tmp_path: Path) -> None:
    assert report_of(tmp_path, head + contents).verdict == "refused"


# What people give by mistake


@pytest.mark.parametrize(
    ("contents", "words", "remedy"),
    [
        (b"", "is empty", "download"),
        (b"\n<!DOCTYPE html><html><title>Sign in</title>", "web page", "browser"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1\n", "Git LFS", "git lfs pull"),
        (b"\x1f\x8b\x08\0\0\0", "gzip", "unpack"),
        (b"\x89HDF\r\n\x1a\n\0\0", "Keras", "ONNX"),
        (b"\x1c\0\0\0TFL3\0\0", "TensorFlow Lite", "ONNX"),
        (b"\x93NUMPY\1\0", "numpy", "torch.save"),
        (b"GGUF\3\0\0\0", "GGUF", "llama.cpp"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "picture", "predict"),
        (b'{"metadata": {"total_size": 1}, "weight_map": {}}', "several files", "join"),
        (b"import torch\n\nclass Net(torch.nn.Module):\n", "Python source", "--allow-code"),
        (b"epoch 1: loss 0.3\n", "text", "torch.save"),
        (b"\0" * 5000, "zeros", "download"),
        (b"\xfe\xed\xfa\xce" * 8, "no format", "torch.save"),
        (forge.tar(**{"model.pth": b"x"}), "tar archive", "unpack"),
        (forge.pickle(forge.call("sklearn.svm._classes", "SVC")), "sklearn.svm._classes.SVC", "state_dict"),
        (forge.zipped(forge.Member("weights.npy", b"x")), "numpy (.npz)", "torch.save"),
        (forge.zipped(forge.Member("best/model.pth", b"x")), "zip archive with a model", "unpack"),
        (forge.zipped(forge.Member("config.json", b"{}"), forge.Member("model.weights.h5", b"x")), "Keras", "ONNX"),
        (forge.saved(forge.pickle(b"}"))[:-30], "cut short", "download"),
    ],
)  # fmt: skip
def test_a_file_of_another_kind_is_guessed(contents: bytes, words: str, remedy: str, tmp_path: Path) -> None:
    report = report_of(tmp_path, contents)
    assert (report.format, report.verdict) == ("unknown", "refused")
    assert words in report.reason
    assert remedy in report.remedy


def test_what_cannot_be_opened_is_a_source_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        examine(tmp_path / "nothing")
    with pytest.raises(SourceError, match="not a regular file"):
        examine(Path("/dev/null"))


# Folders


def test_a_bundle_and_a_repository_of_bundles(default_bundle: Bundle, tmp_path: Path) -> None:
    report = examine(default_bundle.path)
    assert (report.format, report.verdict) == ("bundle", "data")
    assert report.facts["architecture"] == "efficientnet_lite0"
    (tmp_path / "cats" / "1").mkdir(parents=True)
    (tmp_path / "cats" / "1" / "manifest.json").write_text("{}")
    report = examine(tmp_path)
    assert (report.format, report.facts["models"]) == ("repository", "cats")


def test_models_as_files_are_a_repository_too(tmp_path: Path) -> None:
    (tmp_path / "cats.pth").write_bytes(b"x")
    report = examine(tmp_path)
    assert (report.format, report.facts["models"]) == ("repository", "cats")


def test_a_bundle_with_code_is_code(default_bundle: Bundle, tmp_path: Path) -> None:
    manifest = json.loads((default_bundle.path / "manifest.json").read_bytes())
    manifest["pipeline"] = {"kind": "python", "code": {"name": "Double", "file": "code/double.py"}}
    manifest["members"]["code/double.py"] = "0" * 64
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    report = examine(tmp_path)
    assert (report.format, report.verdict) == ("bundle", "code")
    assert "Double" in report.reason


@pytest.mark.parametrize("manifest", ["{", "[]", '{"format": 99}', '{"format": 1}', "[" * 5000])
def test_a_damaged_bundle_is_refused(manifest: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(manifest)
    assert examine(tmp_path).verdict == "refused"


@pytest.mark.parametrize(
    ("member", "words", "remedy"),
    [
        ("pytorch_model.bin.index.json", "several files", "join them"),
        ("saved_model.pb", "TensorFlow", "ONNX"),
        ("data.pkl", "unpacked", "as it was downloaded"),
        ("notes.txt", "without a bundle", "flambeau build"),
    ],
)
def test_another_folder_is_guessed(member: str, words: str, remedy: str, tmp_path: Path) -> None:
    (tmp_path / member).write_bytes(b"x")
    report = examine(tmp_path)
    assert (report.format, report.verdict) == ("unknown", "refused")
    assert words in report.reason
    assert remedy in report.remedy


# Which weights


def entry(*where: str, keys: tuple[str, ...] = ("fc.weight", "fc.bias"), size: int = 4) -> TensorMapping:
    return TensorMapping(where, {key: TensorInfo("float32", (size,)) for key in keys})


def of(*entries: TensorMapping) -> Report:
    return Report("torch-zip", "data", 1, entries=entries)


@pytest.mark.parametrize(
    ("entries", "taken", "note"),
    [
        ([entry()], "", None),
        ([entry("state_dict")], "state_dict", None),
        ([entry("anything")], "anything", None),
        ([entry(keys=("epoch",)), entry("state_dict")], "state_dict", None),
        ([entry("model"), entry("model_ema")], "model_ema", "--weights-key model takes the plain ones"),
        ([entry("state_dict"), entry("state_dict_ema", keys=("module.fc.weight", "module.fc.bias", "n_averaged"))],
         "state_dict_ema", "--weights-key state_dict takes"),
        ([entry("model"), entry("model_ema", "module")], "model_ema.module", "--weights-key model takes"),
        ([entry("params"), entry("params_ema")], "params_ema", "(EMA)"),
        ([entry("model"), entry("ema", keys=("decay", "other"))], "model", "ema (2 tensors)"),
        ([entry("teacher"), entry("student", size=9)], "student", "teacher (2 tensors)"),
        ([entry("discriminator", size=99), entry("generator")], "generator", "discriminator (2 tensors)"),
        ([entry("checkpoint", "net"), entry("checkpoint", "extra", size=99)], "checkpoint.net", "checkpoint.extra"),
    ],
)  # fmt: skip
def test_the_weights_are_chosen_and_the_choice_is_told(
    entries: list[TensorMapping], taken: str, note: str | None
) -> None:
    found, told = choose(of(*entries), None)
    assert ".".join(found.where) == taken
    assert (told is None) == (note is None)
    assert (note or "") in (told or "")


def test_the_user_chooses_by_key() -> None:
    report = of(entry("model"), entry("model_ema", "module"))
    assert choose(report, "model_ema.module")[0].where == ("model_ema", "module")
    assert choose(of(entry(), entry("model")), ".")[0].where == ()
    with pytest.raises(SourceError, match=r"--weights-key nothing .* model \(2 tensors\), model_ema.module"):
        choose(report, "nothing")


def test_an_optimiser_is_no_weights(files: dict[str, Path]) -> None:
    report = examine(files["training"])
    assert [found.where for found in report.entries] == [(), ("model_state_dict",)]
    with pytest.raises(SourceError, match="a dict of state, param_groups"):
        choose(examine(files["optimiser-alone"]), None)


@pytest.mark.parametrize(
    ("beside", "expected"),
    [
        ({"classes": ["a", "b", "c"]}, ("a", "b", "c")),
        ({"class_names": ("a", "b")}, ("a", "b")),
        ({"class_to_idx": {"b": 1, "a": 0}}, ("a", "b")),
        ({"idx_to_class": {1: "b", 0: "a"}}, ("a", "b")),
        ({"idx_to_class": {"1": "b", "0": "a"}}, ("a", "b")),
        ({"hyper_parameters": {"labels": ["a", "b"]}}, ("a", "b")),
        ({"classes": ["a", "b"], "class_to_idx": {"b": 1, "a": 0}}, ("a", "b")),
        ({"classes": ["a", "b", "c"], "categories": ["d", "e"]}, ("a", "b", "c")),
        ({"classes": ["b", "a"], "class_to_idx": {"b": 1, "a": 0}}, None),
        ({"names": ["loss", "accuracy"], "class_to_idx": {"b": 1, "a": 0}}, None),
        ({"class_to_idx": {"a": 0, "b": 2}}, None),
        ({"class_to_idx": {"a": 0, "b": 0}}, None),
        ({"classes": [1, 2]}, None),
        ({"classes": 1000}, None),
        ({}, None),
    ],
)
def test_class_names_beside_the_weights_are_found(
    beside: dict[str, Any], expected: tuple[str, ...] | None, tmp_path: Path
) -> None:
    saved({"state_dict": WEIGHTS, **beside})(tmp_path / "file")
    assert examine(tmp_path / "file").classes == expected


def test_numbers_of_numpy_do_not_make_a_checkpoint_code(tmp_path: Path) -> None:
    kinds = (np.bool_, np.int8, np.uint16, np.int64, np.float16, np.float32, np.float64, np.complex64)
    saved({"model": WEIGHTS, **{kind.__name__: kind(1) for kind in kinds}})(tmp_path / "file")
    assert examine(tmp_path / "file").verdict == "data"
    assert loaded(tmp_path / "file")["float16"] == 1


def test_a_name_out_of_a_file_is_fit_to_be_printed(tmp_path: Path) -> None:
    body = forge.call("evil\x1b[31m\x07", "x" * 500)
    report = report_of(tmp_path, forge.saved(forge.pickle(body)))
    assert report.reason.isprintable()
    assert all(found.name.isprintable() and len(found.name) <= 120 for found in report.globals)


def test_a_report_goes_through_json(files: dict[str, Path]) -> None:
    for path in files.values():
        report = examine(path)
        assert msgspec.json.decode(msgspec.json.encode(report), type=Report) == report


def test_text_that_begins_like_a_pickle_is_text(tmp_path: Path) -> None:
    """ "c" is the operation that names a global: a list of labels given for the weights is still text."""
    (tmp_path / "names.txt").write_text("cat\ndog\nhorse\n")
    report = examine(tmp_path / "names.txt")
    assert report.verdict == "refused"
    assert "is text" in report.reason
