"""Byte-level BPE tokenizers in GGUF: tokens, merges, special tokens, pre-tokenizer and chat template.

llama.cpp implements each way of splitting a text before BPE under a name. The name is found from the
splitting rules of ``tokenizer.json``, not from the model's name, so that the program splits as the run did.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import gguf

from bitrank.errors import UserError

if TYPE_CHECKING:
    from bitrank.export.run_texts import RunTexts

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


@dataclass(frozen=True)
class PreTokenizer:
    """Splitting rules that llama.cpp implements; ``matches`` recognizes their steps in ``tokenizer.json``.

    ``ignores_merges``: a word that is a token as a whole is not merged from its parts.
    """

    matches: Callable[[list[dict[str, Any]]], bool]
    ignores_merges: bool = False


def _gpt2_steps(steps: list[dict[str, Any]]) -> bool:
    return len(steps) == 1 and _byte_level(steps[0], splits=True)


def _digits_then_gpt2(steps: list[dict[str, Any]]) -> bool:
    if len(steps) != 2 or steps[0].get("type") != "Digits":
        return False
    return bool(steps[0].get("individual_digits")) and _byte_level(steps[1], splits=True)


def _regex(pattern: str) -> Callable[[list[dict[str, Any]]], bool]:
    def matches(steps: list[dict[str, Any]]) -> bool:
        if len(steps) != 2 or steps[0].get("type") != "Split":
            return False
        isolated = steps[0].get("behavior") == "Isolated" and not steps[0].get("invert")
        same = steps[0].get("pattern") == {"Regex": pattern}
        return isolated and same and _byte_level(steps[1], splits=False)

    return matches


def _byte_level(step: dict[str, Any], splits: bool) -> bool:
    plain = step.get("type") == "ByteLevel" and not step.get("add_prefix_space")
    return plain and bool(step.get("use_regex", True)) == splits


PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "gpt-2": PreTokenizer(_gpt2_steps),
    "smollm": PreTokenizer(_digits_then_gpt2),
    "qwen2": PreTokenizer(_regex(_QWEN2)),
    "llama-bpe": PreTokenizer(_regex(_LLAMA3), ignores_merges=True),
}


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as GGUF stores it; special tokens by GGUF's names, None where there is none."""

    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    special: dict[str, int | None]
    adds: dict[str, bool]
    chat_template: Any

    @property
    def nbytes(self) -> int:
        """Bytes of tokens and merges in a header, with 8 bytes for each length and 4 for each type."""
        texts = [*self.tokens, *self.merges]
        return sum(len(text.encode()) + 8 for text in texts) + 4 * len(self.types)

    def write(self, writer: gguf.GGUFWriter) -> None:
        """Add the tokenizer's keys to ``writer``."""
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        writer.add_token_merges(self.merges)
        for name, number in self.special.items():
            if number is not None:
                getattr(writer, f"add_{name}_token_id")(number)
        for name, adds in self.adds.items():
            getattr(writer, f"add_add_{name}_token")(adds)
        if self.chat_template:
            writer.add_chat_template(self.chat_template)


def with_texts(vocabulary: Vocabulary, texts: RunTexts) -> Vocabulary:
    """``vocabulary`` with the beginning, the ends and the template of the texts that a run learned.

    llama.cpp adds BOS to a prompt if the file says so, and then removes the one that a template writes. So it
    is to add BOS where the tokenizer does and training had it: a template may have left it out. A program
    that adds EOS to a prompt would close it before the answer.
    """
    special, adds = dict(vocabulary.special), dict(vocabulary.adds)
    adds["bos"] = adds["bos"] and texts.begins_with_bos
    adds["eos"] = adds["eos"] and not texts.is_dialogue
    if texts.marker is not None and texts.marker != special["eos"]:
        special["eot"] = texts.marker
    template = vocabulary.chat_template if texts.template is None else texts.template
    return replace(vocabulary, special=special, adds=adds, chat_template=template)


def vocabulary_of(tokenizer: Any, rows: int) -> Vocabulary:
    """The vocabulary of ``tokenizer`` for an embedding of ``rows`` rows; unused rows get placeholders.

    Raises :class:`UserError` for a tokenizer that GGUF cannot hold.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _refused("it has no tokenizer.json; save it with a fast tokenizer of transformers")
    content: dict[str, Any] = json.loads(backend.to_str())
    model = content["model"]
    pre = _pre_tokenizer(content)
    tokens, types = _tokens(content, rows)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    special = {
        name: getattr(tokenizer, f"{attribute}_token_id", None) for name, attribute in _SPECIAL.items()
    }
    ends = tokenizer("a")["input_ids"]
    adds = {
        "bos": bool(ends) and ends[0] == tokenizer.bos_token_id,
        "eos": bool(ends) and ends[-1] == tokenizer.eos_token_id,
    }
    return Vocabulary(pre, tokens, types, merges, special, adds, _template(tokenizer))


_SPECIAL = {name: name for name in ("bos", "eos", "unk", "sep", "pad", "mask")}


def _pre_tokenizer(content: dict[str, Any]) -> str:
    """llama.cpp's name of the splitting rules of ``content``."""
    model, normalizer = content["model"], content.get("normalizer")
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        kind = f"{model.get('type')} with byte fallback" if model.get("byte_fallback") else model.get("type")
        sentence_piece = model.get("byte_fallback") or model.get("type") == "Unigram"
        raise _refused(f"its model is {kind}{', that of SentencePiece' if sentence_piece else ''}")
    # llama.cpp does not normalize; texts that people type are in the form NFC already.
    if normalizer is not None and normalizer.get("type") != "NFC":
        raise _refused(f"it normalizes texts ({normalizer.get('type')})")
    steps = content.get("pre_tokenizer") or {}
    parts = steps.get("pretokenizers", []) if steps.get("type") == "Sequence" else [steps]
    for name, entry in PRE_TOKENIZERS.items():
        if entry.matches(parts) and entry.ignores_merges == bool(model.get("ignore_merges")):
            return name
    kinds = ", ".join(str(part.get("type")) for part in parts)
    raise _refused(f"it splits texts by rules that are none of {', '.join(PRE_TOKENIZERS)} ({kinds})")


def _tokens(content: dict[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """Texts and types of the tokens of all ``rows`` ids."""
    by_id = {number: (text, gguf.TokenType.NORMAL) for text, number in content["model"]["vocab"].items()}
    for added in content.get("added_tokens") or ():
        kind = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
        by_id[added["id"]] = (added["content"], kind)
    if max(by_id) >= rows:
        raise _refused(f"it has the token id {max(by_id)}, but the model has {rows} embeddings")
    tokens, types = [], []
    for number in range(rows):
        text, kind = by_id.get(number, (f"[PAD{number}]", gguf.TokenType.UNUSED))
        tokens.append(text)
        types.append(int(kind))
    return tokens, types


def _template(tokenizer: Any) -> Any:
    """The chat template: one text, or several by name as the writer takes them."""
    template = getattr(tokenizer, "chat_template", None)
    if not isinstance(template, dict):
        return template
    return [{"name": name, "template": text} for name, text in template.items()]


def _refused(reason: str) -> UserError:
    return UserError(
        f"GGUF cannot hold this tokenizer: {reason}. Expected byte-level BPE, as GPT-2, Llama 3, Qwen and "
        "SmolLM have; export with --to merged"
    )
