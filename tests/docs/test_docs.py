"""The documents guard themselves: tables against the code, links against the files, examples by running them.

An example is a fenced block of README.md or docs/*.md marked `console` or `python`. The HTML comment before it says how
it is run; CONTRIBUTING.md has the table of these comments. A block without one fails.
"""

import contextlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from flambeau import errors
from flambeau.bundle.storage import Bundle, Manifest
from flambeau.cli.serve import serve as serve_command
from flambeau.fronts import totals
from flambeau.protocols.errors import STATUS
from flambeau.settings import table
from flambeau.settings.schema import Setting
from flambeau.settings.service import Settings
from flambeau.settings.source import SourceOptions
from flambeau.telemetry.metrics import Metrics
from tests.support import ROOT
from tests.support.documents import MARKERS, WEIGHTS, Examples, blocks_of, give, make_weights
from tests.support.server import Serve, ServerProcess

EXAMPLE_DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SLOW = (  # they build many bundles, or need OpenVINO
    "sources.md", "predict.md", "engines.md", "embeddings.md", "text.md", "audio.md",
)  # fmt: skip
LONG = ("README.md", "doctor.md")  # they build several
DOCUMENTS = sorted({*EXAMPLE_DOCUMENTS, *ROOT.glob("*.md")})
SHELLS = (
    "bash",
    "sh",
    "shell",
    "pycon",
    "py",
)  # languages that would slip past the test: `console` and `python` are ours


def named(document: Path) -> str:
    """A document's name in the list of tests."""
    return str(document.relative_to(ROOT))


# Tables


def table_rows(document: str) -> dict[str, tuple[str, ...]]:
    """The rows of all tables of a document: the other cells by the first, without backticks."""
    lines = (ROOT / document).read_text().splitlines()
    rows = [
        [cell.strip().replace("`", "") for cell in line.strip().strip("|").split("|")]
        for line in lines
        if line.startswith("|")
    ]
    return {first: tuple(others) for first, *others in rows if set(first) - set("- ")}


def test_every_field_of_a_source_and_of_a_service_is_in_the_table_and_in_the_command() -> None:
    """From the table are made: flags, variables, keys of flambeau.toml, and docs/configuration.md."""
    fields = {*SourceOptions.__struct_fields__, *Settings.__dataclass_fields__}
    assert table.rows().keys() == fields
    assert fields <= {each.name for each in serve_command.params}


def test_the_tables_of_the_configuration_page_are_those_that_the_table_makes() -> None:
    script = ROOT / "scripts/make_configuration_page.py"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("setting", table.rows().values(), ids=lambda each: each.name)
def test_every_setting_says_what_it_means(setting: Setting) -> None:
    assert setting.meaning.endswith(".")
    assert (setting.long or setting.meaning).endswith(".")


def test_every_exit_code_is_documented() -> None:
    rows = table_rows("docs/configuration.md")
    codes = {each.exit_code for each in vars(errors).values() if isinstance(each, type) and hasattr(each, "exit_code")}
    assert {str(code) for code in codes} <= rows.keys()


def test_every_code_is_documented_with_its_status() -> None:
    rows = {
        code: cells[:2] for code, cells in table_rows("docs/protocols.md").items() if re.fullmatch(r"\d{3}", cells[0])
    }
    assert rows == {code: (str(status), "yes" if code in errors.RETRYABLE else "no") for code, status in STATUS.items()}


def test_every_metric_is_documented_with_its_kind() -> None:
    rows = {
        name: cells[:2] for name, cells in table_rows("docs/observability.md").items() if name.startswith("flambeau_")
    }
    own = totals.about_fronts(present=2, of=2, restarts={"hung": 0}, connections={1: 0}, log_dropped=0)
    fronts = text_string_to_metric_families(own.decode())
    documented = {name: cells[0] for name, cells in rows.items() if len(name.split()) == 1}
    assert documented == {
        each.name + ("_total" if each.type == "counter" else ""): each.type
        for each in (*Metrics().registry.collect(), *fronts)
        if each.name.startswith("flambeau_")
    }


def test_the_manifest_of_the_document_is_the_default_models(default_bundle: Bundle) -> None:
    [block] = [each for each in blocks_of(ROOT / "docs/bundle.md") if each.language == "json"]
    shown_manifest = msgspec.json.decode(block.text, type=Manifest)
    real = default_bundle.manifest
    assert shown_manifest.members.keys() == real.members.keys()
    assert (
        msgspec.structs.replace(
            shown_manifest,
            flambeau=real.flambeau,
            tools=real.tools,
            members=real.members,
            agreement=real.agreement,
            trials=real.trials,
            placements=real.placements,
            optimised=real.optimised,
        )
        == real
    )


