"""Batches of similar length, in an order that depends on the seed alone.

Sequences are shuffled, cut into pools of fifty batches, sorted by length inside a pool, batched, and the batches shuffled
again: nearly no padding, nearly random order. Every configuration sees the same batches in the same order for the same seed.
Where hardware likes few different shapes, a batch is padded on to the next ``multiple`` of tokens (:func:`widths`).
Position in training is (epoch, batch), so an interrupted run continues where it was without replaying anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from bitrank_data.examples import Kind
from bitrank_data.tokens import TokenSplit

Batch = dict[str, np.ndarray]
_POOL = 50
IGNORED = -100  # the label that PyTorch's cross entropy skips


def training_order(lengths_N: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Indices of each batch of one epoch; every sequence once, the last short batch included."""
    random = np.random.default_rng([seed, epoch])
    shuffled = random.permutation(len(lengths_N))
    batches: list[np.ndarray] = []
    for start in range(0, len(shuffled), batch_size * _POOL):
        pool = shuffled[start : start + batch_size * _POOL]
        ordered = pool[np.argsort(lengths_N[pool], kind="stable")]
        batches += [ordered[i : i + batch_size] for i in range(0, len(ordered), batch_size)]
    return [batches[i] for i in random.permutation(len(batches))]


def training_parts(
    lengths_N: np.ndarray, batch_size: int, seed: int, epoch: int, parts: int
) -> list[np.ndarray]:  # fmt: skip
    """The batches of :func:`training_order`, each cut into exactly ``parts`` of nearly equal size.

    Which sequences make a batch does not depend on the number of parts: gradients that are accumulated over
    the parts are those of the whole batch. An epoch's last batch may have fewer sequences than parts; those
    left over are empty.
    """
    return [
        part
        for batch in training_order(lengths_N, batch_size, seed, epoch)
        for part in np.array_split(batch, parts)
    ]  # fmt: skip


def training_batches(
    split: TokenSplit, kind: Kind, pad_id: int, batch_size: int, seed: int, skip: int = 0, multiple: int = 1,
    parts: int = 1,
) -> Iterator[Batch]:  # fmt: skip
    """Endless batches, epoch after epoch, each in ``parts`` (:func:`training_parts`).

    The first ``skip`` parts are passed over without being made.
    """
    per_epoch, width = -(-len(split) // batch_size) * parts, widths(split, multiple)
    epoch, offset = divmod(skip, per_epoch)
    while True:
        for indices in training_parts(split.lengths_N, batch_size, seed, epoch, parts)[offset:]:
            yield collate(split, indices, kind, pad_id, width)
        epoch, offset = epoch + 1, 0


def evaluation_batches(
    split: TokenSplit, kind: Kind, pad_id: int, batch_tokens: int, multiple: int = 1
) -> Iterator[Batch]:
    """Every sequence once, longest first, batches of at most ``batch_tokens`` padded tokens (one sequence at least)."""
    order = np.argsort(-split.lengths_N, kind="stable")
    lengths_N, width, start = split.lengths_N, widths(split, multiple), 0
    while start < len(order):
        size = max(1, batch_tokens // width(int(lengths_N[order[start]])))
        yield collate(split, order[start : start + size], kind, pad_id, width)
        start += size


def spread_windows(split: TokenSplit, per_document: int) -> TokenSplit:
    """At most ``per_document`` windows of each document, evenly spaced from its first to its last full window."""
    places: dict[str, list[int]] = {}
    for index, document in enumerate(split.ids):
        places.setdefault(document, []).append(index)
    chosen: list[int] = []
    for indices in places.values():
        picks = np.linspace(0, max(0, len(indices) - 2), min(per_document, len(indices))).round().astype(int)
        chosen += [indices[pick] for pick in sorted(set(picks.tolist()))]
    return split.select(np.asarray(chosen))


def widths(split: TokenSplit, multiple: int) -> Callable[[int], int]:
    """How wide a batch of ``split`` is, by the length of its longest sequence: the next ``multiple``, but no more than the longest of all,
    since a model may have no positions beyond it."""
    if multiple == 1:
        return lambda length: length
    longest = int(split.lengths_N.max(initial=0))
    return lambda length: min(-(-length // multiple) * multiple, longest)


def collate(
    split: TokenSplit, indices: np.ndarray, kind: Kind, pad_id: int, width: Callable[[int], int]
) -> Batch:
    """Arrays of one batch: ``input_ids`` and ``attention_mask`` (B, T), ``labels`` (B,) or (B, T), ``index`` (B,); T by ``width``."""
    sequences = [split.sequence(int(i)) for i in indices]
    shape = len(sequences), width(max((len(sequence) for sequence in sequences), default=1))
    ids_BT, mask_BT = np.full(shape, pad_id, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    for row, sequence in enumerate(sequences):
        ids_BT[row, : len(sequence)] = sequence
        mask_BT[row, : len(sequence)] = 1
    labels = split.labels_N[indices] if kind == "classification" else np.where(mask_BT == 1, ids_BT, IGNORED)
    return {"input_ids": ids_BT, "attention_mask": mask_BT, "labels": labels, "index": np.asarray(indices)}
