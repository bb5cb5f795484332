"""Repositories and several sources: what is declared, and what is wrong with one model alone."""

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flambeau.checkpoints import repository
from flambeau.errors import ConfigError, SourceError
from flambeau.serving.shadow import Shadow
from flambeau.serving.versions import ServedModel, Traffic, Version
from flambeau.settings.source import SourceOptions
from flambeau.sources.declarations import Declaration, DeclaredModel, declare


def filled(folder: Path, *names: str, **texts: str) -> Path:
    """Files of these names in the folder; `texts` are the contents of a `model.toml` by the folder it stands in."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    for place, text in texts.items():
        (folder / place / "model.toml").write_text(text)
    return folder


def declared(folder: Path) -> dict[str, DeclaredModel]:
    found = declare([str(folder)], SourceOptions())
    assert found is not None
    return {each.name: each for each in found}


def test_every_form_of_a_repository_is_found(tmp_path: Path) -> None:
    filled(
        tmp_path, "cats.pth", "dogs/manifest.json", "digits/2/manifest.json", "digits/10/net.onnx", "birds/birds.pt",
        "notes.txt", ".hidden.pth", "__pycache__/x.pth", "plots/all.png",
    )  # fmt: skip
    found = repository.read(tmp_path)
    assert {name: list(versions) for name, versions in found.items()} == {
        "birds": ["1"], "cats": ["1"], "digits": ["10", "2"], "dogs": ["1"],
    }  # fmt: skip
    assert found["digits"]["10"].source == tmp_path / "digits/10/net.onnx"
    assert found["digits"]["2"].source == tmp_path / "digits/2"


@pytest.mark.parametrize("mark", ["manifest.json", "config.json", "saved_model.pb", "x.index.json", "data.pkl"])
def test_a_folder_that_is_one_model_is_no_repository(mark: str, tmp_path: Path) -> None:
    assert repository.read(filled(tmp_path, "model.safetensors", mark)) == {}


def test_ten_is_newer_than_nine_and_numbers_than_words() -> None:
    assert repository.newest_first(["9", "10", "beta", "1.9", "1.10", "alpha", "2"]) == [
        "10", "9", "2", "1.10", "1.9", "beta", "alpha",
    ]  # fmt: skip


def test_the_newest_version_and_those_with_an_alias_are_loaded_at_the_start(tmp_path: Path) -> None:
    filled(tmp_path, *(f"cats/{n}/cats.pth" for n in (1, 2, 3)), cats='[aliases]\nstable = "1"')
    cats = declared(tmp_path)["cats"]
    assert [each.version for each in cats.versions] == ["3", "2", "1"]
    assert [each.version for each in cats.wanted()] == ["3", "1"]


def test_later_versions_may_lie_in_a_folder_beside_a_flat_file(tmp_path: Path) -> None:
    filled(tmp_path, "cats.pth", "cats/2/cats.pth", "dogs.pth", "dogs/1/dogs.pth")
    cats, dogs = declared(tmp_path)["cats"], declared(tmp_path)["dogs"]
    assert [(each.version, each.source.source, each.fault) for each in cats.versions] == [
        ("2", str(tmp_path / "cats/2/cats.pth"), ""),
        ("1", str(tmp_path / "cats.pth"), ""),
    ]
    [twice] = dogs.versions
    assert "holds several files that may be the model" in twice.fault


def test_a_model_toml_says_what_the_source_is_and_how_it_is_served(tmp_path: Path) -> None:
    filled(tmp_path, "cats/1/cats.pth", "cats/2/cats.pth", "cats/names.txt")
    (tmp_path / "cats/model.toml").write_text(
        'default_version = 1\nlabels = "names.txt"\nreplicas = 3\nthreshold = 0.5'
    )
    (tmp_path / "cats/2/model.toml").write_text("replicas = 1")
    cats = declared(tmp_path)["cats"]
    new, old = cats.versions
    assert cats.default == "1"
    assert old.source.labels == str(tmp_path / "cats/names.txt")
    assert old.source.threshold is None
    assert (old.settings, new.settings) == ({"replicas": 3, "threshold": 0.5}, {"replicas": 1, "threshold": 0.5})


def test_own_code_is_named_in_a_model_toml(tmp_path: Path) -> None:
    filled(tmp_path, "digits/1/digits.py", **{"digits/1": 'source = "digits.py:Digits"'})
    [digits] = declared(tmp_path)["digits"].versions
    assert digits.source.source == str(tmp_path / "digits/1/digits.py:Digits")
    assert not digits.fault


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lables = 3", "there is no setting lables"),
        ("port = 80", "port is a setting of the whole service"),
        ("allow_code = true", "allow_code is a permission"),
        ("[aliases]\nstable = 7", "no version of this model: there are 1"),
        ('[aliases]\n"../x" = 1', "cannot be an alias"),
        ("default_version = 2", "no version of this model"),
        ("replicas = ", "Invalid value"),
    ],
)
def test_what_is_wrong_with_one_model_is_told_of_that_one(text: str, words: str, tmp_path: Path) -> None:
    filled(tmp_path, "cats/1/cats.pth", "dogs.pth", cats=text)
    found = declared(tmp_path)
    [cats], [dogs] = found["cats"].versions, found["dogs"].versions
    assert words in cats.fault
    assert not dogs.fault


def test_what_is_wrong_with_one_version_is_told_of_that_one(tmp_path: Path) -> None:
    filled(tmp_path, "cats/1/cats.pth", "cats/2/cats.pth", **{"cats/1": "replicas = "})
    new, old = declared(tmp_path)["cats"].versions
    assert "Invalid value" in old.fault
    assert not new.fault
    (tmp_path / "cats/1/model.toml").write_text('default_version = "1"')
    _, old = declared(tmp_path)["cats"].versions
    assert "there is no setting default_version" in old.fault


def test_a_folder_that_cannot_be_read_is_the_fault_of_one_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error is put in by hand: whoever runs this as root may read everything."""
    filled(tmp_path, "cats/1/cats.pth", "dogs.pth")
    read = Path.iterdir

    def refused(folder: Path) -> Iterator[Path]:
        if folder == tmp_path / "cats":
            raise PermissionError(errno.EACCES, "Permission denied")
        return read(folder)

    monkeypatch.setattr(Path, "iterdir", refused)
    found = declared(tmp_path)
    assert "cats cannot be read: Permission denied" in found["cats"].versions[0].fault
    assert not found["dogs"].versions[0].fault


