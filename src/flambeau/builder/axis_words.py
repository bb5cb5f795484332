"""The words of free axes: which lengths of a network's inputs have to be alike.

The user writes them into `--input-shape`, and an ONNX graph has its own (`dim_param`). The exporter gives two axes one
word where the network needs one length of both. Imports onnx only where a graph is read.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from flambeau.items import FREE, TensorSpec
from flambeau.settings.source import SourceOptions


def asked_for(specs: Sequence[TensorSpec], options: SourceOptions) -> tuple[TensorSpec, ...]:
    """The specs with the words of `--input-shape`."""
    asked = options.input_shape
    shapes = asked if isinstance(asked, Mapping) else {specs[0].name: asked or ()}
    return tuple(
        _worded(spec, [size if isinstance(size, str) else "" for size in shapes.get(spec.name, ())]) for spec in specs
    )


def settled(specs: Sequence[TensorSpec], graph: Path | None) -> tuple[TensorSpec, ...]:
    """The specs with the words that count: those at two places or more, by the user or by the graph.

    Where both tell one axis a word, the two words are one, and the user's is kept.
    """
    of_graph = {} if graph is None else _words_in(graph)
    own = {spec.name: spec.words or ("",) * len(spec.shape) for spec in specs}
    theirs = {spec.name: of_graph.get(spec.name) or ("",) * len(spec.shape) for spec in specs}
    pairs = {spec.name: list(zip(own[spec.name], theirs[spec.name], strict=True)) for spec in specs}
    same = _Same()
    for our, their in (pair for several in pairs.values() for pair in several if all(pair)):
        same.join(f"own {our}", f"graph {their}")
    names = {same.of(f"own {word}"): word for spec in reversed(specs) for word in reversed(own[spec.name]) if word}
    found: dict[str, list[str]] = {}
    for name, several in pairs.items():
        roots = [same.of(f"own {our}" if our else f"graph {their}") if our or their else "" for our, their in several]
        found[name] = [names.get(root, root.removeprefix("graph ")) for root in roots]
    counts = Counter(word for words in found.values() for word in words)
    return tuple(_worded(spec, [word if counts[word] > 1 else "" for word in found[spec.name]]) for spec in specs)


class _Same:
    """Words that mean one length."""

    def __init__(self) -> None:
        self._next: dict[str, str] = {}

    def of(self, word: str) -> str:
        """The word that stands for all that mean the same."""
        while word in self._next:
            word = self._next[word]
        return word

    def join(self, one: str, other: str) -> None:
        one, other = self.of(one), self.of(other)
        if one != other:
            self._next[other] = one


def _words_in(graph: Path) -> dict[str, tuple[str, ...]]:
    """The words of a graph's inputs without those of the rows, which are free of all others."""
    import onnx

    inputs = onnx.load(graph, load_external_data=False).graph.input
    sizes = {each.name: [size.dim_param for size in each.type.tensor_type.shape.dim] for each in inputs}
    rows = {words[0] for words in sizes.values() if words}
    return {name: tuple("" if word in rows else word for word in words[1:]) for name, words in sizes.items()}


def _worded(spec: TensorSpec, words: Sequence[str]) -> TensorSpec:
    """The spec with the words of its free axes."""
    kept = tuple(word if size == FREE else "" for word, size in zip(words, spec.shape, strict=False))
    return msgspec.structs.replace(spec, words=kept if any(kept) else ())
