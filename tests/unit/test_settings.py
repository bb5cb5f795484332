"""Settings from flags, the environment and flambeau.toml: which wins, and what is said about those that are wrong."""

import json
import subprocess
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from flambeau.cli import cli
from flambeau.errors import ConfigError
from flambeau.settings.loading import FILE
from tests.support.page_models import DOUBLE
from tests.support.server import FLAMBEAU, Serve, run_flambeau


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, and nothing set beside what a test sets."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FLAMBEAU_LOG_FORMAT", raising=False)
    return tmp_path


def in_force(*arguments: str, **environment: str) -> dict[str, tuple[object, str]]:
    """What `flambeau config` says: by name the value and the place it was given at."""
    done = CliRunner().invoke(cli, ["config", "--json", *arguments], env=environment, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return {name: (each["value"], each["from"]) for name, each in json.loads(done.output)["settings"].items()}


def refusal(*arguments: str, **environment: str) -> str:
    """The sentence that `flambeau config` ends with."""
    with pytest.raises(ConfigError) as caught:
        CliRunner().invoke(cli, ["config", *arguments], env=environment, catch_exceptions=False)
    assert caught.value.exit_code == 78
    return str(caught.value)


def test_a_flag_wins_over_the_environment_over_the_file_over_the_default(folder: Path) -> None:
    (folder / FILE).write_text("# ours\nmax_items = 1\ndeadline = 2\nport = 3\n")
    found = in_force("--max-items", "30", FLAMBEAU_MAX_ITEMS="20", FLAMBEAU_DEADLINE="20")
    assert found["max_items"] == (30, "--max-items")
    assert found["deadline"] == (20.0, "FLAMBEAU_DEADLINE")
    assert found["port"] == (3, "flambeau.toml, line 4")
    assert found["threads"] == (None, "default")


def test_auto_goes_before_a_number_of_a_weaker_place(folder: Path) -> None:
    (folder / FILE).write_text("replicas = 3\nthreads = 'auto'\n")
    assert in_force()["replicas"] == (3, "flambeau.toml, line 1")
    assert in_force()["threads"] == (None, "flambeau.toml, line 2")
    assert in_force("--replicas", "auto")["replicas"] == (None, "--replicas")
    assert in_force(FLAMBEAU_REPLICAS="auto")["replicas"] == (None, "FLAMBEAU_REPLICAS")
    assert "is not a whole number, 1 or more, nor auto" in refusal("--replicas", "some")


@pytest.mark.parametrize(
    ("toml", "name", "value"),
    [
        ("fast-decode = true", "fast_decode", True),
        ('engine = "eager"', "engine", "eager"),
        ("drain_timeout = 5", "drain_timeout", 5.0),
        ("input_shape = [3, 32, 32]", "input_shape", [3, 32, 32]),
        ("input_shape = 4", "input_shape", [4]),
        ("mean = [0.5, 0.5, 0.5]", "mean", [0.5, 0.5, 0.5]),
        ("std = 0.5", "std", [0.5]),
        ("arch_args = {hidden = 9}", "arch_args", {"hidden": 9}),
        ("port = 1\n[arch_args]\nhidden = 9", "arch_args", {"hidden": 9}),
    ],
)
def test_every_kind_of_value_can_stand_in_the_file(folder: Path, toml: str, name: str, value: object) -> None:
    (folder / FILE).write_text(toml)
    found, place = in_force()[name]
    assert found == value
    assert place.startswith(FILE)


@pytest.mark.parametrize(
    ("toml", "sentence"),
    [
        ("\nmax_itms = 1", "flambeau.toml, line 2: there is no setting max_itms: write max_items, or take it away"),
        ("zebra = 1", "there is no setting zebra: take it away; `flambeau config` shows"),
        ("[serve]\nport = 1", "flambeau.toml, line 1: [serve] is a table: settings stand at the top of the file"),
        ('port = "8080"', 'line 1: port = "8080" is not a whole number, 0 to 65535'),
        ("port = true", "port = true is not a whole number"),
        ("port = 70000", "port = 70000 is too large: the most is 65535"),
        ("threshold = nan", "threshold = nan is not a number, 0 to 1"),
        ("fast_decode = 1", "fast_decode = 1 is neither true nor false"),
        ('engine = "abacus"', 'engine = "abacus" is not one of auto, onnxruntime'),
        ("name = 7", "name = 7 is not text: write it in quotes"),
        ("mean = [1, 2]", "mean = [1, 2] is not three numbers such as [0.485, 0.456, 0.406]"),
        ('input_shape = "3,32,32"', "is not a shape such as 4 or [3, 32, 32]"),
        ("arch_args = 3", "arch_args = 3 is not a table such as {num_classes = 10}"),
        ("max_items = 1\nmax-items = 2", "line 2: max-items stands twice"),
        ('token = "abc"', "token is a secret and does not belong in this file: set FLAMBEAU_TOKEN"),
        ("port = ", "flambeau.toml is not TOML: Invalid value (at end of document)"),
    ],
)
def test_what_is_wrong_in_the_file_is_told_with_its_line(folder: Path, toml: str, sentence: str) -> None:
    (folder / FILE).write_text(toml)
    told = refusal()
    assert sentence in told
    assert "abc" not in told.split()


@pytest.mark.parametrize(
    ("variable", "text", "sentence"),
    [
        ("FLAMBEAU_PORT", "x", "FLAMBEAU_PORT=x is not a whole number, 0 to 65535"),
        ("FLAMBEAU_PORT", "70000", "FLAMBEAU_PORT=70000 is too large"),
        ("FLAMBEAU_FAST_DECODE", "maybe", "FLAMBEAU_FAST_DECODE=maybe is neither true nor false"),
        ("FLAMBEAU_MAX_BATCHSIZE", "8", "no variable FLAMBEAU_MAX_BATCHSIZE: write FLAMBEAU_MAX_BATCH_SIZE"),
        ("FLAMBEAU_ZEBRA", "", "there is no variable FLAMBEAU_ZEBRA: take it away"),
        ("FLAMBEAU_CONFIG", "absent.toml", "absent.toml cannot be read (No such file or directory)"),
        ("FLAMBEAU_MEAN", "1,2", "FLAMBEAU_MEAN=1,2 is not three numbers such as 0.485,0.456,0.406"),
    ],
)
def test_what_is_wrong_in_the_environment_is_told_with_its_variable(
    folder: Path, variable: str, text: str, sentence: str
) -> None:
    assert sentence in refusal(**{variable: text})


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--port", "x"], "--port x is not a whole number, 0 to 65535"),
        (["--port", "70000"], "--port 70000 is too large"),
        (["--engine", "abacus"], "--engine abacus is not one of"),
        (["--arch-args", "[1]"], "--arch-args [1] is not a JSON object"),
        (["--input-shape", "3,0"], "--input-shape 3,0 is not a shape such as 4 or 3,32,32"),
    ],
)
def test_what_is_wrong_on_the_command_line_is_told_with_its_flag(
    folder: Path, arguments: list[str], sentence: str
) -> None:
    assert sentence in refusal(*arguments)


