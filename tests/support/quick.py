"""Which tests are quick: those that start no process, and no others that take long.

It is told from their code: by the names that a test, its fixtures and the functions of the tests that they call use.
While only quick tests run, one that starts a process after all fails.
"""

import functools
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import ROOT

STARTERS = frozenset(
    ("subprocess", "Popen", "fork", "run_flambeau", "run_with_torch", "run_anew", "open_source", "build_into",
     "ProcessesRunner", "Fleet", "Service", "serve", "create_app", "create_asgi_app", "Client", "chromium",
     "default_bundle", "several_models", "run_build", "loaded", "Server", "reading", "double_py", "getfixturevalue",
     "warm_build", "warm_builds", "_forks", "RayFleet")
)  # fmt: skip
"""What a test names that starts a process, or asks for what another has started."""

LONG = (
    "tests/deploy/", "tests/torchserve/", "test_architectures.py", "test_detection.py", "test_image_limits.py",
    "test_loop.py", "test_features.py",
    "test_every_network_without_a_task_is_named", "test_the_graph_makes_of_them_what_the_exporter_made",
    "test_every_engine_is_given_one_row", "test_no_mutation_does_harm", "test_no_bytes_make_the_form_parser_raise",
    "test_a_function_that_hangs_holds_up_neither", "test_programs_are_recorded_as_eager_code_is",
    "test_a_changed_file_never_raises", "test_a_file_that_was_cut_short_is_refused", "test_fast_decoding",
    "test_kubernetes_own_schemas_find_no_fault",
)  # fmt: skip
"""Tests that start none and take long all the same: files, and tests by name."""

OURS = str(ROOT / "tests") + "/"

_running: list[str] = []


def mark(items: list[pytest.Item]) -> None:
    """Mark the quick ones."""
    for item in items:
        marked = item.get_closest_marker("slow") or item.get_closest_marker("deploy")
        long = marked or any(each in item.nodeid for each in LONG)
        if not long and not _starts(item):
            item.add_marker("quick")


def _forbid(event: str, arguments: tuple[Any, ...]) -> None:
    if _running and event in ("subprocess.Popen", "os.fork", "os.posix_spawn"):
        raise AssertionError(f"{_running[-1]} starts a process: name what starts it in tests/support/quick.py")


def pytest_sessionstart() -> None:
    """From now on, no test may start a process."""
    sys.addaudithook(_forbid)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Know which test runs."""
    _running.append(item.nodeid)
    try:
        return (yield)
    finally:
        _running.pop()


def _starts(item: pytest.Item) -> bool:
    found: set[str] = {*item.fixturenames}  # type: ignore[attr-defined]
    for definitions in item._fixtureinfo.name2fixturedefs.values():  # type: ignore[attr-defined]
        for each in definitions:
            if not each.func.__module__.endswith("conftest"):  # those by their names
                found |= _reached(each.func)
    found |= _reached(item.function)  # type: ignore[attr-defined]
    return bool(found & STARTERS)


@functools.cache
def _reached(function: object) -> set[str]:
    """The names in a function's code, and in that of the functions of ours that it names."""
    found: set[str] = set()
    _collect(function, found, set())
    return found


def _collect(function: object, found: set[str], seen: set[object]) -> None:
    function = getattr(function, "__wrapped__", function)
    if isinstance(function, type):
        for each in vars(function).values():
            _collect(each, found, seen)
    if not isinstance(function, types.FunctionType) or function in seen:
        return
    seen.add(function)
    names = set(_names(function.__code__))
    found |= names
    for name in names:
        value = function.__globals__.get(name)
        if _is_ours(value):
            _collect(value, found, seen)


def _is_ours(value: object) -> bool:
    module = sys.modules.get(getattr(value, "__module__", None) or "")
    return (getattr(module, "__file__", None) or "").startswith(OURS)


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for each in code.co_consts:
        if isinstance(each, types.CodeType):
            yield from _names(each)
