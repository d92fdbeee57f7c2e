"""Batches of similar length, in an order that depends on the seed only.

Sequences are shuffled and cut into pools of fifty batches. Each pool is sorted by length and cut into
batches, and all batches are shuffled: little padding in a nearly random order. Every configuration receives
the same batches in the same order for the same seed. For hardware that compiles per shape, widths are rounded
up to a ``multiple`` of tokens (:func:`widths`). The position in training is (epoch, batch), so an interrupted
run resumes without iterating over past batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from bitrank_data.kinds import PaddedBatch, data_kind
from bitrank_data.sequences import TokenSplit, pack

Batch = dict[str, np.ndarray]
_POOL = 50


def training_order(lengths_N: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Indices of each batch of one epoch; every sequence once, with the last, smaller batch."""
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
    """Batches of :func:`training_order`, each split into exactly ``parts`` of nearly equal size.

    The composition of a batch does not depend on the number of parts, so gradients accumulated over the parts
    equal those of the whole batch. The last batch of an epoch may have fewer sequences than parts; the
    remaining parts are empty.
    """
    return [
        part
        for batch in training_order(lengths_N, batch_size, seed, epoch)
        for part in np.array_split(batch, parts)
    ]  # fmt: skip


@dataclass(frozen=True)
class Batching:
    """Composition and padding of training batches.

    A batch has ``batch_size`` sequences, split into ``parts`` (see :func:`training_parts`). Its width is a
    ``multiple`` of tokens, filled with ``pad_id``. ``seed`` determines the order.
    """

    pad_id: int
    batch_size: int
    seed: int
    multiple: int = 1
    parts: int = 1


def training_batches(split: TokenSplit, kind: str, batching: Batching, skip: int = 0) -> Iterator[Batch]:
    """Endless batches, epoch after epoch, each split into its parts.

    The first ``skip`` parts are skipped without being built.
    """
    size, seed, parts = batching.batch_size, batching.seed, batching.parts
    lengths_N = data_kind(kind).lengths(split)
    per_epoch, width = -(-len(split) // size) * parts, widths(lengths_N, batching.multiple)
    epoch, offset = divmod(skip, per_epoch)
    count = 0
    while True:
        for indices in training_parts(lengths_N, size, seed, epoch, parts)[offset:]:
            yield collate(split, indices, kind, batching.pad_id, width)
            count += 1
            if count % _POOL == 0:
                # Every sequence that is read would keep pages of the file in memory, in the end all of it.
                split.release()
        epoch, offset = epoch + 1, 0


def evaluation_batches(
    split: TokenSplit, kind: str, pad_id: int, batch_tokens: int, multiple: int = 1
) -> Iterator[Batch]:
    """Every sequence once, longest first, in batches of at most ``batch_tokens`` padded tokens.

    A batch holds at least one sequence.
    """
    lengths_N = data_kind(kind).lengths(split)
    order = np.argsort(-lengths_N, kind="stable")
    width, start = widths(lengths_N, multiple), 0
    while start < len(order):
        size = max(1, batch_tokens // width(int(lengths_N[order[start]])))
        yield collate(split, order[start : start + size], kind, pad_id, width)
        start += size
    split.release()


def spread_windows(split: TokenSplit, per_document: int) -> TokenSplit:
    """At most ``per_document`` windows of each document, evenly spaced from first to last full one.

    The last window of a document is left out if it is shorter than the others.
    """
    places: dict[str, list[int]] = {}
    for index, document in enumerate(split.ids):
        places.setdefault(document, []).append(index)
    chosen: list[int] = []
    for indices in places.values():
        is_cut = len(indices) > 1 and len(split.sequence(indices[-1])) < len(split.sequence(indices[0]))
        full = len(indices) - is_cut
        picks = np.linspace(0, full - 1, min(per_document, full)).round().astype(int)
        chosen += [indices[pick] for pick in sorted(set(picks.tolist()))]
    return split.select(np.asarray(chosen))


def widths(lengths_N: np.ndarray, multiple: int) -> Callable[[int], int]:
    """Function from the longest length in a batch to the batch's width.

    The width is the next ``multiple``, limited to the longest of a split's ``lengths_N``, since a model may
    have no positions beyond it.
    """
    if multiple == 1:
        return lambda length: length
    longest = int(lengths_N.max(initial=0))
    return lambda length: min(-(-length // multiple) * multiple, longest)


def collate(
    split: TokenSplit, indices: np.ndarray, kind: str, pad_id: int, width: Callable[[int], int]
) -> Batch:
    """Arrays of one batch: ``input_ids`` and ``attention_mask`` (B, T), ``labels``, ``index`` (B,).

    ``labels`` has shape (B,), (B, T), or (B, S) with S ≠ T for a decoder of its own, as the kind decides;
    ``width`` determines T. Pairs of texts have
    ``token_type_ids`` (B, T) too.
    """
    entry = data_kind(kind)
    sequences = [entry.inputs(split, int(i)) for i in indices]
    shape = len(sequences), width(max((len(sequence) for sequence in sequences), default=1))
    ids_BT, mask_BT = np.full(shape, pad_id, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    for row, sequence in enumerate(sequences):
        ids_BT[row, : len(sequence)] = sequence
        mask_BT[row, : len(sequence)] = 1
    labels = entry.labels(PaddedBatch(split, indices, ids_BT, mask_BT))
    batch = {"input_ids": ids_BT, "attention_mask": mask_BT, "labels": labels, "index": np.asarray(indices)}
    if len(split.types):
        types_BT = np.zeros(shape, dtype=np.int64)
        for row, index in enumerate(indices):
            types_BT[row, : len(sequences[row])] = split.types_of(int(index))
        batch["token_type_ids"] = types_BT
    return batch


def full_batch(rows: int, width: int, kind: str) -> Batch:
    """Batch of ``rows`` sequences of exactly ``width`` tokens, without padding: for memory forecasts.

    All ids and labels of tokens are 1, and the class of every sequence is 0. With a decoder of its own, the
    decoder's sequences have their greatest length too.
    """
    labels_N = np.zeros(rows, dtype=np.int64)
    split = pack([data_kind(kind).full(width)] * rows, labels_N, [""] * rows)
    return collate(split, np.arange(rows), kind, pad_id=0, width=lambda length: length)
