"""``from_pretrained`` with a plan equals applying the plan afterwards, and survives saving and loading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from bitrank_quant import QuantEmbedding, QuantError, QuantLinear, QuantWeight, parse_format, weight_matrices
from bitrank_quant.hf_quantizer import BitrankConfig
from transformers import (
    AutoConfig,
    BartConfig,
    BartForConditionalGeneration,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

IDS = torch.arange(1, 25).view(2, 12)
TOKENS = {"vocab_size": 96, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "num_key_value_heads": 2,
}
GEMMA: dict[str, Any] = {**TOKENS, **SIZES, "head_dim": 16}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**TOKENS, **SIZES)),
    "tied": lambda: LlamaForCausalLM(
        LlamaConfig(**TOKENS, **SIZES, tie_word_embeddings=True, attention_bias=True)
    ),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**TOKENS, n_embd=64, n_layer=2, n_head=4, n_positions=32)),
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**TOKENS, **SIZES, num_local_experts=4)),
    "gemma": lambda: GemmaForCausalLM(GemmaConfig(**GEMMA)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**GEMMA)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**GEMMA)),
    "modernbert": lambda: ModernBertForSequenceClassification(
        ModernBertConfig(
            **TOKENS, **SIZES, cls_token_id=1, sep_token_id=2, attention_bias=True, mlp_bias=True
        )
    ),
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(**TOKENS, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, decoder_start_token_id=0)
    ),
    "bart": lambda: BartForConditionalGeneration(
        BartConfig(
            **TOKENS,
            d_model=64,
            max_position_embeddings=32,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=128,
            decoder_ffn_dim=128,
        )
    ),
}
# None: the dtype of the folder, which is fp32. Of T5 in fp16, transformers computes some matrices in fp32.
DTYPES = (torch.bfloat16, torch.float32, torch.float16, None)
CASES = [(name, dtype) for name in MODELS for dtype in DTYPES if (name, dtype) != ("t5", torch.float16)]


@pytest.fixture(params=CASES, ids=str)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, torch.dtype | None]:
    """The folder of a model in fp32, and the dtype to load it in."""
    name, dtype = request.param
    torch.manual_seed(0)
    model = MODELS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))  # biases are zero
    model.save_pretrained(tmp_path / "plain")
    return tmp_path / "plain", dtype


def logits(model: Any) -> torch.Tensor:
    more = {"decoder_input_ids": IDS} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(IDS, **more).logits.float()


def load(folder: Path, dtype: torch.dtype | None = torch.bfloat16, **options: Any) -> Any:
    given = {} if dtype is None else {"dtype": dtype}
    kind = getattr(transformers, AutoConfig.from_pretrained(folder).architectures[0])
    return kind.from_pretrained(folder, **given, **options)


def plan_of(model: Any) -> dict[str, str]:
    matrices = [m for m in weight_matrices(model) if m.tied_to is None]
    formats = ["int4-g64", "nf4-dq", "int3-g64"]
    return {m.name: formats[n % 3] for n, m in enumerate(matrices)}


def assert_saves_and_loads_again(saved: Any, folder: Path, dtype: torch.dtype | None) -> None:
    """Names, values and dtypes of all tensors are equal, and so are logits."""
    saved.save_pretrained(folder)
    again = load(folder, dtype)
    assert again.config.quantization_config.plan == saved.config.quantization_config.plan
    got, want = again.state_dict(), saved.state_dict()
    assert got.keys() == want.keys()
    assert [
        key for key in want if not torch.equal(got[key], want[key]) or got[key].dtype != want[key].dtype
    ] == []
    assert torch.equal(logits(again), logits(saved))
    assert [name for name, tensor in again.named_buffers() if tensor.is_meta] == []


def decoded(module: Any, text: str) -> torch.Tensor:
    """The decoded weight of ``module`` after storing it as ``text``, in the layout of ``module``."""
    transposed = type(module).__name__ == "Conv1D"
    weight_OI = module.weight.T.contiguous() if transposed else module.weight
    stored_OI = QuantWeight(weight_OI.detach(), parse_format(text), module.weight.dtype).decode()
    return stored_OI.T if transposed else stored_OI


def test_loaded_with_a_plan_computes_with_the_decoded_matrices_of_the_loaded_model(
    case: tuple[Path, torch.dtype | None],
) -> None:
    folder, dtype = case
    expected = load(folder, dtype)
    plan = plan_of(expected)
    got = load(folder, dtype, quantization_config=BitrankConfig(plan))
    for name, text in plan.items():
        module = expected.get_submodule(name)
        module.weight.data.copy_(decoded(module, text))
    assert got.dtype == expected.dtype == (dtype or torch.float32)
    # Equal, apart from the order in which GPT-2's Conv1D adds its bias in fp16.
    torch.testing.assert_close(logits(got), logits(expected), rtol=0, atol=5e-4)
    for name in plan:
        module = got.get_submodule(name)
        assert isinstance(module, (QuantLinear, QuantEmbedding))
        assert module.quantized.compute_dtype == got.dtype


def test_saved_model_loads_again_with_the_same_codes(
    case: tuple[Path, torch.dtype | None], tmp_path: Path
) -> None:
    folder, dtype = case
    saved = load(folder, dtype, quantization_config=BitrankConfig(plan_of(load(folder))))
    assert_saves_and_loads_again(saved, tmp_path / "quantized", dtype)
    if dtype == torch.bfloat16:
        paths = (folder / "model.safetensors", tmp_path / "quantized" / "model.safetensors")
        plain, small = (path.stat().st_size for path in paths)
        assert small < plain / 2


def test_floats_other_than_the_dtype_are_stored_and_load_again(
    case: tuple[Path, torch.dtype | None], tmp_path: Path
) -> None:
    folder, dtype = case
    plain = load(folder, dtype)
    matrices = [m for m in weight_matrices(plain) if m.tied_to is None]
    plan = {m.name: ("bf16", "fp16", "fp32")[n % 3] for n, m in enumerate(matrices)}
    saved = load(folder, dtype, quantization_config=BitrankConfig(plan))
    for name, text in plan.items():
        module, fmt = saved.get_submodule(name), parse_format(text)
        stored = module.quantized.tensors["weight"] if hasattr(module, "quantized") else module.weight
        assert stored.dtype == fmt.dtype
        assert torch.equal(module.weight + 0, decoded_from(plain.get_submodule(name), text)), name
    assert_saves_and_loads_again(saved, tmp_path / "quantized", dtype)


def decoded_from(module: Any, text: str) -> torch.Tensor:
    """The weight of ``module`` as a linear layer or an embedding that stores ``text`` returns it."""
    transposed = type(module).__name__ == "Conv1D" and parse_format(text).dtype != module.weight.dtype
    return decoded(module, text).T if transposed else decoded(module, text)


def test_plan_for_another_model_is_refused_by_name(case: tuple[Path, torch.dtype | None]) -> None:
    with pytest.raises(QuantError, match=r"names 'model.layers.9.mlp.up_proj', which is no weight matrix"):
        load(*case, quantization_config=BitrankConfig({"model.layers.9.mlp.up_proj": "int8"}))
