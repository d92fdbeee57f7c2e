"""A module keeps its forward pass, hooks and shared weight when a quantized module replaces it."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import architectures
import pytest
import torch
from bitrank_quant import (
    QuantEmbedding,
    QuantError,
    QuantLinear,
    QuantWeight,
    apply_precision,
    left_out,
    load_quantized,
    parse_format,
    readers_of_weights,
    save_quantized,
    stored_bytes,
    weight_matrices,
)
from bitrank_quant.sensitivity import Replay, measure_moments
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.bart.modeling_bart import shift_tokens_right

TABLES = ("t5", "bart")


def quantized(name: str, text: str = "int8") -> Any:
    """The model with every matrix in one format, computing in fp32."""
    model = architectures.build(name).eval()
    plan = {m.name: text for m in weight_matrices(model) if m.tied_to is None}
    apply_precision(model, plan, compute_dtype=torch.float32)
    return model


def logits(name: str, model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(**architectures.inputs(name)).logits
    return found


@pytest.mark.parametrize("name", ["gemma", "opt", "biogpt", "bart-scaled"])
def test_embedding_lookup_does_not_decode_the_whole_table(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The forward passes of these models read the weight's dtype or device."""
    model = quantized(name)
    tables = [m for m in model.modules() if isinstance(m, QuantEmbedding) and type(m) is not QuantEmbedding]
    assert tables
    heads = [id(m.quantized) for m in model.modules() if isinstance(m, QuantLinear)]
    whole, decode = [], QuantWeight.decode

    def watched(self: QuantWeight, *args: Any, **kwargs: Any) -> Tensor:
        whole.append(id(self))
        return decode(self, *args, **kwargs)

    monkeypatch.setattr(QuantWeight, "decode", watched)
    logits(name, model)
    for table in tables:  # a head that shares the table decodes it once
        assert whole.count(id(table.quantized)) == heads.count(id(table.quantized))


def test_position_ids_reach_the_positional_table() -> None:
    before, after = architectures.build("opt").eval(), quantized("opt", "fp32")
    ids = torch.tensor([[5, 6, 7, 8]])
    given = {"input_ids": ids, "position_ids": torch.tensor([[3, 4, 9, 10]])}
    with torch.no_grad():
        assert torch.allclose(after(**given).logits, before(**given).logits, atol=1e-5)
        assert not torch.allclose(after(**given).logits, after(input_ids=ids).logits, atol=1e-2)


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("gemma", "model.embed_tokens"),
        ("bert", "bert.embeddings.word_embeddings"),
        ("llama", "model.layers.0.mlp.up_proj"),
        ("gpt2", "transformer.h.0.mlp.c_fc"),
        ("llama-bias", "lm_head"),
    ],
)
@pytest.mark.parametrize("text", ["int8", "nf4"])
def test_hooks_are_kept_and_removable(name: str, module: str, text: str) -> None:
    model = architectures.build(name).eval()
    seen: list[torch.Size] = []
    handles = [
        model.get_submodule(module).register_forward_pre_hook(lambda _, args: seen.append(args[0].shape)),
        model.get_submodule(module).register_forward_hook(lambda _, args, output: output * 2),
    ]
    plan = {m.name: text for m in weight_matrices(model) if m.tied_to is None}
    before = type(model.get_submodule(module))
    apply_precision(model, plan, compute_dtype=torch.float32)
    assert type(model.get_submodule(module)) is not before
    hooked = logits(name, model)
    assert len(seen) == 1
    for handle in handles:
        handle.remove()
    assert not torch.allclose(logits(name, model), hooked) and len(seen) == 1


class Indexed(nn.Embedding):
    def forward(self, input: Tensor) -> Tensor:
        return self.weight[input] + 1


