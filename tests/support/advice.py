"""Advice, read out of what Flambeau prints, and followed as by a user who does what it says.

A sentence that refuses a file ends in remedies, joined by "or": options, commands, a line of Python, a place in the
documents. Each is taken, and run. A remedy that was followed already is a circle, and a refusal without any a dead end.
"""

import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from flambeau.builder.filled import Filled
from flambeau.doctor.checks import check_source
from flambeau.errors import SetupError
from flambeau.settings.service import Settings
from flambeau.settings.source import SourceOptions
from flambeau.sources import build_cache
from flambeau.sources.request import BuildFailure, BuildRequest, Event, Imported
from tests.support import ROOT, warm
from tests.support.corpus import Kind, Made

DOCS = ROOT / "docs"
_FLAGS = ("--allow-code",)
_OPTION = re.compile(r"(?<![\w-])(--[a-z][a-z-]*[a-z])(?: ('[^']*'|[^\s(),;]+))?")
_WORDS = {
    "if",
    "it",
    "says",
    "say",
    "takes",
    "to",
    "with",
    "which",
    "and",
    "decides",
    "or",
    "for",
    "out",
    "has",
    "give",
}
_CONVERSION = re.compile(r"torch\.save\([^;]*'PATH'[^;]*'NEW'\)")
_BY_HAND = (
    "torch.save(model.state_dict(), ", "#quantised-weights", "unpack it", "name the weights file in it",
    "give the file in it",
)  # fmt: skip
"""What a user does with the program that made the file, or with the file itself: `Made.convert` does it here."""


class DeadEndError(AssertionError):
    """A refusal that names no way out."""


class CircleError(AssertionError):
    """A remedy that leads where somebody has been before."""


@dataclass(frozen=True)
class State:
    """What is about to be served: a file, or a Python model (`file.py:Class`), with options."""

    file: str
    options: tuple[tuple[str, str], ...] = ()

    def words(self) -> list[str]:
        """As a command line has it."""
        return [word for name, value in self.options for word in ((name,) if name in _FLAGS else (name, value))]

    def given(self, options: dict[str, str]) -> "State":
        """With these options as well."""
        return replace(self, options=tuple(sorted({**dict(self.options), **options}.items())))

    def without(self, option: str) -> "State":
        """As it is when that option is left out."""
        return replace(self, options=tuple(each for each in self.options if each[0] != option))


@dataclass(frozen=True)
class Served:
    """A bundle that came of following advice. `made` knows the right answer, and `said` is what the build printed."""

    state: State
    bundle: Path
    made: Made
    said: str


def documented(made: Made) -> State:
    """The file with the options with which the documents say that it is served right."""
    options: dict[str, str] = {}
    words = list(made.options)
    while words:
        name = words.pop(0)
        options[name] = "" if name in _FLAGS else words.pop(0)
    return State(str(made.file)).given(options)


def follow(kind: Kind, made: Made, folder: Path) -> list[Served]:
    """Everything that following every remedy leads to, from the bare file on. Raises what stands above.

    What is documented as right is exported and served as a user has it, unless another kind is the same network; the
    detours are served by PyTorch.
    """
    served: list[Served] = []
    start, right = State(str(made.file)), documented(made)
    whole = () if not kind.exported else (start, right) if kind.expect == "path" else (right,)
    seen: dict[State, str] = {}
    code, inspected = command("inspect", made.file)
    printed = {line[:14].strip(): line[14:] for line in inspected.splitlines() if line[:6].strip()}
    assert (code == 0) == ("serve" in printed), inspected
    waiting: list[tuple[State, Made, tuple[State, ...]]] = [(start, made, ())]
    if "serve" in printed:  # inspect and serve are one judgement: what it prints is tried as it is printed
        waiting.append((start.given(_options(printed["serve"], made)), made, ()))
    if kind.expect != "refused":
        waiting.append((right, made, ()))
    while waiting:
        state, held, way = waiting.pop(0)
        if state in seen:
            continue
        target = folder / f"bundle{len(seen)}"
        code, seen[state] = command("build", state.file, *state.words(), "-o", target, exported=state in whole)
        if code == 0:
            served.append(Served(state, target, held, seen[state]))
            continue
        sentences = [seen[state]]
        if state == start:
            sentences += [printed[word] for word in ("to do",) if word in printed]
            sentences += _doctored(made.file)
        for sentence in dict.fromkeys(sentences):
            following = list(remedies(sentence, state, held, inspected))
            if not following and not (kind.end and kind.end in sentence):
                raise DeadEndError(f"{state}: {sentence}")
            for after, other in following:
                if after == state or after in way:
                    raise CircleError(f"{sentence!r} leads from {state} back to {after}")
                waiting.append((after, other, (*way, state)))
    if "serve" in printed and made.file.suffix != ".pt2" and "--allow-code" not in printed["serve"]:
        assert any(each.state == start.given(_options(printed["serve"], made)) for each in served), seen
    return served


