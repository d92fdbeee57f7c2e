"""Models that install from PyPI, by the name that ``--model`` takes; :mod:`bitrank.models.locate` fetches
them.
"""

from __future__ import annotations

from bitrank_data import ASSETS, Asset

EMBEDDED_MODELS: dict[str, Asset] = {name: ASSETS[name] for name in ("minilm", "smollm2")}