def test_what_kubernetes_sets_for_a_service_of_our_name_is_no_setting(folder: Path) -> None:
    found = in_force(
        FLAMBEAU_PORT="tcp://10.0.0.7:80",
        FLAMBEAU_SERVICE_HOST="10.0.0.7",
        FLAMBEAU_SERVICE_PORT_HTTP="80",
        FLAMBEAU_PORT_80_TCP_ADDR="10.0.0.7",
        FLAMBEAU_CANARY_SERVICE_HOST="10.0.0.8",
        FLAMBEAU_CANARY_PORT="tcp://10.0.0.8:80",
    )
    assert found["port"] == (5000, "default")


def test_an_empty_variable_counts_as_not_set(folder: Path) -> None:
    (folder / FILE).write_text("max_items = 7")
    assert in_force(FLAMBEAU_MAX_ITEMS="")["max_items"] == (7, "flambeau.toml, line 1")


def test_paths_are_relative_to_the_file_and_names_stay_names(folder: Path) -> None:
    other = folder / "other"
    other.mkdir()
    (other / "model.pth").touch()
    (folder / "names.txt").write_text("not this one")
    (other / "mine.toml").write_text(
        'source = "model.pth"\narch = "net.py:Net"\nlabels = "names.txt"\nsamples = "/golden"\nweights = "w.pth"'
    )
    found = {name: value for name, (value, _) in in_force("--config", "other/mine.toml").items()}
    assert found["source"] == "other/model.pth"
    assert found["arch"] == "other/net.py:Net"
    assert found["labels"] == "other/names.txt"
    assert found["weights"] == "other/w.pth"
    assert found["samples"] == "/golden"
    (other / "mine.toml").write_text('source = "resnet18"\nlabels = "imagenet"\narch = "package.module:Class"')
    found = {name: value for name, (value, _) in in_force(FLAMBEAU_CONFIG="other/mine.toml").items()}
    assert (found["source"], found["labels"], found["arch"]) == ("resnet18", "imagenet", "package.module:Class")


