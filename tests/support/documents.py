"""The examples of the documents: blocks and the comments before them, and how each is run.

The reader has an environment, in which `source .venv/bin/activate` and `pip install` have been done; or, in a fresh
clone, none at all, and then these are done as they stand there.
"""

import contextlib
import dataclasses
import importlib.metadata
import os
import re
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import requests

from tests.support.server import STARTUP_SECONDS, free_port, started

RUN_SECONDS = 400  # a build on a busy machine
DOCUMENTED_PORT = "5000"
INSTALL_SECONDS = 1800.0
MARKERS = ("run", "served", "double", "serve", "file", "each", "clone", "skip")


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


ENGINE = re.compile(r"(?<= for )(onnxruntime|openvino)(?=, )")
"""Which of those that are installed is taken is measured, and another machine may measure otherwise."""


def matches(expected: str, actual: str) -> bool:
    """Whether the lines are those expected, where `...` stands for any text within a line."""
    expected, actual = ENGINE.sub("engine", expected), ENGINE.sub("engine", actual)
    pattern = ".*".join(re.escape(part) for part in normal(expected).split("..."))
    return re.fullmatch(pattern, normal(actual)) is not None


def normal(text: str) -> str:
    """Lines without blanks at their ends, and without empty lines around them."""
    return "\n".join(line.rstrip() for line in text.splitlines()).strip()


WEIGHTS = {
    "my.pth": ("resnet18", 3, "fc.bias", 0),
    "mine.pth": ("resnet18", 3, "fc.bias", 0),
    "findings.pth": ("resnet18", 5, "fc.bias", 1),
    "binary.pth": ("resnet18", 1, "fc.bias", 0),
    "densenet.pth": ("densenet121", 1000, "classifier.bias", 285),
    "masks.pth": ("lraspp_mobilenet_v3_large", 3, "classifier.low_classifier.bias", 1),
    "boxes.pth": ("ssdlite320_mobilenet_v3_large", 3, "head.classification_head.module_list.0.1.bias", 1),
}
"""Files that the documents take as given: the network, its classes, and which of them wins, by its bias."""

GIVEN = {
    "net.py": "import torch\n\n\nclass Net(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
    "        self.layer = torch.nn.Linear(4, 2)\n\n    def forward(self, rows):\n        return self.layer(rows)\n",
    "names.txt": "cat\ndog\nbird\n",
}
"""What a reader of README has of their own, for the lines that name it."""

MAKE_GIVEN = """
import onnx, torch
from net import Net
from onnx import helper, numpy_helper

torch.save(Net().state_dict(), "net.pth")
weight = numpy_helper.from_array(torch.rand(5, 3).numpy(), "weight")
nodes = [
    helper.make_node("GlobalAveragePool", ["image"], ["pooled"]),
    helper.make_node("Flatten", ["pooled"], ["row"]),
    helper.make_node("Gemm", ["row", "weight"], ["logits"], transB=1),
]
image = helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["N", 3, 224, 224])
logits = helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["N", 5])
graph = helper.make_graph(nodes, "colours", [image], [logits], [weight])
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), "model.onnx")
"""


def make_weights(name: str, file: Path) -> None:
    """Train, as it were, the network of one of `WEIGHTS`."""
    import torch

    from flambeau.architectures import torchvision_compat

    torchvision_compat.declare_missing()
    from torchvision import models

    called, classes, bias, winner = WEIGHTS[name]
    others = [each for module in (models.detection, models.segmentation) for each in models.list_models(module=module)]
    bare = {"weights_backbone": None} if called in others else {}
    with torch.random.fork_rng(), warnings.catch_warnings(action="ignore"):
        torch.manual_seed(0)
        weights = models.get_model(called, num_classes=classes, **bare).state_dict()
    weights[bias][winner] = 100.0
    torch.save(weights, file)


def give(folder: Path, cat: bytes, *, whole: bool = True) -> None:
    """Put the files there that README takes as the reader's own; if `whole`, those of its servers too."""
    for name, text in GIVEN.items():
        (folder / name).write_text(text)
    (folder / "photos").mkdir(exist_ok=True)
    (folder / "photos" / "cat.png").write_bytes(cat)
    if whole:
        subprocess.run([sys.executable, "-W", "ignore", "-c", MAKE_GIVEN], cwd=folder, check=True)


