"""A part of the tests may be named, of however many files: what the others hold is then not missed."""

from unittest.mock import Mock

import pytest

from tests.support import second


def collected(*rooms: str) -> list[pytest.Item]:
    """A hundred tests of each room, of files that second.py does not name."""
    names = [f"tests/{room}/test_{number}.py::test_it" for room in rooms for number in range(100)]
    return [Mock(pytest.Item, nodeid=name) for name in names]


def test_two_rooms_are_no_whole() -> None:
    second.mark(collected("serving", "unit"))


def test_of_a_whole_nothing_may_be_missing() -> None:
    with pytest.raises(pytest.UsageError, match="which is no such test"):
        second.mark(collected(*second.WHOLE))