def command(*words: object, exported: bool = True) -> tuple[int, str]:
    """Run a command of Flambeau's in this process: its exit code, and what it printed or why it refused.

    The build runs here too, and not in a process of its own, which would import PyTorch for each of hundreds. Unless
    `exported`, what PyTorch can serve is not exported, which takes most of a build's time.
    """
    from flambeau.builder import export, graphs
    from flambeau.builder.sandbox import reader
    from flambeau.cli import cli

    whole = export.export

    def unless_eager(filled: Filled, *rest: Any) -> None:
        if not exported and filled.architecture is not None:
            raise RuntimeError("this detour is not exported")
        whole(filled, *rest)

    modules = sys.modules.get("corpus_nets")  # somebody's code is imported under the name of its file
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")  # as the build's own process does: its exporter warns of itself
        patch.setattr(build_cache, "_run_build_process", _build_here)
        patch.setattr(reader, "spawn_child", warm.ReadingOfATest)
        patch.setattr(export, "export", unless_eager)
        patch.setattr(
            graphs, "hold", lambda file, given: None
        )  # it limits its process for good, and this one is pytest's
        if modules is not None:
            patch.setitem(sys.modules, "corpus_nets", modules)
        done = CliRunner().invoke(cli, [str(word) for word in words])
    if isinstance(done.exception, SetupError):
        return done.exception.exit_code, str(done.exception)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


def _build_here(
    order: BuildRequest, staging: Path, progress: Callable[[Any], None]
) -> tuple[BuildFailure | None, tuple[str, ...]]:
    """As `flambeau.builder.__main__` does it."""
    from flambeau.builder.__main__ import _open
    from flambeau.builder.steps import build

    def say(event: Event) -> None:
        if not isinstance(event, Imported):
            progress(event)

    opening = None
    try:
        opening = _open(order, staging)
        build(order, staging, opening=opening, say=say)
    except SetupError as error:
        return BuildFailure(type(error).__name__, str(error)), ()
    finally:
        if opening is not None:
            opening.close()
    return None, ()


def remedies(sentence: str, state: State, made: Made, inspected: str) -> Iterator[tuple[State, Made]]:
    """What a sentence says to do, as what would be served then."""
    for document, anchor in re.findall(r"docs/(\w+\.md)#([\w-]+)", sentence):
        assert anchor in _anchors(document), f"{document}#{anchor} is nowhere in the documents"
    if found := re.search(r"(--[\w-]+).*leave (?:it|\1) out", sentence):
        yield state.without(found[1]), made
        return
    for part in re.split(r",? or (?!more)|; else |; and ", sentence):
        if options := _options(part, made):
            yield state.given(options), made
        if found := _CONVERSION.search(part):
            yield _converted(found[0], state), made
        if any(words in part for words in _BY_HAND) and made.convert:
            after = made.convert()
            yield State(str(after.file)), after
        if place := _python_model(part, state, made, inspected):
            around = made.answer if made.around is None else made.around
            yield State(place, (("--allow-code", ""),)), replace(made, answer=around)


def _options(text: str, made: Made) -> dict[str, str]:
    """The options that a remedy names, with what its user would write in the place of `file.py:Class` and such.

    None where it names something that this user has not got.
    """
    if "flambeau serve file.py:Model" in text:
        return {}
    found = {}
    for name, value in _OPTION.findall(text):
        given = value.strip("'").rstrip(".:") if value not in _WORDS else ""
        if given.startswith("file.py:"):
            if not made.own:
                return {}
            given = made.own
        elif name == "--input-shape" and "--pipeline" not in text:
            given = made.shape
        elif name == "--labels":
            continue
        if name in _FLAGS or given:
            found[name] = "" if name in _FLAGS else given
    return found


def _converted(line: str, state: State) -> State:
    """Run the line of Python that a sentence has, where the network was trained: torchvision works there."""
    target = f"{state.file}.converted"
    line = line.replace("'PATH'", repr(state.file)).replace("'NEW'", repr(target))
    code = (
        "from flambeau.architectures import torchvision_compat; torchvision_compat.declare_missing(); "
        f"import torch; {line}"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, cwd=Path(state.file).parent)
    return State(target).given(dict(each for each in state.options if each[0] != "--allow-code"))


def _python_model(part: str, state: State, made: Made, inspected: str) -> str:
    """`file.py:Model`, where `flambeau inspect` prints one, or where the corpus has one as the documents show it.

    Empty where the remedy is another.
    """
    if "PythonModel" not in part and "Python model" not in part:
        return ""
    if "flambeau inspect" in part:
        inspected = command("inspect", state.file)[1]
    _, begins, example = inspected.partition("\n\n")
    if begins and "class Model(flambeau.PythonModel)" in example:
        file = Path(state.file).with_name("printed.py")
        file.write_text(example)
        return f"{file}:Model"
    return made.python


def _doctored(file: Path) -> list[str]:
    """What `flambeau doctor FILE` says of the source that is not fine."""
    found = check_source(SourceOptions(source=str(file)), Settings())
    return [f"{each.found}: {each.advice}" for each in found if each.verdict != "fine"]


def _anchors(document: str) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", (DOCS / document).read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
