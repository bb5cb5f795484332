"""Text to the token ids that a network takes, by the tokenizer that lies in its bundle. It calls nobody.

A text is one item. Networks with an attention mask are given texts filled up to a multiple of a few tokens, so that
more of them share a batch; what is filled up does not count, and an answer never depends on the rest of the batch.
Texts of more tokens than the network takes are refused, unless the bundle says that they are cut.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from flambeau.bundle.pipeline_config import TextConfig
from flambeau.errors import BundleError, InvalidInput
from flambeau.items import FREE
from flambeau.system.machine import pip_install
from flambeau.tasks import Postprocess
from flambeau.types import Payload, Tensors, TensorSpec

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LONGEST = 64 * 1024
"""The most bytes of a text. A tokenizer needs some 5 ms for 1,000 tokens, and nobody else is answered meanwhile."""


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


class TextPipeline:
    """One text to tensors of shape (1, tokens), and its row of the outputs to the task's answer."""

    def __init__(
        self, config: TextConfig, *, postprocess: Postprocess, inputs: Sequence[TensorSpec], tokenizer: bytes
    ) -> None:
        self.postprocess = postprocess
        self._config = config
        self._inputs = {spec.name: spec for spec in inputs}
        self._tokenizer = read_tokenizer(tokenizer)

    def preprocess(self, payload: Payload) -> Tensors:
        """Raises `InvalidInput` for what is no text, has no tokens, or more than the network takes."""
        return self._filled(self.tokens(_text_of(payload)))

    def tokens(self, text: str) -> list[int]:
        """The ids of a text, those that begin and end it included. Raises `InvalidInput`."""
        config = self._config
        text = text.lower() if config.lower else text
        found = self._tokenizer.encode(text)
        if all(found.special_tokens_mask):
            raise InvalidInput("nothing in the text is a token of the model: send some words", code="input_rejected")
        if len(found.ids) <= config.most:
            return list(found.ids)
        if not config.truncate:
            raise InvalidInput(
                f"the text has {len(found.ids):,} tokens, and the model takes {config.most:,}: send it in parts, "
                "or serve the model with --truncate",
                code="input_rejected",
            )
        self._tokenizer.enable_truncation(config.most)
        try:
            return list(self._tokenizer.encode(text).ids)
        finally:
            self._tokenizer.no_truncation()

    def example(self) -> Payload:
        """A short text with tokens in it."""
        return Payload("json", msgspec.json.encode(self._config.example))

    def _filled(self, ids: list[int]) -> Tensors:
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
        rows = {
            config.ids: [*ids, *[config.pad] * (length - len(ids))],
            config.mask: [*[1] * len(ids), *[0] * (length - len(ids))],
            config.types: [0] * length,
        }
        return {name: np.array([rows[name]], each.dtype) for name, each in self._inputs.items()}


def _text_of(payload: Payload) -> str:
    if payload.kind != "json":
        raise InvalidInput(
            'this model takes text, not a file: send JSON like {"input": "a sentence"}',
            code="unsupported_media_type",
        )
    if len(payload.data) > LONGEST:
        raise InvalidInput(
            f"the text has {len(payload.data):,} bytes, and the most is {LONGEST:,}: send it in parts",
            code="body_too_large",
        )
    try:
        found: Any = msgspec.json.decode(payload.data)
    except msgspec.DecodeError:
        raise InvalidInput("the text cannot be read: send JSON in UTF-8", code="invalid_json") from None
    if not isinstance(found, str):
        kinds = {bool: "a truth value", int: "a number", float: "a number", list: "a list", dict: "an object"}
        told = kinds.get(type(found), "null")
        raise InvalidInput(
            f'input must be a text, but it is {told}: send {{"input": "a sentence"}}', code="input_rejected"
        )
    return found