class Examples:
    """The examples of one document, in a folder and with a server of their own."""

    def __init__(
        self, folder: Path, server_of: Callable[[str], str], *, fresh: bool = False, whole: bool = True
    ) -> None:
        """`fresh`: the folder is a clone without an environment, and nothing of ours is known there.

        Not `whole`: the servers among the lines that are each run on their own (`each`) are left out.
        """
        self._folder = folder
        self._whole = whole
        self._server_of = server_of
        self._fresh = fresh
        self._files: dict[str, str] = {}
        self._port = DOCUMENTED_PORT  # as the document writes it
        self._url: str | None = None
        self._made: str | None = None  # the address of `make serve`
        self._server, self._maker = contextlib.ExitStack(), contextlib.ExitStack()
        if fresh:
            kept = ("HOME", "LANG", "PIP_INDEX_URL", "PIP_CONFIG_FILE", "PIP_CACHE_DIR", "PIP_CERT", "SSL_CERT_FILE")
            self._environment = {name: os.environ[name] for name in kept if name in os.environ}
            self._environment["PATH"] = _without_ours(os.environ.get("PATH", os.defpath))
            self._environment["FLAMBEAU_CACHE"] = str(folder.parent / "cache")
        else:
            beside_python = str(Path(sys.executable).parent)
            self._environment = os.environ | {"PATH": os.pathsep.join([beside_python, os.environ.get("PATH", "")])}
        self._environment["PYTHONUNBUFFERED"] = "1"

    def __enter__(self) -> "Examples":
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()
        self._maker.close()

    def take(self, block: Block) -> None:
        """Do what the block's comment says. Raises `AssertionError` when something else comes of it."""
        if block.marker == "skip":
            assert block.argument, "a block is skipped for a reason: <!-- test: skip REASON -->"
        elif block.marker == "file":
            self._files[block.argument] = block.text
            self._write_files(self._here())
        elif block.marker == "serve":
            [command] = commands_of(block.text)
            self._server.close()
            self._url = self._server.enter_context(self._serving(command))
        elif block.marker == "clone":
            [command] = commands_of(block.text)
            if self._fresh and self._made is None:
                self._made = self._maker.enter_context(self._serving(command, within=INSTALL_SECONDS))
                self._port = DOCUMENTED_PORT
        elif block.marker == "each":
            for command in commands_of(block.text):
                if command.text.startswith("flambeau serve "):
                    with self._serving(command) if self._whole else contextlib.nullcontext():
                        pass
                else:
                    self._run(command, None)
        else:
            at = self._here() if block.marker == "run" else (DOCUMENTED_PORT, self._served(block.marker))
            self._write_files(at)
            for command in self._commands(block):
                self._run(command, at)

    def _here(self) -> "Place | None":
        return (self._port, self._url) if self._url else None

    def _served(self, marker: str) -> str:
        return self._made if self._made and marker == "served" else self._server_of(marker)

    def _commands(self, block: Block) -> list[Command]:
        if block.language == "console":
            return commands_of(block.text)
        self._files["example.py"] = block.text
        return [Command("python example.py", block.output or "")]

    def _write_files(self, at: "Place | None") -> None:
        for name, text in self._files.items():
            (self._folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self._folder / name).write_text(self._addressed(text, at))

    def _addressed(self, text: str, at: "Place | None") -> str:
        """The text with the address of the server that is meant."""
        if at is None:
            return text
        port, url = at
        return re.sub(rf"(127\.0\.0\.1|localhost):{port}\b", url.removeprefix("http://").rstrip("/"), text)

    def _run(self, command: Command, at: "Place | None") -> None:
        if not self._fresh and self._have(command.text):
            return
        self._write_files(at)
        told_environment = self._folder / ".environment"
        text = self._addressed(command.text, at)
        if text.startswith("source "):  # what it changes stays for those that follow
            text += f" && env -0 > {told_environment}"
        environment = self._environment | ({"FLAMBEAU_SERVER": at[1]} if at else {})
        done = subprocess.run(
            ["bash", "-c", text], cwd=self._folder, env=environment, capture_output=True, text=True,
            timeout=INSTALL_SECONDS if text.startswith("pip ") else RUN_SECONDS, check=False,
        )  # fmt: skip
        printed = done.stdout if done.stdout.strip() else done.stderr
        told = f"$ {command.text}\nexit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        if command.output:
            expected = self._addressed(command.output, at)
            assert matches(expected, printed), f"{told}\nis not what the document shows:\n{expected}"
        else:
            assert done.returncode == 0, told
        if told_environment.exists():
            pairs = told_environment.read_text().split("\0")
            self._environment = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
            told_environment.unlink()

    def _have(self, text: str) -> bool:
        """Whether the command only gets what this environment has. Fails where it has not."""
        if text.startswith("pip install "):
            for name in text.split()[2:]:
                importlib.metadata.distribution(name)
            return True
        return text == "source .venv/bin/activate"

    @contextlib.contextmanager
    def _serving(self, command: Command, *, within: float = STARTUP_SECONDS) -> Iterator[str]:
        """Start a server on a free port. Yields its address when it answers."""
        found = re.search(r"(?:--port[ =]|127\.0\.0\.1:|localhost:)(\d+)", command.text)
        self._port = found[1] if found else DOCUMENTED_PORT
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        self._write_files((self._port, url))
        with started(
            ["bash", "-c", re.sub(rf"\b{self._port}\b", port, command.text)], self._folder, address=None, group=True,
            cwd=self._folder, environment=self._environment | {"FLAMBEAU_PORT": port},
        ) as server:  # fmt: skip
            expected = self._addressed(command.output, (self._port, url))
            server.wait_until(lambda: answers(url), within=within)
            server.wait_until(lambda: not expected or matches(expected, server.output()))
            yield url


Place = tuple[str, str]
"""A port as the document writes it, and the address that stands for it."""


def _without_ours(path: str) -> str:
    """The PATH without the environment of these tests."""
    ours = str(Path(sys.executable).parent)
    return os.pathsep.join(each for each in path.split(os.pathsep) if each != ours)


def answers(url: str) -> bool:
    """Whether somebody answers there, whatever the status."""
    try:
        return requests.get(url, timeout=STARTUP_SECONDS).status_code > 0
    except requests.ConnectionError:
        return False
