"""Token sequences, cached on disk under a hash of data, tokenizer, length and code.

The kind of the task decides how a text becomes sequences (:mod:`bitrank_data.kinds`).

Special tokens are those that the tokenizer adds (BERT: [CLS] and [SEP]; Llama, Mistral and Gemma: BOS; GPT-2:
none). In language modelling every window begins with the tokens that the tokenizer puts before a text (BOS),
as in pretraining; tokens that it puts after a text (some add EOS) follow the last window of a document. BOS
counts in ``max_length`` and is never predicted. With BOS the first text token of a window is predicted, so
every token of a document is.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from bitrank_data.cache import build_once, cache_dir, code_digest
from bitrank_data.errors import DataError, ExampleError
from bitrank_data.examples import SPLITS, TRAIN, DataReport, Example, Source, Texts
from bitrank_data.kinds import DataKind, data_kind
from bitrank_data.rows import quoted
from bitrank_data.sequences import Cutting, TokenSplit
from bitrank_data.token_files import SplitWriter, read_split
from bitrank_data.unknown_tokens import unknown_id, unknown_note

_BATCH = 1000  # texts that are tokenized at once
_BATCH_CHARACTERS = 2_000_000  # fewer texts if they are long
_PROBES = 1000  # vocabulary tokens tried as a probe text


@dataclass(frozen=True)
class TokenisedTask:
    """All three splits of a task as tokens, with the values that batching needs.

    ``largest_id`` is the largest token id of all splits, None if it was not counted.
    """

    name: str
    kind: str
    classes: tuple[str, ...]
    splits: dict[str, TokenSplit]
    pad_id: int
    report: DataReport = field(default_factory=DataReport)
    largest_id: int | None = None

    def largest_token(self) -> int:
        """Largest token id of all splits; the arrays are read only if it was not counted."""
        if self.largest_id is not None:
            return self.largest_id
        return max(int(split.tokens.max()) for split in self.splits.values() if len(split.tokens))


def tokenise(
    source: Source, tokenizer: Any, max_length: int, special_tokens: bool = True, padding: int | None = None
) -> TokenisedTask:
    """Tokens of ``source`` for a Hugging Face ``tokenizer``, from the cache if present and unchanged.

    ``padding`` is the padding id if the model constrains it; the default is :func:`pad_id`.
    ``special_tokens=False`` omits the tokens that the tokenizer adds to a text. Raises :class:`DataError` if
    a split has no usable sequence, or ``max_length`` does not exceed the number of special tokens.
    """
    before, after = added_tokens(tokenizer) if special_tokens else ((), ())
    cutting = Cutting(max_length, special_tokens, before, after)
    if max_length <= len(before) + len(after):
        added = len(before) + len(after)
        raise DataError(
            f"max_length {max_length} leaves no token for text beside {added} special tokens; "
            f"give {added + 1} or more"
        )
    key = _key(source, tokenizer, cutting)
    place = cache_dir() / "tokens" / f"{source.name}-{key[:16]}"
    build_once(place, lambda folder: _write(folder, source, tokenizer, cutting))
    meta = json.loads((place / "meta.json").read_text())
    splits = {split: read_split(place, split) for split in SPLITS}
    report = DataReport(meta["counts"], tuple(meta["notes"]))
    padding = pad_id(tokenizer) if padding is None else padding
    classes, largest = tuple(meta["classes"]), meta["largest_id"]
    return TokenisedTask(source.name, source.kind, classes, splits, padding, report, largest)


def added_tokens(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids that ``tokenizer`` adds before and after a text, detected on a probe text.

    Raises :class:`DataError` if no probe gives a token, or special tokens change the ids of the text.
    """
    special = set(tokenizer.all_special_tokens)
    vocabulary = list(tokenizer.get_vocab())[:_PROBES]
    candidates = ("a", "the", *(token for token in vocabulary if token not in special))
    for probe in candidates:
        plain = list(tokenizer(probe, add_special_tokens=False)["input_ids"])
        if plain:
            break
    else:
        tried = ", ".join(candidates[:4])
        raise DataError(f"the tokenizer gives no token for {tried}, …; give the model its own tokenizer")
    whole = list(tokenizer(probe)["input_ids"])
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return tuple(whole[:start]), tuple(whole[start + len(plain) :])
    raise DataError(
        f"the tokenizer gives {probe!r} the ids {plain} without special tokens and {whole} with them, so it "
        "is unclear which it adds; give special_tokens=false"
    )


def pad_id(tokenizer: Any, vocabulary: int | None = None) -> int:
    """Padding id: the padding token, end of sequence, unknown token or 0, the first one available.

    It is below ``vocabulary``, the number of ids that the model has. The attention mask excludes padding, so
    any id the model can look up is valid; but a token added to the tokenizer may have no embedding row in the
    model.
    """
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id):
        if candidate is not None and (vocabulary is None or candidate < vocabulary):
            return int(candidate)
    return 0


