"""Export to GGUF: one file with the base, or with the adapter folded into it, or two with the adapter apart.

Matrices keep the codes of formats that a tensor type holds; an adapter that is folded in, and every other
format, need new codes, chosen by a quantizer on calibration data where the type allows. Vectors are F32, as
llama.cpp requires. With the adapter apart each factor is F16; α is one number for the file, and llama.cpp
multiplies by α / rank, so that factor is divided out of B.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from bitrank_quant import QuantWeight, find_quantizer, parse_format, stored_weight, tied_modules
from torch import Tensor

from bitrank.errors import UserError
from bitrank.export.audit import Audit, MatrixAudit, matrix_audit
from bitrank.export.checked_model import CheckedModel
from bitrank.export.gguf.architectures import Architecture, find_architecture
from bitrank.export.gguf.calibrated import choose_codes
from bitrank.export.gguf.stored import Stored
from bitrank.export.gguf.tensor_types import TENSOR_TYPES, type_for
from bitrank.export.gguf.tokenizer import Vocabulary, vocabulary_of, with_texts
from bitrank.export.prepared import Options, Prepared
from bitrank.export.rebuild import Rebuilt
from bitrank.export.run_texts import run_texts
from bitrank.models.architectures import auto_class
from bitrank.models.meta_model import class_of

Array = np.ndarray[Any, Any]
MODEL_FILE, ADAPTER_FILE = "model.gguf", "adapter.gguf"
_VECTORS, _FACTORS, _OTHER = "F32", "F16", "BF16"


def check_gguf(model: CheckedModel) -> None:
    """Raise :class:`UserError` if llama.cpp has no such architecture, or GGUF cannot hold its tokenizer."""
    config = model.config
    found = class_of(auto_class(model.kind), config)
    find_architecture("a model without a class in transformers" if found is None else found.__name__, config)
    tokenizer = model.tokenizer()
    if tokenizer is not None:
        vocabulary_of(tokenizer, config.vocab_size)


@dataclass(frozen=True)
class Factors:
    """Adapter of one matrix as stored: ``down`` (R, I), ``up`` (O, R), and the file's α."""

    down: Stored
    up: Stored
    alpha: float

    def product(self) -> Tensor:
        """The update as llama.cpp computes it, (out, in) in fp32."""
        down_RI = self.down.values()
        return self.alpha / len(down_RI) * (self.up.values() @ down_RI)


def prepare_gguf(rebuilt: Rebuilt, options: Options) -> Prepared:
    """Encode every tensor of the run, and evaluate the values that a program decodes from the file."""
    config = rebuilt.inner.config
    architecture = find_architecture(type(rebuilt.inner).__name__, config)
    texts = run_texts(rebuilt)
    vocabulary = with_texts(vocabulary_of(rebuilt.tokenizer, config.vocab_size), texts)
    widened = _widened_bytes(rebuilt)
    factors = _factors(rebuilt) if options.adapter_apart else {}
    matrices = _encode_matrices(rebuilt, options.adapter_apart)
    exported_OI, audits = _exported(rebuilt, matrices, factors)
    plain = rebuilt.plain_model(exported_OI)
    metrics, rounded, notes = rebuilt.evaluate(plain), {}, []
    if not options.adapter_apart and find_quantizer(options.quantizer).uses_moments:
        chosen = choose_codes(rebuilt, options.quantizer, matrices)
        notes = chosen.notes
        if chosen.matrices:
            del plain
            exported_OI |= _with_tied(rebuilt, {name: one.values() for name, one in chosen.matrices.items()})
            matrices, audits = {**matrices, **chosen.matrices}, {**audits, **chosen.audits}
            plain = rebuilt.plain_model(exported_OI)
            metrics, rounded = rebuilt.evaluate(plain), metrics
    tensors = _tensors(plain, matrices, architecture)
    adapter = _adapter_tensors(factors, architecture, config)
    adapter_bytes = _bytes_of(adapter)
    weight_bytes = _bytes_of(tensors) + adapter_bytes
    audit = Audit(
        options.target,
        rebuilt.metrics,
        metrics,
        audits,
        rebuilt.planned_bytes,
        weight_bytes,
        rounded,
        adapter_bytes,
        rebuilt.planned_adapter_bytes() if factors else 0,
    )
    alpha = next((one.alpha for one in factors.values()), None)
    file = _File(architecture, config, vocabulary, Path(rebuilt.spec.model_source).name)

    def write(folder: Path) -> None:
        file.write_model(folder / MODEL_FILE, tensors)
        if alpha is not None:
            file.write_adapter(folder / ADAPTER_FILE, adapter, alpha)

    notes = [*notes, *_note_on_vectors(widened), *texts.notes]
    return Prepared(audit, weight_bytes + vocabulary.nbytes, write, notes)


