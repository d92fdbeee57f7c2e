"""A classifier whose last block works for the first position alone, against the whole one."""

from __future__ import annotations

import pytest
import torch
from bitrank_trainer import narrow_last_block, register_attention
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    CamembertConfig,
    CamembertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "pad_token_id": 0,
}
BERT_LIKE = [
    (BertForSequenceClassification, BertConfig),
    (RobertaForSequenceClassification, RobertaConfig),
    (XLMRobertaForSequenceClassification, XLMRobertaConfig),
    (CamembertForSequenceClassification, CamembertConfig),
    (ElectraForSequenceClassification, ElectraConfig),
]


def build(model, config, attention: str = "", **words):
    torch.manual_seed(0)
    shape = config(**SIZES, num_hidden_layers=2, num_labels=3, **words)
    shape._attn_implementation = attention or register_attention()
    return model(shape).eval()


def logits_and_gradients(model):
    ids = torch.randint(3, 50, (3, 11), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, 7:] = 0
    logits = model(input_ids=ids, attention_mask=mask).logits
    torch.nn.functional.cross_entropy(logits, torch.tensor([0, 2, 1])).backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("attention", ["", "sdpa"])
@pytest.mark.parametrize(("model", "config"), BERT_LIKE)
def test_the_narrow_block_changes_nothing(model, config, attention: str) -> None:
    whole, narrow = build(model, config, attention), build(model, config, attention)
    assert narrow_last_block(narrow)
    (logits, gradients), (again, same) = logits_and_gradients(whole), logits_and_gradients(narrow)
    torch.testing.assert_close(again, logits)
    assert same.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(same[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_it_multiplies_less() -> None:
    def operations(narrow: bool) -> int:
        model = build(*BERT_LIKE[0])
        if narrow:
            narrow_last_block(model)
        with FlopCounterMode(display=False) as counted, torch.no_grad():
            model(input_ids=torch.ones(1, 100, dtype=torch.long))
        return counted.get_total_flops()

    # Of a block's products, in units of width² a position: query, output and both of the feed-forward part (1 + 1 + 2 · 2) of 8.
    assert operations(True) < 0.65 * operations(False)


@pytest.mark.parametrize(
    ("model", "config", "words"),
    [
        (LlamaForSequenceClassification, LlamaConfig, {}),  # reads the last position
        (BertForSequenceClassification, BertConfig, {"chunk_size_feed_forward": 11}),
        (BertForSequenceClassification, BertConfig, {"attention": "eager"}),
        (BertForSequenceClassification, BertConfig, {"is_decoder": True}),
    ],
)
def test_other_models_stay_as_they_are(model, config, words: dict) -> None:
    built = build(model, config, **words)
    before = [module.forward for module in built.modules()]
    assert not narrow_last_block(built)
    assert [module.forward for module in built.modules()] == before


@pytest.mark.parametrize(
    "part",
    ["bert", "bert.encoder.layer.1", "bert.encoder.layer.1.attention.self", "bert.encoder.layer.1.output"],
)
def test_a_block_that_a_hook_watches_stays_whole(part: str) -> None:
    model = build(BertForSequenceClassification, BertConfig)
    model.get_submodule(part).register_forward_hook(lambda *_: None)
    assert not narrow_last_block(model)


def test_a_block_with_another_forward_pass_stays_whole() -> None:
    model = build(BertForSequenceClassification, BertConfig)
    attention = model.bert.encoder.layer[-1].attention
    attention.self.forward = attention.self.forward.__func__.__get__(attention.self)
    assert not narrow_last_block(model)
