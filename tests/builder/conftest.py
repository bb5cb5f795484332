"""What the tests of builds share."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flambeau.bundle.storage import Bundle
from flambeau.settings.source import SourceOptions
from flambeau.sources import build_cache
from flambeau.sources.request import Note
from tests.support import warm


@pytest.fixture(scope="module")
def warm_builds() -> Iterator[None]:
    """Builds that a test asks for in this process begin with torch imported: see `warm`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_cache, "_run_build_process", warm.run_build)
        yield


@pytest.fixture
def warm_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for one test."""
    monkeypatch.setattr(build_cache, "_run_build_process", warm.run_build)


@pytest.fixture
def notes() -> list[str]:
    """What a build said."""
    return []


@pytest.fixture
def built(notes: list[str]) -> Callable[..., Bundle]:
    """Build, or find, the bundle of a file."""

    def build(source: Path, **options: Any) -> Bundle:
        def hear(event: object) -> None:
            if isinstance(event, Note):
                notes.append(event.text)

        return build_cache.open_source(SourceOptions(source=str(source), **options), progress=hear)

    return build
