"""A task as another kind than that of its columns, where its examples fit both.

A prompt and a completion are instruction data for a decoder, and source and target for an encoder-decoder; a
fact is a prompt for a decoder, and a sentence with a mask for an encoder. ``DataKind.reads`` has the pairs of
kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, overload

from bitrank_data.errors import DataError, ExampleError
from bitrank_data.examples import Example, Source, Texts
from bitrank_data.kinds import DATA_KINDS, data_kind


@dataclass(frozen=True)
class ConvertedExamples(Sequence[Example]):
    """``examples``, each converted when it is read, so that large files stay on disk.

    ``named`` makes the error on an example that ``convert`` refuses.
    """

    examples: Sequence[Example]
    convert: Callable[[Any], Example]
    named: Callable[[ExampleError], DataError] = field(compare=False)

    def __len__(self) -> int:
        return len(self.examples)

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self._converted(example) for example in self.examples[index]]
        return self._converted(self.examples[index])

    def _converted(self, example: Example) -> Example:
        try:
            return self.convert(example)
        except ExampleError as error:
            raise self.named(error) from error


def as_kind(source: Source, kind: str) -> Source:
    """``source`` as a task of ``kind``: with the same splits and the examples of that kind.

    Raises :class:`DataError` with the possible kinds if its examples do not fit ``kind``.
    """
    if kind == source.kind:
        return source
    convert = data_kind(kind).reads.get(source.kind)
    if convert is None:
        fitting = [name for name, entry in DATA_KINDS.items() if source.kind in entry.reads]
        possible = " or ".join([source.kind, *fitting])
        raise DataError(f"{source.name} has examples for {possible}, not for {kind}; give --kind {possible}")

    def load() -> Texts:
        texts = source.load()
        splits = {
            split: ConvertedExamples(part, convert, texts.named) for split, part in texts.splits.items()
        }
        return replace(texts, kind=kind, splits=splits)

    return replace(source, kind=kind, fingerprint=lambda: f"{source.fingerprint()} as {kind}", load=load)
