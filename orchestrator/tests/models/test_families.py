"""Every architecture of the guide, as a small checkpoint in hub format, from its files to stock PEFT."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from bitrank.models.load import open_model
from bitrank.planning.costs import Choices
from bitrank.planning.make_plan import PlanRequest, make_plan
from bitrank.process.compute import Compute
from bitrank.run.build import build_model
from bitrank.run.plans import make_plans
from bitrank.spec.configs import Config, find_config
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import PROFILES
from bitrank.spec.rules import FixedRank, GivenBits, _in_block
from bitrank.spec.run_spec import RunSpec
from bitrank.spec.task_kinds import task_kind
from bitrank_quant import FORMATS, stored_weight, weight_matrices
from peft import PeftModel
from small_models import WORDS, write
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

CLASSIFICATION, LANGUAGE_MODELLING = "classification", "language-modelling"
SEQUENCE_TO_SEQUENCE = "sequence-to-sequence"
# Name in the guide: (name of the small checkpoint, kind of task)
FAMILIES = {
    "BERT": ("bert", CLASSIFICATION),
    "DistilBERT": ("distilbert", CLASSIFICATION),
    "RoBERTa": ("roberta", CLASSIFICATION),
    "MPNet": ("mpnet", CLASSIFICATION),
    "ModernBERT": ("modernbert", CLASSIFICATION),
    "GPT-2": ("gpt2", LANGUAGE_MODELLING),
    "GPT-Neo": ("gptneo", LANGUAGE_MODELLING),
    "OPT": ("opt", LANGUAGE_MODELLING),
    "Llama": ("llama", LANGUAGE_MODELLING),
    "Mistral": ("mistral", LANGUAGE_MODELLING),
    "Qwen2": ("qwen2", LANGUAGE_MODELLING),
    "Qwen3": ("qwen3", LANGUAGE_MODELLING),
    "Gemma": ("gemma", LANGUAGE_MODELLING),
    "Phi-3": ("phi3", LANGUAGE_MODELLING),
    "T5": ("t5", SEQUENCE_TO_SEQUENCE),
    "BART": ("bart", SEQUENCE_TO_SEQUENCE),
}
GUIDE = Path(__file__).resolve().parents[3] / "docs/guides/own-data-and-models.md"


@dataclass(frozen=True)
class Family:
    """A checkpoint in ``folder`` and its kind of task."""

    name: str
    kind: str
    folder: Path

    def spec(self, fused: bool = True, **changes: Any) -> RunSpec:
        values = {"config": "B-Q4", "task": "toy", "model": str(self.folder), "kind": self.kind, "steps": 1}
        return RunSpec(**{**values, "dtype": "fp32", "device": "cpu", "fused": fused, **changes})

    def built(self, config: Config, fused: bool = True) -> Any:
        spec = self.spec(fused)
        return build_model(spec, Compute.of(spec), config, 2, 1)

    def stock(self) -> Any:
        """The checkpoint by transformers alone, with the task's head."""
        auto = getattr(transformers, task_kind(self.kind).auto_model)
        options = {"num_labels": 2} if task_kind(self.kind).new_head else {}
        return auto.from_pretrained(self.folder, dtype=torch.float32, **options).eval()


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Family]:
    """Checkpoints by their name in the guide, each written once."""
    made: dict[str, Family] = {}

    def get(title: str) -> Family:
        if title not in made:
            name, kind = FAMILIES[title]
            folder = write(tmp_path_factory.mktemp("models") / name, name)
            made[title] = Family(name, kind, folder)
        return made[title]

    return get


def inputs(kind: str) -> dict[str, Tensor]:
    """Three right-padded sequences; with a decoder's input if it has one."""
    generator = torch.Generator().manual_seed(2)
    ids_BT = torch.randint(4, len(WORDS), (3, 9), generator=generator)
    mask_BT = torch.ones_like(ids_BT)
    ids_BT[1, 6:], mask_BT[1, 6:] = 0, 0
    given = {"input_ids": ids_BT, "attention_mask": mask_BT}
    if kind == SEQUENCE_TO_SEQUENCE:
        given["decoder_input_ids"] = torch.randint(4, len(WORDS), (3, 5), generator=generator)
    return given


def logits(model: nn.Module, kind: str) -> Tensor:
    given = inputs(kind)
    with torch.no_grad():
        found: Tensor = model.eval()(**given).logits.float()
    if kind == LANGUAGE_MODELLING:
        found = found[given["attention_mask"].bool()]
    return found


