"""A classifier with a narrowed last block equals the unmodified classifier."""

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


def build(model, config, attention: str = "", **options):
    torch.manual_seed(0)
    shape = config(**SIZES, num_hidden_layers=2, num_labels=3, **options)
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
def test_narrowed_block_gives_the_same_logits_and_gradients(model, config, attention: str) -> None:
    whole, narrow = build(model, config, attention), build(model, config, attention)
    assert narrow_last_block(narrow)
    (logits, gradients), (again, same) = logits_and_gradients(whole), logits_and_gradients(narrow)
    torch.testing.assert_close(again, logits)
    assert same.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(same[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_narrowed_block_needs_fewer_operations() -> None:
    def operations(narrow: bool) -> int:
        model = build(*BERT_LIKE[0])
        if narrow:
            narrow_last_block(model)
        with FlopCounterMode(display=False) as counted, torch.no_grad():
            model(input_ids=torch.ones(1, 100, dtype=torch.long))
        return counted.get_total_flops()

    # The last block's products in units of width² per position: query, output and both feed-forward products
    # (1 + 1 + 2 · 2), 6 of 8, run at one position only.
    assert operations(True) < 0.65 * operations(False)


@pytest.mark.parametrize(
    ("model", "config", "options"),
    [
        (LlamaForSequenceClassification, LlamaConfig, {}),  # reads the last position
        (BertForSequenceClassification, BertConfig, {"chunk_size_feed_forward": 11}),
        (BertForSequenceClassification, BertConfig, {"attention": "eager"}),
        (BertForSequenceClassification, BertConfig, {"is_decoder": True}),
    ],
)
def test_unsupported_models_stay_unchanged(model, config, options: dict) -> None:
    built = build(model, config, **options)
    before = [module.forward for module in built.modules()]
    assert not narrow_last_block(built)
    assert [module.forward for module in built.modules()] == before


@pytest.mark.parametrize(
    "part",
    ["bert", "bert.encoder.layer.1", "bert.encoder.layer.1.attention.self", "bert.encoder.layer.1.output"],
)
def test_block_with_a_hook_is_not_narrowed(part: str) -> None:
    model = build(BertForSequenceClassification, BertConfig)
    model.get_submodule(part).register_forward_hook(lambda *_: None)
    assert not narrow_last_block(model)


def test_block_with_another_forward_pass_is_not_narrowed() -> None:
    model = build(BertForSequenceClassification, BertConfig)
    attention = model.bert.encoder.layer[-1].attention
    attention.self.forward = attention.self.forward.__func__.__get__(attention.self)
    assert not narrow_last_block(model)