def test_another_source_comes_without_what_the_file_says_of_its_own(folder: Path) -> None:
    (folder / FILE).write_text('source = "mine.pth"\nlabels = "names.txt"\nmax_items = 7')
    for found in (in_force("resnet18"), in_force(FLAMBEAU_SOURCE="resnet18")):
        assert found["source"][0] == "resnet18"
        assert found["labels"] == (None, "default")
        assert found["max_items"][0] == 7
    assert in_force("mine.pth")["labels"][0] == "names.txt"
    assert in_force("resnet18", "--labels", "imagenet")["labels"] == ("imagenet", "--labels")


def test_the_file_that_is_printed_to_start_from_says_the_same(folder: Path) -> None:
    arguments = ("--max-items", "7", "--arch-args", '{"hidden": 9}', "--mean", "0.5", "--labels", 'a "b".txt')
    printed = CliRunner().invoke(cli, ["config", "--toml", *arguments]).output
    assert tomllib.loads(printed).keys() == {"max_items", "arch_args", "mean", "labels"}
    before = in_force(*arguments)
    (folder / FILE).write_text(printed)
    assert {name: value for name, (value, _) in in_force().items()} == {
        name: value for name, (value, _) in before.items()
    }


def test_secrets_are_never_shown(folder: Path) -> None:
    """T-10."""
    for form in ([], ["--json"], ["--toml"]):
        done = CliRunner().invoke(cli, ["config", *form], env={"FLAMBEAU_TOKEN": "s3cr3t", "FLAMBEAU_CACHE": "/here"})
        assert done.exit_code == 0
        assert "s3cr3t" not in done.output
        assert ("FLAMBEAU_TOKEN" in done.output) == (form != ["--toml"])


@pytest.mark.parametrize("name", ["allow_code", "insecure_no_auth"])
def test_a_file_that_nobody_named_gives_no_permission(folder: Path, name: str) -> None:
    """T-01, T-02: it may have come in one folder with the model."""
    (folder / FILE).write_text(f"{name} = true")
    flag = "--" + name.replace("_", "-")
    assert refusal() == (
        f"flambeau.toml, line 1: {name} is a permission, which a file that nobody named cannot give: "
        f"add {flag}, or name the file with --config flambeau.toml"
    )
    assert in_force("--config", FILE)[name] == (True, "flambeau.toml, line 1")
    assert in_force(FLAMBEAU_CONFIG=FILE)[name][0] is True
    (folder / FILE).write_text(f"{name} = false")
    assert in_force(flag)[name] == (True, flag)


def test_serve_reads_the_file_where_it_is_started(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "double.py").write_text(DOUBLE)
    (tmp_path / FILE).write_text('source = "double.py:Double"\nmax_json_depth = 2\n')
    with serve("--allow-code", cwd=tmp_path) as server:
        assert server.post(json={"input": 21}).json() == {"output": 42.0}
        assert server.post(json={"input": [[1]]}).json()["code"] == "json_too_deep"
        assert "settings read file=flambeau.toml" in server.log()


def test_a_command_says_it_in_one_line(tmp_path: Path) -> None:
    """F-22."""
    (tmp_path / FILE).write_text("prt = 1")
    done = run_flambeau("serve", cwd=tmp_path)
    assert done.returncode == 78
    assert done.stderr == "flambeau: flambeau.toml, line 1: there is no setting prt: write port, or take it away\n"
    done = subprocess.run([*FLAMBEAU, "predict", "default", "x.png"], capture_output=True, text=True, check=False,
                          env={"FLAMBEAU_THREAD": "1"}, cwd=tmp_path)  # fmt: skip
    assert done.returncode == 78
    assert "write FLAMBEAU_THREADS" in done.stderr


def test_the_help_of_serve_stands_under_headings() -> None:
    shown = CliRunner().invoke(cli, ["serve", "--help"], env={"FLAMBEAU_PORT": "whatever is wrong"}).output
    headings = [line for line in shown.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings[:5] == ["Options:", "Source:", "Images:", "Texts:", "Sound:"]
    assert "flambeau config --toml > flambeau.toml" in shown
    assert max(map(len, shown.splitlines())) <= 110