def test_another_stamp_when_a_file_changes(tmp_path: Path) -> None:
    filled(tmp_path, "cats.pth")
    [before] = declared(tmp_path)["cats"].versions
    (tmp_path / "cats.pth").write_bytes(b"another")
    [after] = declared(tmp_path)["cats"].versions
    assert before != after


# Which version answers


def served(*versions: str, on_demand: bool = False, **more: Any) -> ServedModel:
    """A model whose versions are not loaded; those that start with `!` cannot be."""
    entries = {}
    for each in versions:
        number = each.strip("!")
        fault = "broken" if each != number else ""
        entries[number] = Version(Declaration("m", number, SourceOptions()), fault=fault)
    return ServedModel("m", entries, on_demand=on_demand, **more)


def test_a_chosen_default_is_replaced_by_nothing() -> None:
    model = served("!3", "2", "1", on_demand=True, pinned="3")
    model.choose()
    assert model.current is None
    assert model.find(None) is model.versions["3"]


def test_on_demand_the_default_is_the_newest_that_may_be_loaded_and_requests_do_not_change_it() -> None:
    model = served("3", "2", "1", on_demand=True)
    model.choose()
    assert model.current == "3"
    model.versions["3"].fault = "broken"
    model.choose(asked=False)
    assert model.current == "2"
    model.versions["3"].fault = ""
    model.choose(asked=False)
    assert model.current == "2"


def test_versions_that_vanish_are_meant_no_more() -> None:
    model = served("3", "2", on_demand=True, pinned="3", traffic=Traffic({"3": 1, "2": 1}), shadow=Shadow("3"))
    model.choose()
    model.redeclare([model.versions["2"].declaration])
    assert (model.pinned, model.traffic, model.shadow, model.current) == (None, None, None, None)
    assert model.find(None) is model.versions["2"]
    model.redeclare([])
    assert model.find(None) is None
    assert model.state == "unloaded"


def test_a_version_goes_before_an_alias_of_its_name() -> None:
    model = served("2", aliases={"3": "2"})
    assert model.find("3") is model.versions["2"]
    model.redeclare([Declaration("m", "3", SourceOptions()), model.versions["2"].declaration])
    assert model.find("3") is model.versions["3"]


def test_of_several_files_one_has_to_be_named(tmp_path: Path) -> None:
    filled(tmp_path, "cats/1/a.pth", "cats/1/b.onnx", "dogs.pth", "dogs.onnx")
    found = declared(tmp_path)
    assert (
        'holds several files that may be the model (a.pth, b.onnx): write source = "FILE"'
        in found["cats"].versions[0].fault
    )
    assert "dogs.onnx, dogs.pth" in found["dogs"].versions[0].fault
    (tmp_path / "cats/model.toml").write_text("")
    (tmp_path / "cats/1/model.toml").write_text('source = "a.pth"')
    [cats] = declared(tmp_path)["cats"].versions
    assert (cats.source.source, cats.fault) == (str(tmp_path / "cats/1/a.pth"), "")


def test_several_sources_have_names(tmp_path: Path) -> None:
    found = declare(["cats=cats.pth", "digits=digits.py:Digits"], SourceOptions(allow_code=True))
    assert found is not None
    assert {each.name: each.versions[0].source.source for each in found} == {
        "cats": "cats.pth", "digits": "digits.py:Digits",
    }  # fmt: skip
    assert all(each.versions[0].source.allow_code for each in found)


def test_one_plain_source_is_none_of_ours(tmp_path: Path) -> None:
    assert declare([], SourceOptions()) is None
    assert declare(["resnet18"], SourceOptions()) is None
    assert declare([str(filled(tmp_path, "a=b.pth") / "a=b.pth")], SourceOptions()) is None
    assert declare([str(filled(tmp_path / "empty", "notes.txt"))], SourceOptions()) is None


def test_sources_that_cannot_be_told_apart_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"dogs\.pth has no name beside the other models: write NAME=dogs\.pth"):
        declare(["cats=cats.pth", "dogs.pth"], SourceOptions())
    with pytest.raises(ConfigError, match="two models are called cats"):
        declare(["cats=a.pth", "cats=b.pth"], SourceOptions())
    with pytest.raises(SourceError, match="--labels has no effect on several models"):
        declare(["cats=a.pth", "dogs=b.pth"], SourceOptions(labels="names.txt"))
