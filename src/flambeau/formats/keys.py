"""What may be a key of a dict while a pickle is played through.

Whoever chooses the keys chooses their hashes too: all multiples of 2**61 - 1 have the hash 0, and a dict of 100,000 of
them takes minutes to fill. So whole numbers that large are refused, and of tuples there may be some hundred.
"""

from typing import Any

from flambeau.formats.budget import Budget
from flambeau.formats.refusals import Refusal, plain
from flambeau.formats.values import Foreign, Mapping, Named, Plain

_LONGEST = 2048
_NUMBERS_BELOW = 2**61 - 1
"""Whole numbers up to this one are their own hash."""
_OF_A_TUPLE = 100_000
"""Units of the budget: a thousand tuples with one hash are compared half a million times."""
_PLAIN_PARTS = (str, int, float, bool, bytes, type(None))


def charge(value: Any, budget: Budget) -> None:
    """Take what one look at a key costs. Raises `Refusal` when the budget has none left."""
    budget.charge_for(value)
    if type(value) is tuple:
        budget.charge(_OF_A_TUPLE)


def key(value: Any) -> Any:
    """The value, if it may be a key. Raises `Refusal` for what no dict of weights has as one."""
    of = type(value)
    if of is str or of is bytes:
        if len(value) > _LONGEST:
            raise Refusal(f"holds a dict with a key of {len(value):,} characters, which weights never have")
        return value
    if of is int and not -_NUMBERS_BELOW < value < _NUMBERS_BELOW:
        raise Refusal("holds a dict with a number of more than 60 bits as a key, which weights never have")
    # nested tuples are no keys: torch hashes them, and hashing recurses without a limit
    if of is tuple and all(type(part) in _PLAIN_PARTS for part in value):
        return value
    if isinstance(value, Named | Foreign) or of in (int, float, bool, type(None)):
        return value
    if isinstance(value, Plain) and value.name in ("numpy scalar", "torch.device", "complex"):
        return value
    raise Refusal(f"holds a dict with {kind(value)} as a key, which weights never have")


def kind(value: Any) -> str:
    """What a value is, for a sentence."""
    if isinstance(value, Named | Plain | Foreign):
        return plain(value.name)
    return "an OrderedDict" if isinstance(value, Mapping) else f"a {type(value).__name__.lower()}"
