"""Find a model's files by name, hub id or local folder; convert the embedded SmolLM2 once."""

from __future__ import annotations

import hashlib
import inspect
import logging
import re
from functools import partial
from pathlib import Path

import torch
from bitrank_data import ASSETS, asset_dir, build_once, cache_dir, hub_snapshot
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, modeling_gguf_pytorch_utils
from transformers.utils import logging as transformers_logging

from bitrank.errors import UserError, first_line
from bitrank.models.architectures import config_of
from bitrank.models.stored_tensors import weight_files
from bitrank.spec.embedded_models import EMBEDDED_MODELS
from bitrank.spec.inputs import TEXT_FILES
from bitrank.spec.provenance import code_hash
from bitrank.spec.tiny_models import TINY, build_tiny

_PINNED = re.compile(r"(?P<repository>[^@]+)@(?P<commit>[0-9a-f]{40})")
_FETCHED = ("*.safetensors", "*.jinja", *(f"*{ending}" for ending in sorted(TEXT_FILES)))


def locate(name: str) -> str:
    """Return the folder or hub id of model ``name``.

    ``name`` is an embedded model, a tiny one, a local folder, or a hub id, which is returned unchanged. A hub
    id with a commit (``id@commit``) becomes the folder of that commit in the hub's own cache.
    Raises :class:`UserError` if a local folder does not exist or holds no model.
    """
    if name in EMBEDDED_MODELS:
        return str(_CONVERTED[name]() if name in _CONVERTED else asset_dir(name))
    if name in TINY:
        quiet_transformers()  # the progress of writing a few kilobytes would hide an error message
        place = cache_dir() / "models" / f"{name}-{code_hash('bitrank.spec.tiny_models')[:8]}"
        return str(build_once(place, partial(build_tiny, name)))
    folder = Path(name)
    if folder.exists() and not (folder / "config.json").is_file():
        raise UserError(f"{name} is no model: expected a folder with config.json, weights and a tokenizer")
    if not folder.exists() and (pinned := _PINNED.fullmatch(name)):
        return str(_snapshot(pinned["repository"], pinned["commit"]))
    if not folder.exists() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise UserError(
            f"no such model folder: {name}; give a folder in hub format, a hub id, or one of "
            f"{', '.join(EMBEDDED_MODELS)}"
        )
    return name


def folder_of(name: str) -> Path:
    """Return the local folder of model ``name``; a hub model is downloaded into the hub's own cache."""
    place = locate(name)
    if Path(place).is_dir():
        return Path(place)
    return _snapshot(place, None)


def repository_of(name: str) -> str:
    """Return ``name`` without the commit of a pinned hub id."""
    pinned = _PINNED.fullmatch(name)
    return pinned["repository"] if pinned and not Path(name).exists() else name


def _snapshot(repository: str, commit: str | None) -> Path:
    """Return the folder of a hub model in the hub's own cache; downloads files that are absent there."""
    try:
        return hub_snapshot("models", repository, commit, _FETCHED)
    except (OSError, ValueError) as error:
        raise UserError(cannot_load(f"{repository}@{commit}" if commit else repository, error)) from error


def weights_fingerprint(name: str) -> str:
    """Return a hash of the files of model ``name``: the weights that are loaded, configuration, tokenizer.

    Raises :class:`UserError` if the folder has no weights that can be loaded.
    """
    folder = folder_of(name)
    weights = weight_files(folder, config_of(name, str(folder)))
    texts = [path for path in folder.iterdir() if path.is_file() and path.suffix in TEXT_FILES]
    digest = hashlib.sha256()
    for path in sorted({*weights, *texts}):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _smollm2() -> Path:
    """Return the folder of SmolLM2 in hub format, converted once from its GGUF file.

    Loading the converted model is faster and takes less memory.
    """
    converter = hashlib.sha256(inspect.getsource(_convert_smollm2).encode()).hexdigest()[:8]
    place = cache_dir() / "models" / f"smollm2-{ASSETS['smollm2'].sha256[:12]}-{converter}"
    return build_once(place, _convert_smollm2)


def _convert_smollm2(folder: Path) -> None:
    quiet_transformers()
    source = asset_dir("smollm2")
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file="model.gguf", dtype=torch.bfloat16)
    # The weights are plain bf16 now; the note that they came quantized would make transformers refuse to save
    # them.
    model.hf_quantizer = None
    del model.config.quantization_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file="model.gguf").save_pretrained(folder)


_CONVERTED = {"smollm2": _smollm2}  # embedded models whose asset is not in hub format


def cannot_load(name: str, error: Exception) -> str:
    reason = first_line(error)
    known = ", ".join(EMBEDDED_MODELS)
    return (
        f"cannot load the model {name!r}: {reason} Give a folder in hub format, a hub id that can be "
        f"reached, or one of {known}"
    )


def quiet_transformers() -> None:
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    # The bar of the GGUF reader ignores that switch, and in a pipe it is one long line.
    modeling_gguf_pytorch_utils.tqdm = partial(tqdm, disable=None)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
