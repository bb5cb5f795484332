"""Networks over texts in a build: whether a network's inputs are token ids, and how texts become those.

A network over whole numbers with a tokenizer is one over texts. What the tokenizer's neighbours say, as
sentence-transformers writes them, is taken: how tokens become one vector, how many there may be, and whether vectors
have length 1. This module imports no torch.
"""

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import msgspec
import numpy as np

from flambeau.builder.filled import Filled, Tell
from flambeau.builder.shapes import InputForm
from flambeau.bundle import storage
from flambeau.bundle.pipeline_config import TextConfig
from flambeau.checkpoints import transformers_config
from flambeau.errors import BundleError, SourceError
from flambeau.items import FREE
from flambeau.pipelines.text import read_tokenizer
from flambeau.settings.source import SourceOptions
from flambeau.sources.request import BuildRequest, beside_tokenizer
from flambeau.types import Tensors, TensorSpec

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_IDS = ("input_ids", "ids", "token_ids", "tokens", "input")
_MASKS = ("attention_mask", "mask", "attn_mask")
_TYPES = ("token_type_ids", "segment_ids", "type_ids")
_USUAL_MOST = 512
_MODULES = ("Transformer", "Pooling", "Normalize")  # of sentence-transformers, that become part of a bundle
_TRIED_WORDS = 1000
_SPARE = 256  # vectors that a table may have more than there are tokens: their number is rounded up
POOLED = {"mean": "the mean of its tokens' vectors", "first": "that of its first token"}
"""How one vector is made of those of all tokens, in words."""

_PADS = ("[PAD]", "<pad>", "<PAD>", "<|padding|>")

SENTENCES = (
    "The quick brown fox jumps over the lazy dog.",
    "A cat sleeps.",
    "This is a wonderful film, and I would gladly see it again with all of my friends.",
    "no",
    "Prices rose by 3.5 % in May, said the bank on Monday, after they had fallen for the fourth month in a row.",
    "What is the capital of France?",
)
"""Texts that a network is tried with, of unlike lengths."""


class _Pooling(msgspec.Struct):
    pooling_mode_cls_token: bool = False
    pooling_mode_mean_tokens: bool = False
    pooling_mode_max_tokens: bool = False
    pooling_mode_mean_sqrt_len_tokens: bool = False
    pooling_mode_weightedmean_tokens: bool = False
    pooling_mode_lasttoken: bool = False


class _SentenceModule(msgspec.Struct):
    type: str = ""


class _Sentences(msgspec.Struct):
    max_seq_length: int | None = None
    do_lower_case: bool = False


class _Prompts(msgspec.Struct):
    prompts: dict[str, str] = {}
    default_prompt_name: str | None = None


def found(
    specs: Sequence[TensorSpec], order: BuildRequest, name: str, *, tell: Tell, limit: int | None = None
) -> TextConfig | None:
    """How texts become the inputs of the network `name`; `None` if it takes no token ids, or has no tokenizer.

    `limit`: the tokens that it has positions for, if that is known. Raises `SourceError` for inputs that no text gives,
    if the user asks for texts.
    """
    if order.tokenizer is None:
        return None
    asked = order.options.tokenizer is not None or order.options.pipeline == "text"
    roles = _roles(specs)
    if roles is None:
        if not asked:
            return None
        listed = ", ".join(f"{spec.name} {spec}" for spec in specs)
        raise SourceError(
            f"{name} takes {listed}, which are not the token ids of a text: those are whole numbers, one row of them "
            f"called {' or '.join(_IDS[:2])}, and perhaps attention_mask and token_type_ids: leave --tokenizer out"
        )
    file = Path(order.tokenizer)
    try:
        tokenizer = read_tokenizer(file.read_bytes())
    except (BundleError, OSError) as error:
        raise SourceError(f"{error}; --pipeline tensor serves {name} over numbers") from None
    ids, mask, types = roles
    [length] = next(spec.shape for spec in specs if spec.name == ids)
    most, told = _most(file, order.options)
    if limit is not None and most > limit:
        if order.options.max_tokens is not None:
            raise SourceError(f"--max-tokens {most:,}, but {name} has positions for {limit:,} tokens: say fewer")
        most, told = limit, "for it has positions for no more"
    if length != FREE:
        most, told = min(most, length), "as its shape says" if length <= most else told
    pad = _pad(file)
    config = TextConfig(
        ids=ids, mask=mask, types=types, most=most, pad=pad or 0, truncate=bool(order.options.truncate),
        threshold=order.options.threshold or 0.0, example=_example(tokenizer, most), lower=_lowers(file),
    )  # fmt: skip
    cut = "longer ones are cut" if config.truncate else "longer ones are refused: --truncate cuts them"
    if length != FREE and mask is None:
        what = "0, for the tokenizer names none" if pad is None else f"{pad:,}"
        tell(f"shorter texts are filled up to {length:,} tokens with the token {what}, which counts like any other")
    if config.lower:
        tell("texts are written in lower case first, as sentence_bert_config.json says")
    tell(f"texts become token ids by {file.name}; at most {most:,} tokens, {told}; {cut}")
    return config


