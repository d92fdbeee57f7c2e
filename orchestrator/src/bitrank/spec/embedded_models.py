"""Models from PyPI packages, by the name for ``--model``; :mod:`bitrank.models.locate` downloads them."""

from __future__ import annotations

from bitrank_data import ASSETS, Asset

EMBEDDED_MODELS: dict[str, Asset] = {name: ASSETS[name] for name in ("minilm", "mpnet", "smollm2")}
