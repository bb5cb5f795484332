"""Text to the token ids that a network takes, by the tokenizer that lies in its bundle. It calls nobody.

What is cut off, and where texts are filled up, is at the end that the tokenizer itself says: some networks were trained
with texts that end where their row ends.

A text is one item. Networks with an attention mask are given texts filled up to a multiple of a few tokens, so that
more of them share a batch; what is filled up does not count, and an answer never depends on the rest of the batch.
Texts of more tokens than the network takes are refused, unless the bundle says that they are cut.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import numpy as np

from flambeau.bundle.pipeline_config import TextConfig
from flambeau.errors import BundleError, InvalidInput
from flambeau.items import FREE
from flambeau.system.machine import pip_install
from flambeau.tasks import Postprocess
from flambeau.types import Payload, Tensors, TensorSpec

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

LONGEST = 64 * 1024
"""The most bytes of a text. A tokenizer needs some 5 ms for 1,000 tokens, and nobody else is answered meanwhile."""

_LONGEST_JSON = 6 * LONGEST + 2
"""The most bytes of its JSON, in which a character may be written as \\u00e9, as Python's json does."""


def read_tokenizer(text: bytes) -> "Tokenizer":
    """The tokenizer of a `tokenizer.json`, which neither cuts nor fills up. Raises `BundleError`."""
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise BundleError(f"texts need the package tokenizers, which is not installed: {pip_install('text')}") from None
    try:
        found = Tokenizer.from_buffer(text)
    except Exception as error:  # the library raises the base class itself
        raise BundleError(f"tokenizer.json cannot be read: {error}") from None
    found.no_padding()
    found.no_truncation()
    return found


Direction = Literal["left", "right"]


def directions(text: bytes) -> tuple[Direction, Direction]:
    """The ends at which a `tokenizer.json` says that texts are cut, and filled up."""
    said = msgspec.json.decode(text, type=_CutAndFilled)
    cut, filled = (each is not None and each.direction.lower() == "left" for each in (said.truncation, said.padding))
    return "left" if cut else "right", "left" if filled else "right"


class _AtOneEnd(msgspec.Struct):
    direction: str = "right"


class _CutAndFilled(msgspec.Struct):
    truncation: _AtOneEnd | None = None
    padding: _AtOneEnd | None = None


class TextPipeline:
    """One text to tensors of shape (1, tokens), and its row of the outputs to the task's answer."""

    def __init__(
        self, config: TextConfig, *, postprocess: Postprocess, inputs: Sequence[TensorSpec], tokenizer: bytes
    ) -> None:
        self.postprocess = postprocess
        self._config = config
        self._inputs = {spec.name: spec for spec in inputs}
        self._tokenizer = read_tokenizer(tokenizer)
        self._cut_at, self._filled_at = directions(tokenizer)

    def preprocess(self, payload: Payload) -> Tensors:
        """Raises `InvalidInput` for what is no text, has no tokens, or more than the network takes."""
        found = self._encoded(_text_of(payload))
        return self._filled(list(found.ids), list(found.type_ids))

    def _encoded(self, text: str) -> "Encoding":
        """The tokens of a text, those that begin and end it included. Raises `InvalidInput`."""
        config = self._config
        text = text.lower() if config.lower else text
        found = self._tokenizer.encode(text)
        if all(found.special_tokens_mask):
            raise InvalidInput("nothing in the text is a token of the model: send some words", code="input_rejected")
        if len(found.ids) <= config.most:
            return found
        if not config.truncate:
            raise InvalidInput(
                f"the text has {len(found.ids):,} tokens, and the model takes {config.most:,}: send it in parts, "
                "or build the model again with --truncate",
                code="input_rejected",
            )
        self._tokenizer.enable_truncation(config.most, direction=self._cut_at)
        try:
            return self._tokenizer.encode(text)
        finally:
            self._tokenizer.no_truncation()

    def example(self) -> Payload:
        """A short text with tokens in it."""
        return Payload("json", msgspec.json.encode(self._config.example))

    def _filled(self, ids: list[int], types: list[int]) -> Tensors:
        config = self._config
        spec = self._inputs[config.ids]
        length = len(ids)
        if spec.shape[0] != FREE:
            length = spec.shape[0]
        elif config.mask is not None:
            length = min(max(-(-length // config.block) * config.block, spec.least), max(config.most, length))
        if length < spec.least:
            raise InvalidInput(
                f"the text has {length} tokens, and the model needs {spec.least} or more", code="input_rejected"
            )
        missing = length - len(ids)
        at_left = self._filled_at == "left" and spec.shape[0] != FREE  # what only shares batches is filled up behind

        def filled(numbers: list[int], fill: int) -> list[int]:
            more = [fill] * missing
            return [*more, *numbers] if at_left else [*numbers, *more]

        rows = {
            config.ids: filled(ids, config.pad),
            config.mask: filled([1] * len(ids), 0),
            config.types: filled(types, 0),
        }
        return {name: np.array([rows[name]], each.dtype) for name, each in self._inputs.items()}


def _text_of(payload: Payload) -> str:
    if payload.kind != "json":
        raise InvalidInput(
            'this model takes text, not a file: send JSON like {"input": "a sentence"}',
            code="unsupported_media_type",
        )
    if len(payload.data) > _LONGEST_JSON:
        raise _too_long(f"{len(payload.data):,} bytes of JSON")
    try:
        found: Any = msgspec.json.decode(payload.data)
    except msgspec.DecodeError:
        raise InvalidInput("the text cannot be read: send JSON in UTF-8", code="invalid_json") from None
    if not isinstance(found, str):
        kinds = {bool: "a truth value", int: "a number", float: "a number", list: "a list", dict: "an object"}
        told = kinds.get(type(found), "null")
        raise InvalidInput(f'input must be a text, such as "a sentence", but it is {told}', code="input_rejected")
    size = len(found.encode())
    if size > LONGEST:
        raise _too_long(f"{size:,} bytes")
    return found


def _too_long(size: str) -> InvalidInput:
    return InvalidInput(f"the text has {size}, and the most is {LONGEST:,}: send it in parts", code="body_too_large")
