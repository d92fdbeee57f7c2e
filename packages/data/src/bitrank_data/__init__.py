"""Pinned assets, tasks, an on-disk cache of token sequences, and length-grouped batches, without torch."""

from bitrank_data.assets import ASSETS, Asset, asset_dir
from bitrank_data.assets import present as asset_present
from bitrank_data.batches import (
    Batch,
    Batching,
    evaluation_batches,
    spread_windows,
    training_batches,
    training_order,
    training_parts,
    widths,
)
from bitrank_data.cache import build_once, cache_dir, damaged, flush, write_atomically
from bitrank_data.errors import DataError
from bitrank_data.examples import DataReport, Example, Source, Texts
from bitrank_data.hub import hub_repository
from bitrank_data.hub_cache import cached_commit
from bitrank_data.tasks import HUB_TASKS, TASKS, open_task
from bitrank_data.tokens import TokenisedTask, TokenSplit, pad_id, tokenise

__version__ = "0.1.0"
__all__ = [
    "ASSETS",
    "HUB_TASKS",
    "TASKS",
    "Asset",
    "Batch",
    "Batching",
    "DataError",
    "DataReport",
    "Example",
    "Source",
    "Texts",
    "TokenSplit",
    "TokenisedTask",
    "asset_dir",
    "asset_present",
    "build_once",
    "cache_dir",
    "cached_commit",
    "damaged",
    "evaluation_batches",
    "flush",
    "hub_repository",
    "open_task",
    "pad_id",
    "spread_windows",
    "tokenise",
    "training_batches",
    "training_order",
    "training_parts",
    "widths",
    "write_atomically",
]
