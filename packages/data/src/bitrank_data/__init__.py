"""Pinned assets, tasks, an on-disk cache of token sequences, and length-grouped batches, without torch."""

from bitrank_data.assets import ASSETS, Asset, asset_dir
from bitrank_data.assets import present as asset_present
from bitrank_data.batches import (
    Batch,
    Batching,
    evaluation_batches,
    full_batch,
    spread_windows,
    training_batches,
    training_order,
    training_parts,
    widths,
)
from bitrank_data.cache import build_once, cache_dir, damaged, flush, is_built, write_atomically
from bitrank_data.embedded import EMBEDDED
from bitrank_data.errors import DataError
from bitrank_data.examples import (
    DataReport,
    Dialogue,
    Example,
    PairExample,
    Source,
    TargetExample,
    Texts,
    Turn,
)
from bitrank_data.files import FileOptions
from bitrank_data.folders import task_files
from bitrank_data.hub import hub_repository
from bitrank_data.hub_cache import cached_commit, hub_snapshot
from bitrank_data.kinds import (
    CLASSIFICATION,
    DATA_KINDS,
    INSTRUCTION,
    LANGUAGE_MODELLING,
    MASKED_PROBING,
    PROBING,
    QUESTION_ANSWERING,
    SEQUENCE_TO_SEQUENCE,
    DataKind,
    PaddedBatch,
    data_kind,
    encode_pairs,
    encode_texts,
    encode_windows,
    labels_of_completions,
    labels_of_last_tokens,
    labels_of_next_tokens,
    labels_of_sequences,
    labels_of_tokens,
)
from bitrank_data.layouts import Layout, LeftOut, Naming, Refused
from bitrank_data.probing import FactExample, read_fact
from bitrank_data.question_answering import CONTEXT, END, START, QuestionExample, read_question
from bitrank_data.sequences import IGNORED, Cutting, Piece, Rows, TokenSplit
from bitrank_data.squad import exact_match, token_f1
from bitrank_data.tasks import HUB_TASKS, TASKS, is_path, open_task
from bitrank_data.tokens import TokenisedTask, pad_id, tokenise

__version__ = "0.1.0"
__all__ = [
    "ASSETS",
    "CLASSIFICATION",
    "CONTEXT",
    "DATA_KINDS",
    "EMBEDDED",
    "END",
    "HUB_TASKS",
    "IGNORED",
    "INSTRUCTION",
    "LANGUAGE_MODELLING",
    "MASKED_PROBING",
    "PROBING",
    "QUESTION_ANSWERING",
    "SEQUENCE_TO_SEQUENCE",
    "START",
    "TASKS",
    "Asset",
    "Batch",
    "Batching",
    "Cutting",
    "DataError",
    "DataKind",
    "DataReport",
    "Dialogue",
    "Example",
    "FactExample",
    "FileOptions",
    "Layout",
    "LeftOut",
    "Naming",
    "PaddedBatch",
    "PairExample",
    "Piece",
    "QuestionExample",
    "Refused",
    "Rows",
    "Source",
    "TargetExample",
    "Texts",
    "TokenSplit",
    "TokenisedTask",
    "Turn",
    "asset_dir",
    "asset_present",
    "build_once",
    "cache_dir",
    "cached_commit",
    "damaged",
    "data_kind",
    "encode_pairs",
    "encode_texts",
    "encode_windows",
    "evaluation_batches",
    "exact_match",
    "flush",
    "full_batch",
    "hub_repository",
    "hub_snapshot",
    "is_built",
    "is_path",
    "labels_of_completions",
    "labels_of_last_tokens",
    "labels_of_next_tokens",
    "labels_of_sequences",
    "labels_of_tokens",
    "open_task",
    "pad_id",
    "read_fact",
    "read_question",
    "spread_windows",
    "task_files",
    "token_f1",
    "tokenise",
    "training_batches",
    "training_order",
    "training_parts",
    "widths",
    "write_atomically",
]
