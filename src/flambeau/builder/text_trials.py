"""Try a network over texts with whole texts: its answers to them, and whether they may be filled up to share batches.

`texts` finds out how texts become token ids, `probing` how the network's rows depend on each other. No torch here.
"""

import dataclasses

import msgspec
import numpy as np

from flambeau.answers import agreement
from flambeau.builder import probing, texts
from flambeau.builder.filled import Filled, Tell
from flambeau.bundle.pipeline_config import TextConfig
from flambeau.errors import InvalidInput, SourceError
from flambeau.items import FREE
from flambeau.pipelines.text import TextPipeline, read_tokenizer
from flambeau.types import Answer, Item, Payload, Tensors

_BLOCK = 16  # tokens that a text is filled up to a multiple of, where a mask says which count


def checked(filled: Filled, *, tell: Tell, said: bool) -> tuple[Filled, list[tuple[Tensors, Tensors]]]:
    """The network with texts filled up, if that changes no answer; and texts with the network's own answers to them.

    `said`: the user has said the shape of a row. Raises `SourceError` if the network cannot compute a text, for example
    because it has no such token, and where it may have been trained with texts that its tokenizer filled up.
    """
    config = filled.pipeline
    assert isinstance(config, TextConfig)  # the caller checked
    alone = _computed(filled)
    if config.mask is None and filled.inputs[0].shape[0] == FREE and not said:
        _ask_of_filling(filled, alone)
    if config.mask is None or filled.inputs[0].shape[0] != FREE:
        return filled, alone
    wider = dataclasses.replace(filled, pipeline=msgspec.structs.replace(config, block=_BLOCK))
    found = _computed(wider)
    # Only outputs of one row for a text are compared: those of tokens that do not count may be anything.
    same = all(
        one[name].shape == other[name].shape
        and agreement.measure(one[name], other[name], classes=False).difference < 1e-4
        for (_, one), (_, other) in zip(alone, found, strict=True)
        for name in one
    )
    if same:
        return wider, [*alone, *found]
    tell(
        "texts are not filled up, so that only those of one length share a batch: its answers change with what is added"
    )
    return filled, alone


def _ask_of_filling(filled: Filled, alone: list[tuple[Tensors, Tensors]]) -> None:
    """Raise `SourceError` if the tokenizer fills texts up to one length, and that changes the network's answers."""
    config = filled.pipeline
    assert isinstance(config, TextConfig)  # the callers checked both
    assert filled.tokenizer is not None
    length = texts.fixed_length(filled.tokenizer)
    if length is None:
        return
    spec = msgspec.structs.replace(filled.inputs[0], shape=(length,))
    longer = _computed(dataclasses.replace(filled, inputs=(spec,)))
    before = {name: np.concatenate([outputs[name] for _, outputs in alone]) for name in filled.outputs}
    after = {name: np.concatenate([outputs[name] for _, outputs in longer]) for name in filled.outputs}
    if all(
        before[name].shape == after[name].shape
        and agreement.measure(before[name], after[name], classes=False).difference < 1e-4
        for name in before
    ):
        return
    raise SourceError(
        f"{filled.tokenizer.name} fills every text up to {length} tokens, and the answers of {filled.name} change with "
        f"that: say --input-shape {length} if it was trained with such texts, or --input-shape tokens if with texts of "
        "their own length"
    )


def _computed(filled: Filled) -> list[tuple[Tensors, Tensors]]:
    """Texts as the network's inputs, each with its own outputs."""
    config = filled.pipeline
    assert isinstance(config, TextConfig)  # the callers checked both
    assert filled.tokenizer is not None
    pipeline = TextPipeline(
        config, postprocess=_no_answer, inputs=filled.inputs, tokenizer=filled.tokenizer.read_bytes()
    )
    answered = []
    for text in dict.fromkeys((*texts.SENTENCES, config.example)):
        try:
            rows = pipeline.preprocess(Payload("json", msgspec.json.encode(text)))
        except InvalidInput:  # too long or too short for this network, or without a token
            continue
        answered.append((rows, probing.compute(filled, rows)))
    _refuse_foreign_tokens(filled)
    if not answered:
        raise SourceError(f"{filled.name} can take none of the texts that a build tries: raise --max-tokens")
    return answered


def _refuse_foreign_tokens(filled: Filled) -> None:
    """Raise `SourceError` if the tokenizer has tokens that the network has no vectors for."""
    config = filled.pipeline
    assert isinstance(config, TextConfig)  # the callers checked both
    assert filled.tokenizer is not None
    last = read_tokenizer(filled.tokenizer.read_bytes()).get_vocab_size() - 1
    rows = {name: each[:1] for name, each in texts.probe_inputs(filled, None).items()}
    rows[config.ids] = np.full_like(rows[config.ids], last)
    try:
        probing.compute(filled, rows)
    except SourceError as error:
        raise SourceError(
            f"{filled.tokenizer.name} makes token ids up to {last:,}, which {filled.name} cannot compute "
            f"({error.__cause__ or error}): it belongs to another network"
        ) from error


def _no_answer(outputs: Tensors, item: Item) -> Answer:
    raise AssertionError("no answer is made here")
