"""Models by name, hub id or local folder: encoders with a classification head, decoders with their language-model head."""

from __future__ import annotations

import hashlib
import inspect
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from bitrank_adapters import fuse
from bitrank_data import ASSETS, asset_dir, build_once, cache_dir
from bitrank_quant import decoder
from bitrank_quant.decoders import Decode
from bitrank_quant.kernels.rows import CompiledRows
from bitrank_trainer import fuse_rotary, implementation, narrow_last_block, register_attention
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers.initialization import no_init_weights, no_tie_weights
from transformers.utils import logging as transformers_logging

from bitrank.architectures import check_folder, check_task, config_of
from bitrank.checkpoint import Checkpoint, read_checkpoint
from bitrank.completeness import check_complete, heads_of, logits_of
from bitrank.errors import UserError
from bitrank.labels import class_names, row_order
from bitrank.padding import set_padding
from bitrank.provenance import code_hash
from bitrank.skeleton import class_of
from bitrank.specs import RunSpec
from bitrank.stored_tensors import weight_files
from bitrank.tiny import TINY, build_tiny
from bitrank.weights import Filler

ROWS = CompiledRows()
_TEXTS = {".json", ".txt", ".model", ".tiktoken"}  # configuration and tokenizer


@dataclass(frozen=True)
class Loaded:
    """A model in the compute dtype, its tokenizer, and its size. ``fresh`` names the modules to train whole (a
    classifier's head).

    Until ``fill`` (one module by its name) and ``fill_rest`` are called its weights are on the ``meta`` device.
    ``filed`` gives the dtype in which a module's weight is stored. ``new_modules`` are those of ``fresh`` that are
    drawn from the seed. ``notices`` are sentences about the weights for the user.
    """

    model: nn.Module
    tokenizer: Any
    fresh: list[str]
    parameters: int
    fill: Callable[[str], None]
    fill_rest: Callable[[], None]
    filed: Callable[[str], torch.dtype]
    new_modules: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


def locate(name: str) -> str:
    """The folder or hub id of model ``name``: an embedded model, a tiny one, a local folder, or a hub id as it is."""
    if name == "minilm":
        return str(asset_dir("minilm"))
    if name == "smollm2":
        return str(_smollm2())
    if name in TINY:
        place = cache_dir() / "models" / f"{name}-{code_hash('bitrank.tiny')[:8]}"
        return str(build_once(place, partial(build_tiny, name)))
    folder = Path(name)
    if folder.exists() and not (folder / "config.json").is_file():
        raise UserError(f"{name} is no model: expected a folder with config.json, weights and a tokenizer")
    if not folder.exists() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise UserError(f"no such model folder: {name}; give a folder in hub format, a hub id, or one of minilm, smollm2")
    return name


def load_tokenizer(name: str) -> Any:
    """The tokenizer of model ``name``. Raises :class:`UserError` when there is none."""
    _quiet()
    place = locate(name)
    try:
        return AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    except (OSError, ValueError) as error:
        if Path(place).is_dir():
            raise UserError(
                f"{name} has no tokenizer that can be loaded: expected tokenizer.json, or the files of a tokenizer "
                "that transformers knows, beside its config.json; copy them from the model that it was made from"
            ) from error
        raise UserError(_cannot_load(name, error)) from error


def open_model(spec: RunSpec, classes: int | Sequence[str], device: str, dtype: torch.dtype) -> Loaded:
    """The model of ``spec`` for its kind of task, without its weights yet. New heads are drawn from its seed.

    ``classes`` are the names of a classifier's classes, or how many there are. A head that the checkpoint brings is
    kept when its label names are these, in whatever order; else its last layer is new. It is always trained whole.
    Raises :class:`UserError` when the model cannot be loaded, or cannot do such tasks.
    """
    name, kind, labels = spec.model, spec.kind, class_names(classes)
    tokenizer = load_tokenizer(name)
    config, stored = _config(name, kind, labels, spec.dropout)
    auto = AutoModelForSequenceClassification if kind == "classification" else AutoModelForCausalLM
    folder = folder_of(name)
    check_folder(folder)
    attention = implementation(class_of(auto, config), attention_for(device, spec.fused))
    with no_init_weights(), no_tie_weights(), init_empty_weights(include_buffers=False):
        empty: Any = auto.from_config(config, dtype=dtype, attn_implementation=attention)
    checkpoint = read_checkpoint(empty, folder, dtype)
    check_complete(checkpoint, empty, name, kind)
    checkpoint.tie(empty)
    set_padding(empty, tokenizer)
    head = _head(empty, checkpoint, stored, labels) if kind == "classification" else _Head()
    filler = Filler(empty, checkpoint, device, spec.seed, head.redrawn, head.rows)
    drawn = {name.rpartition(".")[0] for name in filler.new_parameters}
    new = [module for module, _ in empty.named_modules() if module in drawn]
    trained = {*head.modules, *new}
    fresh = [module for module, _ in empty.named_modules() if module in trained]

    def filed(module: str) -> torch.dtype:
        return checkpoint.dtype_of(filler.stored_name(f"{module}.weight"))

    return Loaded(
        model=empty.eval(),
        tokenizer=tokenizer,
        fresh=fresh,
        parameters=_size(empty),
        fill=filler.fill,
        fill_rest=filler.rest,
        filed=filed,
        new_modules=new,
        notices=_notices(checkpoint, new, head),
    )