def _bytes_of(tensors: Mapping[str, Stored]) -> int:
    return sum(one.rows.nbytes for one in tensors.values())


def _widened_bytes(rebuilt: Rebuilt) -> int:
    """Bytes that vectors take in F32 beyond those of the run, which keeps biases in 16 bits."""
    vectors = [parameter for parameter in rebuilt.inner.parameters() if parameter.ndim == 1]
    return sum(4 * vector.numel() - vector.nbytes for vector in vectors)


def _note_on_vectors(widened: int) -> list[str]:
    if not widened:
        return []
    return [
        f"{widened:,} bytes more than planned: llama.cpp requires {_VECTORS} for vectors, and biases were "
        "planned in 16 bits"
    ]


def exported_weights(rebuilt: Rebuilt, adapter_apart: bool) -> dict[str, Tensor]:
    """The weights of an export by rounding, adapter included, by matrix, (out, in) in fp32."""
    factors = _factors(rebuilt) if adapter_apart else {}
    return _exported(rebuilt, _encode_matrices(rebuilt, adapter_apart), factors)[0]


def _encode_matrices(rebuilt: Rebuilt, adapter_apart: bool) -> dict[str, Stored]:
    """Every planned matrix by name; a weight that modules share is listed once, under its owner."""
    tied = tied_modules(rebuilt.inner)
    owners = [name for name in rebuilt.applied if name not in tied]
    return {name: _encode_matrix(rebuilt, name, adapter_apart) for name in owners}


def _encode_matrix(rebuilt: Rebuilt, name: str, adapter_apart: bool) -> Stored:
    """The matrix ``name`` in the type for its format, from its own codes where no adapter is folded in."""
    stored_OI, adapted_OI = rebuilt.stored_and_adapted(name)
    result_OI = stored_OI if adapter_apart else adapted_OI
    fmt, shape = parse_format(rebuilt.format(name)), (stored_OI.shape[0], stored_OI.shape[1])
    kind = type_for(fmt, shape)
    kept = kind.holds(fmt)
    if not kept or kind.from_codes is None:
        return Stored(kind, kind.encode(result_OI.cpu().numpy()), kept)
    weight = getattr(rebuilt.layer(name), "quantized", None)
    unchanged = adapter_apart or rebuilt.rank(name) == 0
    if unchanged and isinstance(weight, QuantWeight) and str(weight.fmt) == str(fmt):
        return Stored(kind, kind.from_codes(weight.tensors, shape))
    # Rounded in the planned format first, with its own scales, so that the type holds it without change.
    return Stored(kind, kind.from_codes(fmt.encode(result_OI), shape))


def _factors(rebuilt: Rebuilt) -> dict[str, Factors]:
    """The adapter of each matrix, with everything but α / rank folded into its up factor."""
    parts = {name: part for name, part in rebuilt.adapter.parts.items() if len(part.down_RI)}
    if not parts:
        raise UserError("this run has no adapter to keep apart; omit --lora")
    # With one α for all ranks, the default of runs, the folded factor is 1 and B stays as it is.
    alpha = max(part.scale * len(part.down_RI) for part in parts.values())
    found = {}
    for name, part in parts.items():
        folded = part.scale * len(part.down_RI) / alpha
        down, up = Stored.number(_FACTORS, part.down_RI), Stored.number(_FACTORS, folded * part.up_OR)
        found[name] = Factors(down, up, alpha)
    return found


