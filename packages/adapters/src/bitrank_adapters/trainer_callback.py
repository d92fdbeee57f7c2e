"""AdaLoRA inside transformers' ``Trainer`` and TRL's ``SFTTrainer``.

PEFT leaves four things to the training loop, and a ``Trainer`` does none of them: ranks must be allocated
after each optimizer step, for the number of steps that is really taken; the moving averages must survive a
restart; and the orthogonality term, which PEFT adds to the loss of every micro-batch, must count once per
step and not be reported as the task's loss. :class:`AdaLoraCallback` does them.

Between steps PEFT's own ``rank_pattern`` is kept empty. With a pattern PEFT would cut the pruned triplets out
of every checkpoint; a resumed run needs them, since before the freeze they may come back.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.trainer_callback import TrainerCallback, TrainerControl, TrainerState
from transformers.training_args import TrainingArguments

from bitrank_adapters.adaptive_ranks import AdaLoraRanks
from bitrank_adapters.errors import AdapterError, BudgetMissed
from bitrank_adapters.export import save_as_lora
from bitrank_adapters.rank_hooks import keep_loss_plain
from bitrank_adapters.shrink import ShrinkingRanks

STATE_FILE = "adalora_state.safetensors"
_ADAPTER = "default"


class AdaLoraCallback(TrainerCallback):
    """Runs AdaLoRA on ``model`` while a ``Trainer`` trains it.

    ``model`` is the result of :func:`attach_adalora` for the number of optimizer steps that the ``Trainer``
    takes; give the same model to both. With ``shrink`` pruned ranks are removed from model and optimizer when
    ranks freeze.

    - After each optimizer step ranks are allocated; at the freeze their sum is compared with the budget.
    - The gradient of the orthogonality term is added once per optimizer step, before clipping. The reported
      loss, in training and evaluation, is the task's alone; logs have ``orthogonality`` and ``active_ranks``
      beside it.
    - Checkpoints contain the moving averages and masks (``adalora_state.safetensors``): a resumed run takes
      the same steps as an uninterrupted one.
    - The scale of each matrix follows its active rank (:class:`~bitrank_adapters.AdaLoraRanks`).
    - The saved adapter loads in stock PEFT: as AdaLoRA with its ranks, or as plain LoRA with ``shrink``.

    Logs reach ``trainer.state.log_history`` and the callbacks that come after this one.

    Example::

        model = attach_adalora(base, names, AdaLora(init_r=12, target_r=4), total_steps=500)
        trainer = Trainer(model, TrainingArguments("out", max_steps=500), train_dataset=data,
                          callbacks=[AdaLoraCallback(model)])
        trainer.train()

    Raises :class:`AdapterError` when ``model`` has no AdaLoRA adapter, and when training starts with another
    number of steps, in a way that hides gradients (fp16, DeepSpeed, FSDP), or with an optimizer other than
    torch's AdamW or Adam; :class:`BudgetMissed` when the ranks that training leaves do not sum to the budget.
    """

    def __init__(self, model: PeftModel, *, shrink: bool = False) -> None:
        kind = getattr(model, "peft_config", {}).get(_ADAPTER)
        if kind is None or kind.peft_type != "ADALORA":
            raise AdapterError(
                f"expected a model with an AdaLoRA adapter, got {type(model).__name__}; "
                "make it with attach_adalora"
            )
        self._model: Any = model
        self._config: Any = kind
        self._hook = ShrinkingRanks(model) if shrink else AdaLoraRanks(model)
        self._masks: dict[str, list[bool]] | None = None
        self._step = 0  # optimizer steps that made the weights that the model holds
        self._finished = False
        self._logs: dict[str, float] = {}
        self._cut = False
        keep_loss_plain(model)
        self._save, self._load = model.save_pretrained, model.load_adapter
        self._model.save_pretrained, self._model.load_adapter = self.save, self._load_adapter

    @property
    def ranks(self) -> dict[str, int]:
        """The active rank of every adapted matrix."""
        with self._pattern():
            return self._hook.ranks()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Raise if training would miss the budget or use other gradients."""
        if kwargs.get("model") is not self._model:
            raise AdapterError(
                "this callback belongs to another model; give the Trainer the one it was made with"
            )
        if state.max_steps != self._config.total_step:
            raise AdapterError(
                f"AdaLoRA is scheduled for {self._config.total_step} optimizer steps, the Trainer takes "
                f"{state.max_steps}; attach with total_steps={state.max_steps}, or set max_steps"
            )
        _check_gradients_are_plain(args)
        _check_moments_are_adams(kwargs.get("optimizer"))
        if isinstance(self._hook, ShrinkingRanks) and args.world_size > 1:
            raise AdapterError(
                "shrink replaces parameters, which several processes cannot follow; use one process"
            )
        self._finished = False

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Put the gradient of the orthogonality term where the micro-batches of this step add theirs."""
        penalty = self._hook.penalty()
        factors = [p for p in self._hook.factors if p.requires_grad]
        # Not ``backward()``: with several processes its hooks would start the exchange of gradients.
        for factor, grad in zip(factors, torch.autograd.grad(penalty, factors), strict=True):
            factor.grad = grad.contiguous() if factor.grad is None else factor.grad + grad
        self._logs = {"orthogonality": float(penalty.detach())}

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Allocate, while gradients are still there; let the optimizer follow parameters that were cut."""
        before = dict(self._model.named_parameters())
        self._step = state.global_step + 1
        with self._pattern():
            self._hook.after_step(self._step)
        scale_moments(kwargs["optimizer"], before, self._hook.rescaled() or {})
        resized = self._hook.resized()
        if resized is not None:
            self._cut = True
            follow(kwargs["optimizer"], before, dict(self._model.named_parameters()), resized)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Report the orthogonality term and the sum of active ranks beside the task's loss."""
        if logs is None or "loss" not in logs:
            return
        own = {**self._logs, "active_ranks": float(sum(self.ranks.values()))}
        logs.update(own)
        state.log_history[-1].update(own)  # a copy of ``logs`` that was made before

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Compare the ranks that training leaves with the budget."""
        if not self._hook.settled(self._step):
            raise BudgetMissed(
                f"training left the weights of step {self._step}, ranks are final from step "
                f"{self._hook.freeze_step}: {sum(self.ranks.values())} ranks are active, the budget is "
                f"{self._hook.budget}. Train longer; with load_best_model_at_end evaluate only after "
                "the freeze"
            )
        active = sum(self.ranks.values())
        if active != self._hook.budget:
            raise BudgetMissed(f"{active} ranks are active after training, the budget is {self._hook.budget}")
        self._finished = True

    def save(self, folder: str | Path, **kwargs: Any) -> None:
        """Save the adapter; it replaces the model's own ``save_pretrained``.

        While training this is a checkpoint: full-size factors and the state of the allocator. Afterwards it
        can be loaded by stock PEFT.
        """
        if self._finished and self._cut:
            save_as_lora(self._model, Path(folder))
        elif self._finished:
            kwargs.pop("state_dict", None)  # its Λ belongs to the scale of the active ranks
            with self._pattern(), self._hook.in_file_scale():
                self._save(str(folder), **kwargs)
        else:
            self._save(str(folder), **kwargs)
            if kwargs.get("is_main_process", True):
                self._write_state(Path(folder))

    def _write_state(self, folder: Path) -> None:
        with self._pattern():
            tensors, text = self._hook.state()
        stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(stored, folder / STATE_FILE, metadata={"step": str(self._step), "hook": text})

    def _load_adapter(self, model_id: str, adapter_name: str, *args: Any, **kwargs: Any) -> Any:
        """Restore the allocator first: weights and optimizer state need a shrunk model's final shapes."""
        if adapter_name == _ADAPTER:
            self._read_state(Path(model_id))
        return self._load(model_id, adapter_name, *args, **kwargs)

    def _read_state(self, folder: Path) -> None:
        if not (folder / STATE_FILE).is_file():
            raise AdapterError(
                f"{folder} has no {STATE_FILE}: it was saved after training or without AdaLoraCallback, so "
                "AdaLoRA cannot continue from it; resume from a checkpoint of a run with this callback"
            )
        with safe_open(folder / STATE_FILE, "pt", device=str(self._model.device)) as file:
            text, step = file.metadata()["hook"], int(file.metadata()["step"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        shrunk = bool(json.loads(text).get("shrunk"))
        if self._cut and not shrunk:
            raise BudgetMissed(
                f"{folder} is of step {step}, before ranks were final at step {self._hook.freeze_step}; "
                "the model is cut to its final ranks and cannot take it. "
                "With load_best_model_at_end evaluate only after the freeze"
            )
        if not self._cut:
            with self._pattern():
                self._hook.restore(tensors, text)
            self._hook.resized()  # there is no optimizer yet that would have to follow
        self._cut, self._step, self._finished = shrunk, step, False

    @contextmanager
    def _pattern(self) -> Iterator[None]:
        """Inside, PEFT's config has the masks of pruned ranks; outside, they are kept here."""
        self._config.rank_pattern = dict(self._masks) if self._masks else None
        try:
            yield
        finally:
            # A save removes the adapter's name from the keys of the dict that it was given.
            if not self._finished:
                self._masks = self._config.rank_pattern
            self._config.rank_pattern = None


def scale_moments(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], factors: Mapping[str, float]
) -> None:
    """Adapt AdamW's moments to parameters that were multiplied by ``factors``: gradients are divided by
    them."""
    for name, factor in factors.items():
        state = optimizer.state.get(parameters[name], {})
        for key, power in (("exp_avg", 1), ("exp_avg_sq", 2), ("max_exp_avg_sq", 2)):
            if key in state:
                state[key].div_(factor**power)


def follow(
    optimizer: torch.optim.Optimizer,
    before: Mapping[str, nn.Parameter],
    now: Mapping[str, nn.Parameter],
    resized: Mapping[str, tuple[int, Tensor]],
) -> None:
    """Replace the parameters ``before`` of ``optimizer`` by ``now``, by name, and shrink their moments.

    ``resized`` is the result of :meth:`ShrinkingRanks.resized`. Removed parameters leave the optimizer.
    """
    names = {id(parameter): name for name, parameter in before.items()}
    for group in optimizer.param_groups:
        kept = []
        for old in group["params"]:
            name = names[id(old)]
            state = optimizer.state.pop(old, {})
            if name not in now:
                continue
            if name in resized:
                state = _cut_moments(state, *resized[name])
            if state:
                optimizer.state[now[name]] = state
            kept.append(now[name])
        group["params"] = kept


def _cut_moments(state: Mapping[str, Any], axis: int, kept: Tensor) -> dict[str, Any]:
    """Shrink a tensor with the parameter's dimensions as the parameter; keep counts and scalars."""
    cut = {}
    for key, value in state.items():
        has_shape = isinstance(value, Tensor) and value.ndim == 2
        cut[key] = value.index_select(axis, kept.to(value.device)) if has_shape else value
    return cut


def _check_gradients_are_plain(args: TrainingArguments) -> None:
    """Importance is read from ``parameter.grad``: it must be there, whole and unscaled."""
    hidden = {"fp16": args.fp16, "deepspeed": bool(args.deepspeed), "fsdp": bool(args.fsdp)}
    for name, used in hidden.items():
        if used:
            raise AdapterError(
                f"AdaLoraCallback reads gradients, which {name} scales or shards; use bf16 or fp32 without it"
            )


def _check_moments_are_adams(optimizer: Any) -> None:
    """Moments are rescaled and cut with their parameters, which needs to know what an optimizer stores."""
    inner = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps the one that was given
    if inner is not None and not isinstance(inner, (torch.optim.AdamW, torch.optim.Adam)):
        raise AdapterError(
            f"AdaLoraCallback adapts the moments of torch's AdamW and Adam, got {type(inner).__name__} of "
            f"{type(inner).__module__.partition('.')[0]}; give optim='adamw_torch' or 'adamw_torch_fused'"
        )