def with_random_adapters(model: nn.Module) -> None:
    """Adapters of another value than zero; they and trained heads in bf16 numbers, as a file stores them."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
            if parameter.requires_grad:
                parameter.copy_(parameter.bfloat16())


def decoded_into(plain: nn.Module, quantized: nn.Module) -> None:
    """Write the decoded weights of ``quantized`` into ``plain``, the same model without quantization.

    Heads that are trained whole are not quantized and stay as they are.
    """
    for matrix in weight_matrices(plain):
        source = quantized.get_submodule(matrix.name)
        if hasattr(source, "modules_to_save"):
            continue
        weight_OI = stored_weight(getattr(source, "base_layer", source))
        target: Any = plain.get_submodule(matrix.name)
        with torch.no_grad():
            target.weight.copy_(weight_OI.T if isinstance(target, Conv1D) else weight_OI)


def close(found: Tensor, expected: Tensor, tolerance: float = 3e-4) -> bool:
    return float((found - expected).norm()) <= tolerance * float(expected.norm())


@pytest.mark.parametrize("title", FAMILIES)
def test_fused_plain_and_stock_models_with_an_adapter_are_equal(
    title: str, family: Callable[[str], Family], tmp_path: Path
) -> None:
    one = family(title)
    config = find_config("B-Q4")
    fused, plain = one.built(config), one.built(config, fused=False)
    for built in (fused, plain):
        with_random_adapters(built.model)
    expected = logits(plain.model, one.kind)
    assert expected.isfinite().all() and close(logits(fused.model, one.kind), expected)
    fused.hook.save(tmp_path / "adapter")
    stock = one.stock()
    decoded_into(stock, plain.model.get_base_model())
    loaded = PeftModel.from_pretrained(stock, str(tmp_path / "adapter"))
    assert close(logits(loaded, one.kind), expected)


@pytest.mark.parametrize("title", FAMILIES)
def test_a_plan_names_every_matrix_of_the_blocks(title: str, family: Callable[[str], Family]) -> None:
    one = family(title)
    loaded = open_model(one.spec(), 2, "cpu", torch.float32)
    plans = make_plans(find_config("B-Q4"), loaded)
    blocks = [m for m in plans.quantizable if _in_block(m)]
    assert len(blocks) >= 8 and {plans.formats[m.name] for m in blocks} == {"nf4-dq"}
    assert set(plans.ranks) == {m.name for m in blocks if m.adaptable}
    linear = [n for n, m in loaded.model.named_modules() if isinstance(m, nn.Linear | Conv1D)]
    named = {m.name for m in weight_matrices(loaded.model)}
    assert set(linear) <= named | set(loaded.trained_modules), "a matrix that no plan can name"
    assert plans.left == []


@pytest.mark.slow
@pytest.mark.parametrize("text", FORMATS)
@pytest.mark.parametrize("title", FAMILIES)
def test_every_format_gives_the_logits_of_its_decoded_weights(
    title: str, text: str, family: Callable[[str], Family]
) -> None:
    one = family(title)
    loaded = open_model(one.spec(), 2, "cpu", torch.float32)
    bits = {m.name: text for m in make_plans(find_config("B-FP"), loaded).quantizable}
    built = one.built(Config(GivenBits(bits), FixedRank(2), "joint"))
    stock = one.stock()
    decoded_into(stock, built.model.get_base_model())
    for head in loaded.trained_modules:
        trained = built.model.get_base_model().get_submodule(head)
        stock.get_submodule(head).load_state_dict(trained.modules_to_save["default"].state_dict())
    tolerance = 0.1 if text == "llm-int8" else 3e-4  # LLM.int8() quantizes activations too
    assert close(logits(built.model, one.kind), logits(stock, one.kind), tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("title", FAMILIES)
def test_a_measured_plan_fits_its_budget(title: str, family: Callable[[str], Family]) -> None:
    one = family(title)
    task = {
        CLASSIFICATION: "toy_sentences",
        LANGUAGE_MODELLING: "toy_articles",
        SEQUENCE_TO_SEQUENCE: "toy_summaries",
    }[one.kind]
    spec = make_spec(PROFILES["smoke"], "B-FP", task, {"model": str(one.folder)})
    made = make_plan(spec, PlanRequest("12bits", "exact", Choices(("int4-g64", "bf16"), ranks=(2, 4))))
    assert made.plan.nbytes <= made.problem.budget
    assert {made.plan.precision[m.name] for m in made.sizes.matrices.values()} == {"int4-g64", "bf16"}


def test_the_guide_lists_these_architectures() -> None:
    rows = re.findall(r"^\| ([\w-]+) \| `([\w-]+)` \| (.+?) \|", GUIDE.read_text(encoding="utf-8"), re.M)
    listed = {title: (model_type, kind) for title, model_type, kind in rows if title in FAMILIES}
    from small_models import ARCHITECTURES

    expected = {
        title: (ARCHITECTURES[name].config.model_type, kind) for title, (name, kind) in FAMILIES.items()
    }
    assert listed == expected