def taken(form: InputForm, order: BuildRequest, name: str, *, tell: Tell, limit: int | None = None) -> InputForm:
    """The same inputs, of texts if a tokenizer makes them. `limit` and raises: as `found`."""
    if form.image is not None and order.options.pipeline == "text":
        raise SourceError(f"--pipeline text, but {name} takes images of {form.inputs[0]}: leave it out")
    if form.image is not None or form.audio is not None:
        return form
    config = found(form.inputs, order, name, tell=tell, limit=limit)
    if config is None:
        return form
    assert order.tokenizer is not None  # without one there is no config
    words = read_tokenizer(Path(order.tokenizer).read_bytes()).get_vocab_size()
    table = max((spec.below for spec in form.inputs if spec.name == config.ids), default=0)
    if 0 < table < words:
        raise SourceError(
            f"{Path(order.tokenizer).name} makes {words:,} token ids, and the table of {name} has {table:,} vectors: "
            "it belongs to another network"
        )
    if table - words > max(_SPARE, words // 10):
        tell(
            f"{Path(order.tokenizer).name} makes {words:,} token ids, and the table of {name} has {table:,} vectors: "
            "it may belong to another network"
        )
    specs = tuple(
        msgspec.structs.replace(spec, below=spec.below or words) if spec.name == config.ids else spec
        for spec in form.inputs
    )
    return dataclasses.replace(form, inputs=specs, text=config, classes=_classes(Path(order.tokenizer)))


def _roles(specs: Sequence[TensorSpec]) -> tuple[str, str | None, str | None] | None:
    """The inputs of ids, mask and types; `None` if they are not those of a text."""
    if any(len(spec.shape) != 1 or np.dtype(spec.dtype).kind not in "iu" for spec in specs):
        return None
    names = [spec.name for spec in specs]
    if len(names) == 1:
        return names[0], None, None
    ids = next((name for name in _IDS if name in names), None)
    mask = next((name for name in _MASKS if name in names), None)
    types = next((name for name in _TYPES if name in names), None)
    if ids is None or len(names) != 1 + (mask is not None) + (types is not None):
        return None
    return ids, mask, types


def _most(tokenizer: Path, options: SourceOptions) -> tuple[int, str]:
    """The most tokens of a text, and what says so, in words."""
    if options.max_tokens is not None:
        return options.max_tokens, "as --max-tokens says"
    said = _read(tokenizer, "sentence_bert_config.json", _Sentences)
    if said is not None and said.max_seq_length:
        return said.max_seq_length, "as sentence_bert_config.json says"
    from tokenizers import Tokenizer

    own = Tokenizer.from_file(str(tokenizer)).truncation
    if own:
        return int(own["max_length"]), f"as {tokenizer.name} says"
    return _USUAL_MOST, "for nothing says how many: --max-tokens does"


def _pad(file: Path) -> int | None:
    """The token that texts are filled up with: that of the tokenizer's own padding, else one of a usual name."""
    from tokenizers import Tokenizer

    made = Tokenizer.from_file(str(file))
    if made.padding:
        return int(made.padding["pad_id"])
    return next((found for each in _PADS if (found := made.token_to_id(each)) is not None), None)


def _lowers(tokenizer: Path) -> bool:
    """Whether texts are written in lower case before the tokenizer sees them."""
    said = _read(tokenizer, "sentence_bert_config.json", _Sentences)
    return said is not None and said.do_lower_case


_Said = TypeVar("_Said")


def _read(tokenizer: Path, name: str, kind: type[_Said]) -> _Said | None:
    """What a file beside the tokenizer says; `None` if there is no such file. Raises `SourceError`."""
    file = tokenizer.parent / name
    if file not in beside_tokenizer(str(tokenizer)):
        return None
    try:
        return msgspec.json.decode(file.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError) as error:
        raise SourceError(
            f"{name} beside {tokenizer.name} cannot be read ({error}): correct it, or remove it"
        ) from None


def _example(tokenizer: "Tokenizer", most: int) -> str:
    """A text with tokens in it, and of at most so many. Raises `SourceError` if there is none."""
    made = False
    for text in (*SENTENCES, *sorted(tokenizer.get_vocab(with_added_tokens=False))[:_TRIED_WORDS]):
        found = tokenizer.encode(text)
        if not all(found.special_tokens_mask):
            if len(found.ids) <= most:
                return str(text)
            made = True
    if made:
        raise SourceError(f"no text that a build tries has {most:,} tokens or fewer: raise --max-tokens")
    raise SourceError("the tokenizer makes no token of any text: it belongs to another network")


def pooling_of(order: BuildRequest, output: str) -> tuple[Literal["mean", "first"], str]:
    """How the vectors of all tokens become one (`mean` or `first`), and what says so.

    Raises `SourceError` where that does not show, and for steps beside it that are not served: without them the vectors
    would be others than those of sentence-transformers.
    """
    _refuse_more_steps(Path(str(order.tokenizer)))
    if order.options.pooling is not None:
        return order.options.pooling, "--pooling"
    said = _read(Path(str(order.tokenizer)), "1_Pooling/config.json", _Pooling)
    if said is not None:
        modes = [name for name, on in msgspec.structs.asdict(said).items() if on]
        if modes == ["pooling_mode_mean_tokens"]:
            return "mean", "1_Pooling/config.json"
        if modes == ["pooling_mode_cls_token"]:
            return "first", "1_Pooling/config.json"
        told = " and ".join(modes) or "no way"
        raise SourceError(f"1_Pooling/config.json says {told}, and mean or first are served: wrap it in a PythonModel")
    raise SourceError(
        f"its output {output} has a vector for every token: say --pooling mean for their mean, or --pooling first for "
        "that of the first token, as it was trained"
    )


def _refuse_more_steps(tokenizer: Path) -> None:
    """Raise `SourceError` if the files beside a tokenizer say more than how tokens become a vector."""
    modules = _read(tokenizer, "modules.json", list[_SentenceModule]) or []
    kinds = [each.type.rpartition(".")[2] for each in modules]
    if more := [kind for kind in kinds if kind not in _MODULES]:
        raise SourceError(
            f"modules.json beside {tokenizer.name} has the step {more[0]}, which is not in the graph, so that its "
            "vectors would be others: export a graph that ends with it, or remove it there if it is not wanted"
        )
    said = _read(tokenizer, "config_sentence_transformers.json", _Prompts)
    if said is not None and said.default_prompt_name and said.prompts.get(said.default_prompt_name):
        raise SourceError(
            f"config_sentence_transformers.json beside {tokenizer.name} puts the prompt {said.default_prompt_name} "
            "before every text, which is not served: set its default_prompt_name to null, and send texts that begin "
            f"with {said.prompts[said.default_prompt_name]!r}"
        )


def _of_network(tokenizer: Path) -> dict[str, Any]:
    """What `config.json` says, as Hugging Face's library writes it; other programs may write others."""
    said = _read(tokenizer, "config.json", object)
    return said if isinstance(said, dict) else {}


def _classes(tokenizer: Path) -> tuple[str, ...] | None:
    """The names of the classes that `config.json` gives."""
    return transformers_config.class_names(_of_network(tokenizer))


def task_of(config: TextConfig, order: BuildRequest, tell: Tell) -> str | None:
    """The task that the user says, else that of pooled vectors, else that of `config.json` beside the tokenizer."""
    if order.options.task or config.pooling:
        return order.options.task or "embedding"
    found = _of_network(Path(str(order.tokenizer))).get("problem_type")
    task = transformers_config.TASKS.get(found) if isinstance(found, str) else None
    if task is not None:
        tell(f"the task is {task}, as config.json beside the tokenizer says: --task says another")
    return task


def fixed_length(tokenizer: Path) -> int | None:
    """The number of tokens that the tokenizer itself fills every text up to; `None` if there is none."""
    from tokenizers import Tokenizer

    padding = Tokenizer.from_file(str(tokenizer)).padding
    return int(padding["length"]) if padding and padding["length"] else None


def normalises(order: BuildRequest) -> bool:
    """Whether `modules.json` beside the tokenizer says that vectors have length 1."""
    said = _read(Path(order.tokenizer), "modules.json", list[_SentenceModule]) if order.tokenizer else None
    return any(each.type.endswith(".Normalize") for each in said or ())


def probe_inputs(filled: Filled, length: int | None) -> Tensors:
    """Rows of the token ids of real texts, each repeated to one length; with a mask all of them count."""
    config = filled.pipeline
    assert isinstance(config, TextConfig)  # the callers checked both
    assert filled.tokenizer is not None
    made = read_tokenizer(filled.tokenizer.read_bytes())
    encoded = [list(made.encode(text).ids) for text in dict.fromkeys((config.example, *SENTENCES))]
    ids = [each for each in encoded if each]
    [spec] = [spec for spec in filled.inputs if spec.name == config.ids]
    [long] = spec.long(length) if length else spec.usual
    rows: dict[str | None, np.ndarray] = {
        config.ids: np.array([(each * long)[:long] for each in ids]),
        config.mask: np.ones((len(ids), long)),
        config.types: np.zeros((len(ids), long)),
    }
    return {each.name: rows[each.name].astype(each.dtype) for each in filled.inputs}


def keep(filled: Filled, folder: Path) -> None:
    """Copy the tokenizer into the bundle, if there is one."""
    if filled.tokenizer is not None:
        shutil.copyfile(filled.tokenizer, folder / storage.TOKENIZER)
