"""AdaLoRA inside the real ``Trainer`` and ``SFTTrainer``: its schedule, its budget, its checkpoints, its
loss.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from bitrank_adapters import AdaLora, AdaLoraCallback, AdapterError, BudgetMissed, adapted, attach_adalora
from peft import PeftModel
from transformers import Trainer, TrainerCallback, TrainingArguments

STEPS = 20
SCHEDULE = AdaLora(6, 2, every=2)


def adalora(make, blocks, name="llama", steps=STEPS, schedule=SCHEDULE):
    return attach_adalora(make(name), blocks[name], schedule, total_steps=steps, seed=1)


def rows(count=48):
    source = torch.Generator().manual_seed(3)
    ids_NT = torch.randint(3, 96, (count, 9), generator=source)
    return [{"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row} for row in ids_NT]


TRAINING = {
    "max_steps": STEPS,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "report_to": [],
    "use_cpu": True,
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}


def trainer_of(model, folder: Path, callbacks, **options) -> Trainer:
    arguments = TrainingArguments(
        str(folder), **{**TRAINING, "weight_decay": 0.01, "save_steps": 5, **options}
    )
    return Trainer(model, arguments, train_dataset=rows(), eval_dataset=rows(8), callbacks=callbacks)


def trained(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def assert_equal_numbers(one, other) -> None:
    first, second = trained(one), trained(other)
    assert list(first) == list(second)
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert different == []


@pytest.mark.parametrize("shrink", [False, True])
def test_active_ranks_end_at_the_budget(make, blocks, tmp_path, shrink: bool) -> None:
    model = adalora(make, blocks)
    callback = AdaLoraCallback(model, shrink=shrink)
    trainer_of(model, tmp_path, [callback]).train()
    assert sum(callback.ranks.values()) == 2 * len(blocks["llama"])
    held = {name: int((layer.lora_E["default"] != 0).sum()) for name, layer in adapted(model)}
    assert held == {name: rank for name, rank in callback.ranks.items() if rank or not shrink}
    sizes = {name: len(layer.lora_E["default"]) for name, layer in adapted(model)}
    assert sizes == (held if shrink else dict.fromkeys(blocks["llama"], 6))


def test_without_the_callback_no_rank_is_pruned(make, blocks, tmp_path) -> None:
    """Guards the test above: the ``Trainer`` alone leaves AdaLoRA at its initial ranks."""
    model = adalora(make, blocks)
    trainer_of(model, tmp_path, []).train()
    assert {int((layer.lora_E["default"] != 0).sum()) for _, layer in adapted(model)} == {6}


@pytest.mark.parametrize("shrink", [False, True])
@pytest.mark.parametrize("at", [5, 10, 15])  # warm-up ends at 2, ranks freeze after 12
def test_a_resumed_run_equals_an_uninterrupted_one(make, blocks, tmp_path, at: int, shrink: bool) -> None:
    whole = adalora(make, blocks)
    first = AdaLoraCallback(whole, shrink=shrink)
    trainer_of(whole, tmp_path, [first]).train()
    resumed = adalora(make, blocks)
    second = AdaLoraCallback(resumed, shrink=shrink)
    trainer_of(resumed, tmp_path, [second]).train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{at}"))
    assert second.ranks == first.ranks
    assert_equal_numbers(whole, resumed)


def test_a_checkpoint_without_the_averages_is_refused(make, blocks, tmp_path) -> None:
    model = adalora(make, blocks)
    trainer_of(model, tmp_path, [AdaLoraCallback(model)]).train()
    (tmp_path / "checkpoint-5" / "adalora_state.safetensors").unlink()
    again = adalora(make, blocks)
    trainer = trainer_of(again, tmp_path, [AdaLoraCallback(again)])
    with pytest.raises(AdapterError, match=r"has no adalora_state.safetensors.*resume from a checkpoint"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))


def test_the_logged_loss_is_the_task_loss_and_the_orthogonality_term_stands_beside(
    make, blocks, tmp_path
) -> None:
    model = adalora(make, blocks)
    callback = AdaLoraCallback(model)
    trainer = trainer_of(model, tmp_path, [callback], max_steps=STEPS)
    before = trainer.evaluate()["eval_loss"]
    with model.disable_adapter(), torch.no_grad():
        batch = {key: torch.stack([row[key] for row in rows(8)]) for key in ("input_ids", "labels")}
        task_loss = float(model.base_model.model(**batch).loss)
    assert before == pytest.approx(task_loss, abs=1e-5)  # P starts at zero, so the adapter does nothing yet
    penalty = float(callback._hook.penalty().detach())
    assert penalty > 0.1
    trainer.train()
    logs = [line for line in trainer.state.log_history if "loss" in line]
    assert logs[0]["orthogonality"] == pytest.approx(penalty)
    assert logs[0]["active_ranks"] == 6 * len(blocks["llama"])
    assert logs[-1]["active_ranks"] == 2 * len(blocks["llama"])


def test_the_orthogonality_term_counts_once_per_step_however_many_micro_batches(
    make, blocks, tmp_path
) -> None:
    whole = adalora(make, blocks)
    trainer_of(whole, tmp_path / "1", [AdaLoraCallback(whole)], save_strategy="no", max_grad_norm=0.0).train()
    parts = adalora(make, blocks)
    split = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_grad_norm": 0.0}
    trainer_of(parts, tmp_path / "2", [AdaLoraCallback(parts)], save_strategy="no", **split).train()
    one, two = trained(whole), trained(parts)
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 2e-3


@pytest.mark.parametrize("shrink", [False, True])
def test_the_saved_adapter_loads_in_stock_peft_with_the_same_logits(
    make, blocks, ids, tmp_path, shrink
) -> None:
    model = adalora(make, blocks)
    trainer = trainer_of(model, tmp_path, [AdaLoraCallback(model, shrink=shrink)])
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    loaded = PeftModel.from_pretrained(make("llama"), tmp_path / "adapter").eval()
    with torch.no_grad():
        ours, theirs = model.eval()(input_ids=ids).logits, loaded(input_ids=ids).logits
        plain = make("llama").eval()(input_ids=ids).logits
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert not torch.allclose(ours, plain, atol=1e-2)
    assert loaded.peft_config["default"].peft_type == ("LORA" if shrink else "ADALORA")


def test_another_number_of_steps_is_refused_with_the_right_one(make, blocks, tmp_path) -> None:
    model = adalora(make, blocks, steps=10 * STEPS)
    with pytest.raises(
        AdapterError, match="scheduled for 200 optimizer steps, the Trainer takes 20; attach with total_st"
    ):
        trainer_of(model, tmp_path, [AdaLoraCallback(model)]).train()


def test_loss_scaling_is_refused(make, blocks, tmp_path) -> None:
    model = adalora(make, blocks)
    callback = AdaLoraCallback(model)
    trainer = trainer_of(model, tmp_path, [callback])
    trainer.args.fp16 = True
    with pytest.raises(AdapterError, match="which fp16 scales"):
        callback.on_train_begin(trainer.args, _StateOf(STEPS), trainer.control, model=model)


@pytest.mark.parametrize("shrink", [False, True])
@pytest.mark.parametrize(("optim", "kind"), [("adafactor", "Adafactor"), ("sgd", "SGD")])
def test_optimizer_with_other_moments_is_refused_before_the_first_step(
    make, blocks, tmp_path, optim: str, kind: str, shrink: bool
) -> None:
    model = adalora(make, blocks)
    before = trained(model)
    trainer = trainer_of(model, tmp_path, [AdaLoraCallback(model, shrink=shrink)], optim=optim)
    with pytest.raises(AdapterError, match=f"moments of torch's AdamW and Adam, got {kind} of .*adamw_torch"):
        trainer.train()
    assert trainer.state.global_step == 0
    assert all(torch.equal(value, before[name]) for name, value in trained(model).items())


class _StateOf:
    def __init__(self, max_steps: int) -> None:
        self.max_steps = max_steps


def test_a_model_without_adalora_is_refused(make) -> None:
    with pytest.raises(AdapterError, match="expected a model with an AdaLoRA adapter, got LlamaForCausalLM"):
        AdaLoraCallback(make("llama"))


class _StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self._last = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self._last


def test_training_that_stops_before_the_freeze_misses_the_budget_with_an_alarm(
    make, blocks, tmp_path
) -> None:
    model = adalora(make, blocks)
    trainer = trainer_of(model, tmp_path, [AdaLoraCallback(model), _StopAt(7)])
    with pytest.raises(BudgetMissed, match="weights of step 7, ranks are final from step 12"):
        trainer.train()


@pytest.mark.parametrize("shrink", [False, True])
def test_a_best_checkpoint_from_before_the_freeze_is_an_alarm(make, blocks, tmp_path, shrink: bool) -> None:
    model = adalora(make, blocks)
    # The loss falls, so the highest is that of the first checkpoint.
    options = {
        "eval_strategy": "steps",
        "eval_steps": 5,
        "load_best_model_at_end": True,
        "greater_is_better": True,
    }
    options["metric_for_best_model"] = "loss"
    trainer = trainer_of(model, tmp_path, [AdaLoraCallback(model, shrink=shrink)], **options)
    with pytest.raises(BudgetMissed, match="evaluate only after the freeze"):
        trainer.train()


def test_the_best_checkpoint_after_the_freeze_is_taken(make, blocks, tmp_path) -> None:
    model = adalora(make, blocks)
    options = {"eval_strategy": "steps", "eval_steps": 15, "save_steps": 15, "load_best_model_at_end": True}
    callback = AdaLoraCallback(model)
    trainer_of(model, tmp_path, [callback], **options).train()
    assert sum(callback.ranks.values()) == 2 * len(blocks["llama"])


def test_supervised_fine_tuning_of_trl_ends_at_the_budget(make, blocks, tmp_path) -> None:
    trl = pytest.importorskip("trl", reason="trl is not installed")
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    data = datasets.Dataset.from_list([{"input_ids": row["input_ids"].tolist()} for row in rows()])
    model = adalora(make, blocks)
    callback = AdaLoraCallback(model)
    arguments = trl.SFTConfig(str(tmp_path), **TRAINING, gradient_checkpointing=False, bf16=False)
    trainer = trl.SFTTrainer(
        model, arguments, train_dataset=data, processing_class=_tokenizer(), callbacks=[callback]
    )
    trainer.train()
    assert sum(callback.ranks.values()) == 2 * len(blocks["llama"])
    logs = [line for line in trainer.state.log_history if "loss" in line]
    assert logs[-1]["active_ranks"] == 2 * len(blocks["llama"])
    # The random model knows nothing: log 96 nats, and the orthogonality term is not among them.
    assert logs[0]["loss"] == pytest.approx(math.log(96), abs=0.05) and logs[0]["orthogonality"] > 0.1


def _tokenizer():
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = {f"w{number}": number for number in range(96)}
    made = Tokenizer(WordLevel(words, unk_token="w3"))
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="w0", eos_token="w2", unk_token="w3")
