"""The documents guard themselves: tables against the code, links against the files, examples by running them.

An example is a fenced block of README.md or docs/*.md marked `console` or `python`. The HTML comment before it says how
it is run; CONTRIBUTING.md has the table of these comments. A block without one fails.
"""

import contextlib
import dataclasses
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
import requests

from conftest import STARTUP_SECONDS, Serve, ServerProcess
from flambeau import errors, table
from flambeau.bundle import Bundle, Manifest
from flambeau.cli.serve import serve as serve_command
from flambeau.config import Settings
from flambeau.metrics import Metrics
from flambeau.orders import SourceOptions
from flambeau.setting import Setting
from flambeau.web.errors import STATUS

ROOT = Path(__file__).parents[1]
EXAMPLE_DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LONG = ("sources.md", "predict.md", "engines.md")  # they build many bundles, or need OpenVINO: `make test-slow`
DOCUMENTS = sorted({*EXAMPLE_DOCUMENTS, *ROOT.glob("*.md")})
RUN_SECONDS = 100
DOCUMENTED_PORT = "5000"
MARKERS = ("run", "served", "double", "serve", "file", "skip")
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
    documented = {name: cells[0] for name, cells in rows.items() if len(name.split()) == 1}
    assert documented == {
        each.name + ("_total" if each.type == "counter" else ""): each.type
        for each in Metrics().registry.collect()
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


@dataclass(frozen=True)
class Block:
    """A fenced block: what is in it, the comment before it, and the `text` block right after it, if any."""

    line: int
    language: str
    text: str
    marker: str
    argument: str
    output: str | None = None


def blocks_of(document: Path) -> list[Block]:
    """The fenced blocks of a document in their order."""
    blocks: list[Block] = []
    fence = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^ *```$", flags=re.DOTALL | re.MULTILINE)
    comment = re.compile(r"<!-- test: (\w+) *(.*?) *-->\s*\Z", flags=re.DOTALL)
    text = document.read_text()
    end = 0
    for found in fence.finditer(text):
        between = text[end : found.start()]
        marked = comment.search(between)
        block = Block(
            line=text.count("\n", 0, found.start()) + 1,
            language=found[2],
            text=textwrap.dedent(found[3]),
            marker=marked[1] if marked else "",
            argument=marked[2] if marked else "",
        )
        if blocks and block.language == "text" and not between.strip():
            blocks[-1] = dataclasses.replace(blocks[-1], output=block.text)
        blocks.append(block)
        end = found.end()
    return blocks


@dataclass(frozen=True)
class Command:
    """A command of a console block, and the lines it is said to print; none if nothing is said."""

    text: str
    output: str


def commands_of(console: str) -> list[Command]:
    """The commands of a console block. A line that ends in a backslash goes on in the next."""
    commands: list[Command] = []
    continues = False
    for line in console.splitlines():
        if line.startswith("$ "):
            commands.append(Command(line[2:], ""))
        else:
            assert commands, f"a console block begins with a command, not with {line!r}"
            last = commands[-1]
            commands[-1] = (
                dataclasses.replace(last, text=f"{last.text}\n{line}")
                if continues
                else dataclasses.replace(last, output=f"{last.output}{line}\n")
            )
        continues = (line.startswith("$ ") or continues) and line.endswith("\\")
    return commands


def matches(expected: str, actual: str) -> bool:
    """Whether the lines are those expected, where `...` stands for any text within a line."""
    pattern = ".*".join(re.escape(part) for part in normal(expected).split("..."))
    return re.fullmatch(pattern, normal(actual)) is not None


def normal(text: str) -> str:
    """Lines without blanks at their ends, and without empty lines around them."""
    return "\n".join(line.rstrip() for line in text.splitlines()).strip()


WEIGHTS = {
    "my.pth": ("resnet18", 3, "fc.bias", 0),
    "findings.pth": ("resnet18", 5, "fc.bias", 1),
    "binary.pth": ("resnet18", 1, "fc.bias", 0),
    "densenet.pth": ("densenet121", 1000, "classifier.bias", 285),
}
"""Files that the documents take as given: the network, its classes, and which of them wins, by its bias."""

MAKE_WEIGHTS = """
import sys
import torch
from flambeau.architectures import torchvision_ops

torchvision_ops.declare_missing()
from torchvision import models

name, classes, bias, winner, path = sys.argv[1:]
torch.manual_seed(0)
weights = models.get_model(name, num_classes=int(classes)).state_dict()
weights[bias][int(winner)] = 100.0
torch.save(weights, path)
"""


class Examples:
    """The examples of one document, in a folder and with a server of their own."""

    def __init__(self, folder: Path, server_of: Callable[[str], str]) -> None:
        self._folder = folder
        self._server_of = server_of
        self._files: dict[str, str] = {}
        self._port = DOCUMENTED_PORT  # as the document writes it
        self._url: str | None = None
        self._server = contextlib.ExitStack()
        beside_python = str(Path(sys.executable).parent)
        self._environment = os.environ | {
            "PATH": os.pathsep.join([beside_python, os.environ.get("PATH", "")]),
            "PYTHONUNBUFFERED": "1",
        }

    def __enter__(self) -> "Examples":
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()

    def take(self, block: Block) -> None:
        """Do what the block's comment says. Raises `AssertionError` when something else comes of it."""
        if block.marker == "skip":
            assert block.argument, "a block is skipped for a reason: <!-- test: skip REASON -->"
        elif block.marker == "file":
            self._files[block.argument] = block.text
            self._write_files(self._url)
        elif block.marker == "serve":
            [command] = commands_of(block.text)
            self._server.close()
            self._url = self._server.enter_context(self._serving(command))
        else:
            url = self._url if block.marker == "run" else self._server_of(block.marker)
            self._write_files(url)
            for command in self._commands(block):
                self._run(command, url)

    def _commands(self, block: Block) -> list[Command]:
        if block.language == "console":
            return commands_of(block.text)
        self._files["example.py"] = block.text
        return [Command("python example.py", block.output or "")]

    def _write_files(self, url: str | None) -> None:
        for name, text in self._files.items():
            (self._folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self._folder / name).write_text(self._addressed(text, url))

    def _addressed(self, text: str, url: str | None) -> str:
        """The text with the address of the server that is meant."""
        if url is None:
            return text
        return re.sub(rf"(127\.0\.0\.1|localhost):{self._port}\b", url.removeprefix("http://").rstrip("/"), text)

    def _run(self, command: Command, url: str | None) -> None:
        self._write_files(url)
        done = subprocess.run(
            self._addressed(command.text, url), shell=True, cwd=self._folder, env=self._environment,
            capture_output=True, text=True, timeout=RUN_SECONDS, check=False,
        )  # fmt: skip
        printed = done.stdout if done.stdout.strip() else done.stderr
        told = f"$ {command.text}\nexit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        if command.output:
            expected = self._addressed(command.output, url)
            assert matches(expected, printed), f"{told}\nis not what the document shows:\n{expected}"
        else:
            assert done.returncode == 0, told

    @contextlib.contextmanager
    def _serving(self, command: Command) -> Iterator[str]:
        """Start a server on a free port. Yields its address when it answers."""
        found = re.search(r"(?:--port[ =]|127\.0\.0\.1:|localhost:)(\d+)", command.text)
        self._port = found[1] if found else DOCUMENTED_PORT
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        self._write_files(url)
        output, log = self._folder / "server.out", self._folder / "server.err"
        with output.open("w") as stdout, log.open("w") as stderr:
            process = subprocess.Popen(
                re.sub(rf"\b{self._port}\b", port, command.text), shell=True, cwd=self._folder, start_new_session=True,
                env=self._environment | {"FLAMBEAU_PORT": port}, stdout=stdout, stderr=stderr,
            )  # fmt: skip
        try:
            expected = self._addressed(command.output, url)
            wait_until(lambda: answers(url), process, lambda: f"$ {command.text}\ndoes not answer: {log.read_text()}")
            wait_until(
                lambda: not expected or matches(expected, output.read_text()), process,
                lambda: f"$ {command.text}\nprinted\n{output.read_text()}\nand not\n{expected}",
            )  # fmt: skip
            yield url
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


def free_port() -> str:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def answers(url: str) -> bool:
    """Whether somebody answers there, whatever the status."""
    try:
        return requests.get(url, timeout=STARTUP_SECONDS).status_code > 0
    except requests.ConnectionError:
        return False


def wait_until(holds: Callable[[], bool], process: "subprocess.Popen[bytes]", told: Callable[[], str]) -> None:
    """Return when it holds; raise when the process has ended or the time is over."""
    deadline = time.monotonic() + STARTUP_SECONDS
    while not holds():
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.05)
        assert process.poll() is None and time.monotonic() < deadline, told()  # noqa: PT018 (one sentence tells both)


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
            arguments = [*map(str, WEIGHTS[name]), str(file)]
            subprocess.run([sys.executable, "-W", "ignore", "-c", MAKE_WEIGHTS, *arguments], check=True)
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


@pytest.mark.timeout(300)  # a document builds several bundles and starts several servers
@pytest.mark.parametrize(
    "document",
    [pytest.param(each, marks=pytest.mark.slow if each.name in LONG else ()) for each in EXAMPLE_DOCUMENTS],
    ids=named,
)
def test_examples_do_what_the_document_says(
    document: Path, tmp_path: Path, cat: bytes, server_of: Callable[[str], str], weights: Callable[[str], Path]
) -> None:
    blocks = [each for each in blocks_of(document) if each.marker]
    text = "".join(each.text for each in blocks if each.marker != "skip")
    if re.search(r"^\$ curl ", text, flags=re.MULTILINE) and not shutil.which("curl"):
        pytest.skip("these examples need curl")
    (tmp_path / "chelsea.png").write_bytes(cat)
    for name in WEIGHTS:
        if name in text:
            (tmp_path / name).hardlink_to(weights(name))
    with Examples(tmp_path, server_of) as examples:
        for block in blocks:
            try:
                examples.take(block)
            except AssertionError as error:
                raise AssertionError(f"{named(document)}, line {block.line}: {error}") from error
