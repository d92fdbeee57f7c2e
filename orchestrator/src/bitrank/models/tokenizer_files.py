"""Files of a tokenizer in a model folder: whether a vocabulary is among them, and the error if none is.

Where files are missing, transformers makes an empty tokenizer of many classes (BERT, T5, GPT-2, BART), which
reads every text as unknown tokens or as none.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from bitrank.errors import first_line

# Files that transformers reads whatever the class: of one format, maybe by version, or of other libraries.
_ANY_CLASS = re.compile(r"tokenizer(\..+)?\.json|tekken\.json|tokenizer\.model.*|tiktoken\.model")
_CONFIG = "tokenizer_config.json"  # some classes count it among the files of their vocabulary


def has_vocabulary(folder: Path, tokenizer: Any) -> bool:
    """Whether ``folder`` has the vocabulary of ``tokenizer``, which was loaded from it.

    Classes without files of a vocabulary, such as those of bytes, need none.
    """
    named = set(tokenizer.vocab_files_names.values()) - {_CONFIG}
    present = {path.name for path in folder.iterdir() if path.is_file()}
    return not named or bool(named & present) or any(map(_ANY_CLASS.fullmatch, present))


def no_tokenizer(name: str, folder: Path, error: Exception | None = None) -> str:
    """The message that model ``name`` has no tokenizer in ``folder``, with the reason if one is known."""
    reason, has_json = "", (folder / "tokenizer.json").is_file()
    if error is not None and (has_json or not isinstance(error, OSError | ValueError)):
        guess = "; cut off, or made by a newer version of tokenizers?" if has_json else ""
        reason = f" ({first_line(error).rstrip('.')}{guess})"
    return (
        f"{name} has no tokenizer that can be loaded{reason}: expected tokenizer.json, or the files of a "
        "tokenizer that transformers knows, beside its config.json; copy them from the model that it was "
        "made from"
    )