def test_every_field_of_the_manifest_is_documented() -> None:
    documented = {name for row in table_rows("docs/bundle.md") for name in row.split(", ")}
    assert {each.name for each in msgspec.structs.fields(Manifest)} <= documented


def test_every_make_target_is_documented() -> None:
    rows = {row.removeprefix("make ") for row in table_rows("CONTRIBUTING.md") if row.startswith("make ")}
    [phony] = re.findall(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert rows == {*phony.split()} - {"help"}


def test_every_threat_that_a_test_names_is_defined_p18() -> None:
    folders = ("src", "tests", "chaos")
    texts = [file.read_text() for folder in folders for file in (ROOT / folder).rglob("*.py")]
    named_in_code = {f"T-{found}" for text in texts for found in re.findall(r"(?:\bT-|_t)(\d\d)\b", text)}
    defined = {row for row in table_rows("docs/security.md") if re.fullmatch(r"T-\d\d", row)}
    assert named_in_code <= defined


# Links


def prose(document: Path) -> str:
    """A document without its fenced blocks and code spans."""
    text = re.sub(r"^ *```.*?^ *```$", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"`[^`]*`", "", text)


def anchors(document: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    text = re.sub(r"^ *```.*?^ *```$", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ +(.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
def test_every_relative_link_resolves(document: Path) -> None:
    text = prose(document)
    links = re.findall(r"\]\(([^)\s]+)[^)]*\)", text) + re.findall(r"(?:src|href)=\"([^\"]+)\"", text)
    broken = []
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


# Examples


@pytest.fixture(scope="module")
def server_of(request: pytest.FixtureRequest, serve: Serve, double_py: Path) -> Iterator[Callable[[str], str]]:
    """The address of a server by the comment that asks for it; each is started when it is first asked for."""
    with contextlib.ExitStack() as stack:
        doubles: list[ServerProcess] = []

        def find(marker: str) -> str:
            if marker == "served":
                server: ServerProcess = request.getfixturevalue("cat_server")
                return server.url
            if not doubles:
                doubles.append(stack.enter_context(serve(f"{double_py}:Double", "--allow-code")))
            return doubles[0].url

        yield find


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The path of one of the files that the documents take as given; each is made when it is first asked for."""
    folder = tmp_path_factory.mktemp("weights")

    def make(name: str) -> Path:
        file = folder / name
        if not file.exists():
            make_weights(name, file)
        return file

    return make


@pytest.mark.parametrize("document", EXAMPLE_DOCUMENTS, ids=named)
def test_every_example_says_how_it_is_run(document: Path) -> None:
    examples = [each for each in blocks_of(document) if each.language in ("console", "python", *SHELLS)]
    strange = [
        f"line {each.line}: {each.language} {each.marker or 'without a comment'}"
        for each in examples
        if each.marker not in MARKERS or each.language in SHELLS
    ]
    assert not strange


def cases() -> Iterator[Any]:
    """Each document; one with a list of lines twice, for each line builds a bundle or starts a server."""
    for document in EXAMPLE_DOCUMENTS:
        marks = [pytest.mark.slow] if document.name in SLOW else [pytest.mark.long] if document.name in LONG else []
        lists = any(each.marker == "each" for each in blocks_of(document))
        yield pytest.param(document, not lists, id=named(document), marks=marks)
        if lists:
            yield pytest.param(document, True, id=f"{named(document)}, every line", marks=pytest.mark.slow)


@pytest.mark.timeout(900)  # a document builds several bundles and starts several servers
@pytest.mark.parametrize(("document", "whole"), [*cases()])
def test_examples_do_what_the_document_says(
    document: Path,
    whole: bool,
    tmp_path: Path,
    cat: bytes,
    server_of: Callable[[str], str],
    weights: Callable[[str], Path],
) -> None:
    """Not `whole`: without the servers of a list of lines, which other tests start too (`make test-slow` has them)."""
    blocks = [each for each in blocks_of(document) if each.marker]
    text = "".join(each.text for each in blocks if each.marker != "skip")
    if re.search(r"^\$ curl ", text, flags=re.MULTILINE) and not shutil.which("curl"):
        pytest.skip("these examples need curl")
    (tmp_path / "chelsea.png").write_bytes(cat)
    for name in WEIGHTS:
        if name in text:
            (tmp_path / name).hardlink_to(weights(name))
    if any(each.marker == "each" for each in blocks):
        give(tmp_path, cat, whole=whole)
    with Examples(tmp_path, server_of, whole=whole) as examples:
        for block in blocks:
            try:
                examples.take(block)
            except AssertionError as error:
                raise AssertionError(f"{named(document)}, line {block.line}: {error}") from error