class Doubled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Small(nn.Module):
    """One module per kind, most with a forward pass that no quantized module has."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.doubled, self.indexed = nn.Linear(8, 8), Doubled(8, 8), Indexed(10, 8)
        self.bounded = nn.Embedding(10, 8, max_norm=1.0)
        self.patched, self.normed = nn.Linear(8, 8), nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        self.patched.forward = lambda x: x  # type: ignore[method-assign]
        self.experts = nn.Parameter(torch.randn(3, 8, 8))
        self.attention = nn.MultiheadAttention(8, 2)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.indexed(ids) + self.bounded(ids)
        x = self.normed(self.patched(self.doubled(self.plain(x)))) @ self.experts[0]
        return self.attention(x, x, x)[0]


def test_module_with_an_unknown_forward_pass_is_kept_with_the_reason() -> None:
    model = Small()
    assert [m.name for m in weight_matrices(model)] == ["plain"]
    reasons = {one.name: one.reason for one in left_out(model)}
    assert reasons["doubled.weight"] == "the forward pass of Doubled is not that of Linear"
    assert reasons["indexed.weight"] == "the forward pass of Indexed does not call that of nn.Embedding"
    assert reasons["bounded.weight"] == "max_norm changes its rows at every look-up"
    assert reasons["patched.weight"] == "its forward pass was replaced"
    assert reasons["experts"] == "3 dimensions, in a Small"
    assert reasons["attention.out_proj.weight"] == "nn.MultiheadAttention multiplies by its weight itself"
    assert {one.name: one.numbers for one in left_out(model, ["attention"])}["experts"] == 192
    with pytest.raises(QuantError, match=r"'doubled', which stays in 16 bits \(the forward pass of Doubled"):
        apply_precision(model, {"doubled": "int8"}, compute_dtype=torch.float32)
    apply_precision(model, {"plain": "int8"}, compute_dtype=torch.float32)
    assert type(model.doubled) is Doubled and torch.isfinite(model(torch.arange(4)[None])).all()


def test_weight_shared_with_an_unknown_forward_pass_is_kept() -> None:
    model = nn.ModuleDict({"table": nn.Embedding(10, 8), "head": Doubled(8, 10, bias=False)})
    model["head"].weight = model["table"].weight
    assert weight_matrices(model) == []
    (left,) = left_out(model)
    assert left.name == "table.weight" and left.reason.startswith(
        "it shares its weight with head: the forward pass of Doubled"
    )


def test_lazy_weight_of_a_table_equals_its_decoded_matrix() -> None:
    table = QuantEmbedding.instead_of(
        nn.Embedding(10, 64), QuantWeight(torch.randn(10, 64), parse_format("int8"), torch.float32)
    )
    whole, ids = table.quantized.decode(), torch.tensor([[1, 9], [3, 3]])
    assert (
        table.weight.shape == whole.shape and table.weight.dtype == torch.float32 and len(table.weight) == 10
    )
    assert torch.equal(F.embedding(ids, table.weight), whole[ids]) and torch.equal(
        table.weight[ids], whole[ids]
    )
    assert torch.equal(table.weight.T, whole.T) and torch.equal(whole @ table.weight.T, whole @ whole.T)
    assert torch.equal(F.linear(whole, table.weight), F.linear(whole, whole))
    with pytest.raises(QuantError, match="cannot be changed in place"):
        table.weight.mul_(2)
    with pytest.raises(QuantError, match="cannot be changed in place"):
        table.weight[0] = 0


@pytest.mark.parametrize("name", ["gemma", "opt", "bart"])
def test_quantized_subclass_can_be_copied_and_pickled(name: str) -> None:
    model = quantized(name)
    expected = logits(name, model)
    assert torch.equal(logits(name, copy.deepcopy(model)), expected)
    assert torch.equal(logits(name, pickle.loads(pickle.dumps(model))), expected)


@pytest.mark.parametrize("name", ["gemma", "opt", *TABLES])
def test_saved_model_reloads_with_equal_output(name: str, tmp_path: Path) -> None:
    model = quantized(name)
    save_quantized(model, tmp_path)
    loaded = load_quantized(architectures.build(name).eval(), tmp_path, torch.float32)
    assert torch.equal(logits(name, loaded), logits(name, model))
    assert stored_bytes(loaded).total == stored_bytes(model).total


@pytest.mark.parametrize("name", TABLES)
def test_shared_table_is_one_item_and_stored_once(name: str) -> None:
    model = architectures.build(name)
    prefix = "" if name == "t5" else "model."
    sharing = {m.name: m.tied_to for m in weight_matrices(model) if m.tied_to is not None}
    owner = f"{prefix}shared"
    assert sharing == dict.fromkeys(
        (f"{prefix}encoder.embed_tokens", f"{prefix}decoder.embed_tokens", "lm_head"), owner
    )
    before = stored_bytes(model).total
    applied = apply_precision(model, {owner: "int8"}, compute_dtype=torch.float32)
    assert set(applied) == {owner, *sharing} and {done.format for done in applied.values()} == {"int8"}
    assert len({id(model.get_submodule(part).quantized) for part in (owner, *sharing)}) == 1
    rows, width = architectures.VOCABULARY, 64
    assert before - stored_bytes(model).total == 4 * rows * width - (rows * width + 4 * rows)


def test_weight_read_by_its_parent_is_decoded_by_plain_torch() -> None:
    """T5 casts to the dtype of ``wo.weight``, which is uint8 in bitsandbytes."""
    model = architectures.build("t5")
    read = readers_of_weights(model)
    assert {name.rpartition(".")[2] for name in read} == {"wo", "relative_attention_bias"}
    plan = {m.name: "nf4" for m in weight_matrices(model) if m.layer is not None and m.role != "embedding"}
    applied = apply_precision(model, plan, compute_dtype=torch.float32)
    backends = {name: done.backend for name, done in applied.items()}
    assert {backends[name] for name in backends if name.endswith(".wo")} == {"torch"}
    assert {backends[name] for name in backends if name.endswith(".wi")} == {"bitsandbytes"}
    assert not readers_of_weights(architectures.build("llama")) and not readers_of_weights(
        architectures.build("bert")
    )


def test_lookups_of_all_modules_that_share_a_table_are_counted() -> None:
    """Encoder and decoder look up rows of one table, which its owner never does."""
    model, given = architectures.build("bart-scaled").eval(), architectures.inputs("bart-scaled")

    def recorded(answering: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        return answering(**batch).logits, torch.tensor([0, 1, 0])

    found = measure_moments(Replay(model, [given], recorded), weight_matrices(model))
    ids_BT = given["input_ids"]
    counts_V = torch.bincount(
        torch.cat([ids_BT, shift_tokens_right(ids_BT, 0, 3)]).flatten(), minlength=architectures.VOCABULARY
    )
    expected_V = (counts_V + 1 / architectures.VOCABULARY) / (2 * ids_BT.numel() + 1)
    torch.testing.assert_close(found["model.shared"].row_O, expected_V)
    assert bool((found["model.shared"].column_I > 0).all())
    assert not {"model.encoder.embed_tokens", "model.decoder.embed_tokens"} & found.keys()
