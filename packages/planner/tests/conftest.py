"""Settings of hypothesis for all tests of the package."""

from __future__ import annotations

from hypothesis import settings

# A busy machine exceeds any deadline of an example; no test depends on the time it takes.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
