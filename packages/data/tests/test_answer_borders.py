"""Answers begin at the same token whatever offsets the tokenizer gives for white space."""

from __future__ import annotations

import pytest
from bitrank_data import IGNORED
from bitrank_data.conversations import dialogue
from bitrank_data.dialogues import encode_dialogues
from bitrank_data.sequences import Cutting
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast


def tokenizer_of(trim_offsets: bool) -> PreTrainedTokenizerFast:
    """Tokenizer of bytes with tokens for `` yes`` and two spaces, like GPT-NeoX's if it trims offsets."""
    vocabulary = ["<pad>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges = [("y", "e"), ("ye", "s"), ("Ġ", "yes"), ("Ġ", "Ġ")]
    vocabulary += ["".join(merge) for merge in merges]
    made = Tokenizer(models.BPE({token: n for n, token in enumerate(vocabulary)}, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", pad_token="<pad>")


@pytest.mark.parametrize("trim_offsets", [False, True])
@pytest.mark.parametrize(
    ("prompt", "answer", "context", "predicted"),
    [
        ("a: ", "yes", ["a", ":", "Ġ"], ["yes", "</s>"]),
        ("a:  ", "yes", ["a", ":", "ĠĠ"], ["yes", "</s>"]),
        ("a:", " yes", ["a", ":"], ["Ġyes", "</s>"]),
        ("a\n", "yes", ["a", "Ċ"], ["yes", "</s>"]),
        ("é ", "yes", ["Ã", "©", "Ġ"], ["yes", "</s>"]),
        ("a:", "yes ", ["a", ":"], ["yes", "Ġ", "</s>"]),
    ],
)
def test_a_prompt_has_the_tokens_that_it_has_alone(
    trim_offsets: bool, prompt: str, answer: str, context: list[str], predicted: list[str]
) -> None:
    tokenizer = tokenizer_of(trim_offsets)
    example = dialogue("0", None, [("user", prompt), ("assistant", answer)], "completion")
    (((piece,),), _) = encode_dialogues([example], tokenizer, Cutting(32))
    names = tokenizer.convert_ids_to_tokens(list(piece.tokens))
    is_answer = [target != IGNORED for target in piece.targets]
    assert names == [*context, *predicted]
    assert is_answer == [False] * len(context) + [True] * len(predicted)