def _exported(
    rebuilt: Rebuilt, matrices: Mapping[str, Stored], factors: Mapping[str, Factors]
) -> tuple[dict[str, Tensor], dict[str, MatrixAudit]]:
    """The weights that a program multiplies by, (out, in) in fp32, and the audit of each matrix."""
    exported_OI, audits = {}, {}
    for name, one in matrices.items():
        stored_OI, adapted_OI = rebuilt.stored_and_adapted(name)
        result_OI = one.values()
        if name in factors:
            result_OI += factors[name].product()
        exported_OI[name] = result_OI = result_OI.to(adapted_OI.device)
        audits[name] = matrix_audit(
            rebuilt, name, one.type.name, (stored_OI, adapted_OI, result_OI), one.kept
        )
    return _with_tied(rebuilt, exported_OI), audits


def _with_tied(rebuilt: Rebuilt, weights_OI: dict[str, Tensor]) -> dict[str, Tensor]:
    """``weights_OI`` and the matrices that share one of them."""
    shared = {
        name: weights_OI[owner]
        for name, owner in tied_modules(rebuilt.inner).items()
        if owner in weights_OI and name in rebuilt.applied
    }
    return {**weights_OI, **shared}


def _tensors(plain: Any, matrices: Mapping[str, Stored], architecture: Architecture) -> dict[str, Stored]:
    """All tensors of the file under GGUF's names; a weight that modules share is there once."""
    found = {}
    for parameter, values in plain.named_parameters():
        module = parameter.rpartition(".")[0]
        stored = matrices.get(module) if parameter.endswith(".weight") else None
        if stored is None and values.ndim == 1:
            stored = Stored.number(_VECTORS, values)
        elif stored is None:
            stored = Stored.number(_OTHER, stored_weight(plain.get_submodule(module)))
        name = architecture.tensor_name(parameter, plain.config)
        found[name] = _in_order(stored, architecture.row_order(plain.config, module))
    return found


def _adapter_tensors(
    factors: Mapping[str, Factors], architecture: Architecture, config: Any
) -> dict[str, Stored]:
    found = {}
    for module, one in factors.items():
        name = architecture.tensor_name(f"{module}.weight", config)
        found[f"{name}.lora_a"] = one.down
        found[f"{name}.lora_b"] = _in_order(one.up, architecture.row_order(config, module))
    return found


def _in_order(stored: Stored, order: Array | None) -> Stored:
    """``stored`` with its rows, or the numbers of a vector, in ``order``."""
    if order is None:
        return stored
    rows = stored.rows.reshape(len(order), -1)[order]
    return Stored(stored.type, rows.reshape(stored.rows.shape), stored.kept)


@dataclass(frozen=True)
class _File:
    """The parts of both files that do not depend on their tensors."""

    architecture: Architecture
    config: Any
    vocabulary: Vocabulary
    name: str

    def write_model(self, path: Path, tensors: Mapping[str, Stored]) -> None:
        writer = self._writer(path, "model")
        self.architecture.describe(writer, self.config)
        writer.add_file_type(_file_type(tensors))
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        self.vocabulary.write(writer)
        _finish(writer, tensors)

    def write_adapter(self, path: Path, tensors: Mapping[str, Stored], alpha: float) -> None:
        writer = self._writer(path, "adapter")
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
        _finish(writer, tensors)

    def _writer(self, path: Path, kind: str) -> gguf.GGUFWriter:
        logging.getLogger("gguf").setLevel(logging.WARNING)
        writer = gguf.GGUFWriter(path, self.architecture.name)
        writer.add_type(kind)
        writer.add_name(self.name)
        return writer


def _file_type(tensors: Mapping[str, Stored]) -> int:
    """The library's name of the file by the type of most bytes, which programs show to people."""
    sizes: dict[str, int] = {}
    for one in tensors.values():
        sizes[one.type.name] = sizes.get(one.type.name, 0) + one.rows.nbytes
    return int(TENSOR_TYPES[max(sizes, key=lambda name: sizes[name])].file_type)


def _finish(writer: gguf.GGUFWriter, tensors: Mapping[str, Stored]) -> None:
    for name, one in tensors.items():
        writer.add_tensor(name, one.rows, raw_dtype=one.type.ggml)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
