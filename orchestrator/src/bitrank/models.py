"""Models by name, hub id or local folder: encoders with a classification head, decoders with their language-model head."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
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
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers.initialization import no_init_weights
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from bitrank.errors import UserError
from bitrank.skeleton import class_of
from bitrank.specs import RunSpec
from bitrank.tiny import TINY, build_tiny
from bitrank.weights import Filler, find_source

ROWS = CompiledRows()


@dataclass(frozen=True)
class Loaded:
    """A model in the compute dtype, its tokenizer, the names of freshly made modules (to be trained whole), and its size.

    Until ``fill`` (one module by its name) and ``fill_rest`` are called its weights may be on the ``meta`` device. ``filed`` tells in which
    dtype a module's weight was filed.
    """

    model: nn.Module
    tokenizer: Any
    fresh: list[str]
    parameters: int
    fill: Callable[[str], None]
    fill_rest: Callable[[], None]
    filed: Callable[[str], torch.dtype]


def locate(name: str) -> str:
    """The folder or hub id of model ``name``: an embedded model, a tiny one, a local folder, or a hub id as it is."""
    if name == "minilm":
        return str(asset_dir("minilm"))
    if name == "smollm2":
        return str(_smollm2())
    if name in TINY:
        return str(build_once(cache_dir() / "models" / f"{name}-1", partial(build_tiny, name)))
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
        return AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError) as error:
        raise UserError(_cannot_load(name, error)) from error


def open_model(spec: RunSpec, classes: int, device: str, dtype: torch.dtype) -> Loaded:
    """The model of ``spec`` for its kind of task, without its weights yet. Fresh heads are drawn from the spec's seed.

    Raises :class:`UserError` when it cannot be loaded, or is an encoder asked to do language modelling.
    """
    name, kind = spec.model, spec.kind
    tokenizer = load_tokenizer(name)
    config = _config(name, kind, classes, spec.dropout, tokenizer)
    auto = AutoModelForSequenceClassification if kind == "classification" else AutoModelForCausalLM
    attention = implementation(class_of(auto, config), attention_for(device, spec.fused))
    words = {"dtype": dtype, "attn_implementation": attention}
    folder = folder_of(name)
    with no_init_weights(), init_empty_weights(include_buffers=False):
        empty: Any = auto.from_config(config, **words)
    empty.tie_weights()
    if (source := find_source(empty, folder)) is None:
        return _load_whole(auto, name, folder, tokenizer, config, words, device, spec.seed)
    filler = Filler(empty, source, device, dtype, spec.seed)

    def filed(module: str) -> torch.dtype:
        return source.dtype_of(f"{module}.weight")

    return Loaded(empty.eval(), tokenizer, source.fresh, _size(empty), filler.fill, filler.rest, filed)


def fuse_model(model: Any, decode: Callable[[nn.Module], Decode | None] = decoder) -> None:
    """Let an adapted ``model`` compute by the fused products and norms, and its last block only what is read of it, in place."""
    fuse_rotary(model, ROWS)
    fuse(model, decode, ROWS)
    narrow_last_block(model)


def _load_whole(auto: Any, name: str, folder: Path, tokenizer: Any, config: Any, words: dict[str, Any], device: str, seed: int) -> Loaded:
    """By transformers itself, which knows older ways of naming weights, and holds the whole model in 16 bits while it loads."""
    torch.manual_seed(seed)
    try:
        model, info = auto.from_pretrained(folder, config=config, use_safetensors=True, output_loading_info=True, **words)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(_cannot_load(name, error)) from error
    fresh = sorted({key.rpartition(".")[0] for key in info["missing_keys"]})
    # What it was before it was cast is not told.
    return Loaded(model.to(device), tokenizer, fresh, _size(model), lambda _: None, lambda: None, lambda _: words["dtype"])


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
    """A hash of the files that make up model ``name``: its configuration and its weights."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder_of(name).iterdir() if path.suffix in {".safetensors", ".json"}):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _config(name: str, kind: str, classes: int, dropout: float | None, tokenizer: Any) -> Any:
    try:
        config = AutoConfig.from_pretrained(locate(name))
    except (OSError, ValueError) as error:
        raise UserError(_cannot_load(name, error)) from error
    if kind == "language-modelling" and config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        raise UserError(f"{name} is a {config.model_type} encoder and cannot do language modelling; give a decoder such as smollm2 or gpt2")
    if kind == "classification":
        config.num_labels = classes
        if config.pad_token_id is None:
            config.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    if dropout is not None:
        for key, value in vars(config).items():
            if isinstance(value, float) and ("dropout" in key or "pdrop" in key):
                setattr(config, key, dropout)
    return config


def attention_for(device: str, fused: bool) -> str:
    """CUDA has kernels of its own; elsewhere the plain formula is the fastest at the lengths of a laptop."""
    return "sdpa" if device == "cuda" else register_attention(ROWS) if fused else "eager"


def _smollm2() -> Path:
    """SmolLM2 in hub format, converted once from its GGUF file: loading then takes a moment, and little memory."""
    place = cache_dir() / "models" / f"smollm2-{ASSETS['smollm2'].sha256[:12]}-1"
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
