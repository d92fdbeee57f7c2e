"""Prepare an export whose matrices a runtime stores packed: formats, codes, audit and notes.

The audited model is the one in the files: matrices in the formats of the runtime, everything else rounded to
16 bits.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from bitrank.export.audit import Audit
from bitrank.export.padding import separate_padding
from bitrank.export.prepared import Options, Prepared
from bitrank.export.rebuild import Rebuilt
from bitrank.export.requantize import requantize
from bitrank.export.run_texts import run_texts
from bitrank.export.runtime_formats import runtime_formats
from bitrank.export.tensors import FileTensors, Pack, file_tensors, round_to_state

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter in memory: bytes of its tensors, a sentence about them, and the function that writes it."""

    nbytes: int
    note: str
    write: Callable[[Path], None]


@dataclass(frozen=True)
class Layout:
    """The files of a runtime.

    ``runtime`` is a key of :data:`~bitrank.planning.restrictions.RUNTIMES`. ``pack`` makes the tensors of a
    quantized matrix. ``config`` returns the content of ``config.json`` for a model and its tensors.
    ``metadata`` is that of the safetensors file. ``adapter`` makes the files of a model's attached
    adapter.
    """

    runtime: str
    pack: Pack
    config: Callable[[Any, FileTensors], dict[str, Any]]
    metadata: dict[str, str]
    adapter: Callable[[Any], AdapterFiles] | None = None


def prepare_packed(rebuilt: Rebuilt, options: Options, layout: Layout) -> Prepared:
    """The files of ``layout`` with every matrix in its own format, or in the nearest one of the runtime."""
    formats = runtime_formats(rebuilt, layout.runtime)
    stored = requantize(rebuilt, options.quantizer, formats, options.adapter_apart)
    model: Any = stored.model
    round_to_state(model)
    after = rebuilt.evaluate(model)
    padding = separate_padding(model, rebuilt.tokenizer, rebuilt.data.task)
    adapter: AdapterFiles | None = None
    if options.adapter_apart:
        assert layout.adapter is not None  # find_target rejects the option for other targets
        adapter = layout.adapter(model)
        model = model.unload()
    found = file_tensors(model, layout.pack)
    config, texts = layout.config(model, found), run_texts(rebuilt)

    def write(folder: Path) -> None:
        save_file(found.tensors, folder / WEIGHTS, metadata=layout.metadata)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        texts.write(rebuilt.tokenizer, folder)
        if adapter is not None:
            adapter.write(folder)

    adapter_bytes = adapter.nbytes if adapter else 0
    weight_bytes = found.nbytes + adapter_bytes
    audit = Audit(
        options.target,
        rebuilt.metrics,
        after,
        stored.matrices,
        rebuilt.planned_bytes,
        weight_bytes,
        rounded=stored.rounded,
        adapter_bytes=adapter_bytes,
        planned_adapter_bytes=rebuilt.planned_adapter_bytes() if adapter else 0,
    )
    rest = found.nbytes - found.matrix_bytes
    note = (
        f"{found.matrix_bytes:,} bytes in matrices, {rest:,} bytes in other tensors; {WEIGHTS} has a header "
        "with names and shapes besides"
    )
    notes = [note, *([adapter.note] if adapter else []), *([padding] if padding else []), *texts.notes]
    return Prepared(audit, weight_bytes, write, notes)