def _key(source: Source, tokenizer: Any, cutting: Cutting) -> str:
    """Hash of everything that determines the tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = json.loads(backend.to_str()) if backend is not None else tokenizer.get_vocab()
    for passing in ("truncation", "padding"):
        state.pop(passing, None)  # state of the last call, not part of the vocabulary
    vocabulary = json.dumps(state, sort_keys=True)
    # transformers stores these beside the vocabulary and uses them in each call.
    names = ("truncation_side", "split_special_tokens", "chat_template")
    options = [str(getattr(tokenizer, name, None)) for name in names]
    # Chat templates print them, endings are EOS, and masked probing has the mask.
    options.append(json.dumps(getattr(tokenizer, "special_tokens_map", {}), sort_keys=True, default=str))
    how = json.dumps(asdict(cutting), sort_keys=True)
    code = code_digest() + _code_of(data_kind(source.kind))
    text = "\0".join((source.name, source.kind, source.fingerprint(), vocabulary, *options, how, code))
    return hashlib.sha256(text.encode()).hexdigest()


def _code_of(kind: DataKind) -> str:
    """Hash of the file that defines how ``kind`` is encoded, if it is outside this package; else empty."""
    path = Path(inspect.getfile(kind.encode)).resolve()
    if path.is_relative_to(Path(__file__).resolve().parent) or not path.is_file():
        return ""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _write(folder: Path, source: Source, tokenizer: Any, cutting: Cutting) -> None:
    texts, kind = source.load(), data_kind(source.kind)
    lost: Counter[str] = Counter()
    notes: list[str] = []
    left_out: list[str] = []
    largest = 0
    unknown: dict[str, float] = {}
    for split in SPLITS:
        writer = SplitWriter(folder, split, unknown_id(tokenizer))
        # Training needs no texts.
        record = kind.record if split != TRAIN else None
        try:
            counts, without = _tokenise_split(
                texts.splits[split], tokenizer, cutting, replace(kind, record=record), writer
            )
        except ExampleError as error:
            raise texts.named(error) from error
        writer.close()
        left_out += without
        if not writer.sequences:
            reasons = [_left_out_note(without, kind, texts)] if without else []
            reasons += _lost_notes(counts, cutting.max_length)
            reason = f" ({'; '.join(reasons)})" if reasons else ""
            larger = ", or a larger max_length" if counts["texts_cut"] else ""
            needed = f"the task needs more or longer texts{larger}"
            raise DataError(f"{source.name}: no text left for {split}{reason}; {needed}")
        notes += _absent_classes(source.name, split, writer.classes, texts)
        largest = max(largest, writer.largest_id)
        unknown[split] = writer.unknown / writer.tokens
        lost.update(counts)
    notes = [*kind.notes(texts.splits["train"][0], tokenizer), *notes, *unknown_note(unknown, tokenizer)]
    lost_notes = _lost_notes(lost, cutting.max_length)
    if left_out:
        lost_notes += (_left_out_note(left_out, kind, texts),)
    report = texts.report + DataReport(dict(lost), (*notes, *lost_notes))
    meta = {"classes": texts.classes, "counts": report.counts, "notes": report.notes, "largest_id": largest}
    (folder / "meta.json").write_text(json.dumps(meta))


def _absent_classes(name: str, split: str, present: set[int], texts: Texts) -> list[str]:
    """Note on classes that a split lacks.

    Raises :class:`DataError` if training lacks one, which then is not learned; and for validation and test,
    where it is not evaluated, unless the user made the splits.
    """
    absent = sorted(set(range(len(texts.classes))) - present)
    if not absent:
        return []
    missing = quoted(texts.classes[absent[0]])
    if split == "train" or not texts.given_splits:
        remedy = "add texts of this class there"
        raise DataError(f"{name}: the class {missing} has no text in {split}; {remedy}")
    return [f"{len(absent)} of {len(texts.classes)} classes have no text in {split} (such as {missing})"]


def _left_out_note(ids: list[str], kind: DataKind, texts: Texts) -> str:
    return f"{len(ids)} {kind.left_out} (the first: {texts.place(ids[0])})"


def _lost_notes(lost: dict[str, int], max_length: int) -> tuple[str, ...]:
    notes = []
    if cut := lost.get("texts_cut"):
        beyond = f"longer than max_length {max_length} and were cut there"
        notes.append(f"{cut} of {lost['texts']} texts are {beyond}")
    return tuple(notes)


def _tokenise_split(
    examples: Sequence[Example], tokenizer: Any, cutting: Cutting, kind: DataKind, writer: SplitWriter
) -> tuple[dict[str, int], list[str]]:
    """Write the sequences of ``examples``; numbers of texts, and the ids of examples without a sequence.

    The numbers are those of all texts, of truncated ones, and of those without a sequence.
    """
    counts = {"texts": len(examples), "texts_cut": 0}
    without: list[str] = []
    start, size = 0, 1
    while start < len(examples):
        batch = examples[start : start + size]
        encoded, cut = kind.encode(batch, tokenizer, cutting)
        counts["texts_cut"] += cut
        for example, pieces in zip(batch, encoded, strict=True):
            without += [] if pieces else [example.id]
            if pieces and kind.record is not None:
                writer.record(example.id, kind.record(example))
            for piece in pieces:
                writer.add(piece, example.id, example.label)
        start += len(batch)
        longest = max(len(example.text) for example in batch)
        size = max(1, min(_BATCH, size * 4, _BATCH_CHARACTERS // max(longest, 1)))
    return {**counts, "texts_without_tokens": len(without)}, without
