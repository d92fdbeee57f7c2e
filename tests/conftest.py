"""One cache per session, so that tiny models are built once."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings


@pytest.fixture(scope="session", autouse=True)
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    patch = pytest.MonkeyPatch()
    patch.setenv("BITRANK_CACHE", str(folder))
    yield folder
    patch.undo()


# A busy machine exceeds any deadline of an example; no test depends on the time it takes.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