@dataclass(frozen=True)
class _Head:
    """A classifier's head: its modules, stored parameters to draw anew, the order of rows to take, and why."""

    modules: list[str] = field(default_factory=list)
    redrawn: set[str] = field(default_factory=set)
    rows: dict[str, list[int]] = field(default_factory=dict)
    said: str = ""


def _head(model: Any, checkpoint: Checkpoint, stored: dict[int, str], labels: list[str]) -> _Head:
    heads = heads_of(model)
    last = logits_of(model, heads, len(labels))
    filed = {name for name in checkpoint.groups if last and name.rpartition(".")[0] == last}
    if last is None or not filed:
        return _Head(heads)
    order = row_order(stored, labels)
    theirs, ours = ", ".join(stored[number] for number in sorted(stored)), ", ".join(labels)
    if order is None:
        said = f"{last} is new: the checkpoint's labels ({theirs}) are not those of the data ({ours})"
        return _Head(heads, redrawn=filed, said=said)
    if order == sorted(order):
        return _Head(heads)
    said = f"rows of {last} are put into the data's order of labels: {theirs} in the checkpoint, {ours} here"
    return _Head(heads, rows={last: order}, said=said)


def _notices(checkpoint: Checkpoint, new: list[str], head: _Head) -> list[str]:
    notices = [head.said] if head.said else []
    if new:
        notices.append(f"newly initialised, trained whole: {', '.join(new)}")
    if checkpoint.untied:
        names = ", ".join(sorted(checkpoint.untied))
        notices.append(f"not tied, though config.json says so, as the files hold other values: {names}")
    if checkpoint.unused:
        more = f" and {len(checkpoint.unused) - 5} more" if len(checkpoint.unused) > 5 else ""
        notices.append(f"stored but not used by this model: {', '.join(checkpoint.unused[:5])}{more}")
    return notices


def fuse_model(model: Any, decode: Callable[[nn.Module], Decode | None] = decoder) -> None:
    """Let an adapted ``model`` compute by the fused products and norms, and its last block only what is read of it, in place."""
    fuse_rotary(model, ROWS)
    fuse(model, decode, ROWS)
    narrow_last_block(model)


def folder_of(name: str) -> Path:
    """The local folder of model ``name``; a hub model's files are fetched into the hub's own cache."""
    place = locate(name)
    if Path(place).is_dir():
        return Path(place)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(place, allow_patterns=["*.safetensors", "*.json"]))
    except (OSError, ValueError) as error:
        raise UserError(_cannot_load(name, error)) from error


def weights_fingerprint(name: str) -> str:
    """A hash of the files that make up model ``name``: weights that are loaded, configuration, tokenizer.

    Raises :class:`UserError` when the folder has no weights that can be loaded.
    """
    folder = folder_of(name)
    weights = weight_files(folder, config_of(name, str(folder)))
    texts = [path for path in folder.iterdir() if path.is_file() and path.suffix in _TEXTS]
    digest = hashlib.sha256()
    for path in sorted({*weights, *texts}):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def load_config(name: str) -> Any:
    """The configuration of model ``name`` as it is stored. Raises :class:`UserError` when there is none."""
    return config_of(name, locate(name))


def _config(name: str, kind: str, labels: list[str], dropout: float | None) -> tuple[Any, dict[int, str]]:
    """The configuration for a task of ``kind``, and the label names that the checkpoint was trained with."""
    place = locate(name)
    config = config_of(name, place)
    check_task(name, config, kind)
    if Path(place).is_dir():
        # An adapter names its base by it, and is read from elsewhere.
        config.name_or_path = str(Path(place).resolve())
    stored = dict(config.id2label or {})
    if kind == "classification":
        config.num_labels = len(labels)
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: number for number, label in enumerate(labels)}
    if dropout is not None:
        for key, value in vars(config).items():
            if isinstance(value, float) and ("dropout" in key or "pdrop" in key):
                setattr(config, key, dropout)
    return config, stored


def attention_for(device: str, fused: bool) -> str:
    """CUDA has kernels of its own; elsewhere the plain formula is the fastest at the lengths of a laptop."""
    return "sdpa" if device == "cuda" else register_attention(ROWS) if fused else "eager"


def _smollm2() -> Path:
    """SmolLM2 in hub format, converted once from its GGUF file: loading then takes a moment, and little memory."""
    converter = hashlib.sha256(inspect.getsource(_convert_smollm2).encode()).hexdigest()[:8]
    place = cache_dir() / "models" / f"smollm2-{ASSETS['smollm2'].sha256[:12]}-{converter}"
    return build_once(place, _convert_smollm2)


def _convert_smollm2(folder: Path) -> None:
    _quiet()
    source = asset_dir("smollm2")
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file="model.gguf", dtype=torch.bfloat16)
    # The weights are plain bf16 now; the note that they came quantized would make transformers refuse to save them.
    model.hf_quantizer = None
    del model.config.quantization_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file="model.gguf").save_pretrained(folder)


def _cannot_load(name: str, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0]
    return f"cannot load the model {name!r}: {reason} Give a folder in hub format, a hub id that can be reached, or one of minilm, smollm2"


def _quiet() -> None:
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
