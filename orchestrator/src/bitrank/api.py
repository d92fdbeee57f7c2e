"""The Python interface: plan a model, apply the plan to it in memory, attach adapters, read runs.

The functions share their code with the command line; ``import bitrank`` loads it on first use. A plan is a
``dict`` that ``json`` can write, with ``precision`` (module → format), ``ranks`` (module → rank), and the
planner's predictions. Module names are those of ``model.named_modules()``.

    import bitrank

    plan = bitrank.plan("minilm", "movie_sentences", "9MB")
    bitrank.apply(model, plan)                 # quantizes the matrices of a transformers model in place
    adapted = bitrank.attach(model, plan)      # a PEFT model with the plan's ranks, for any training loop
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import torch
from bitrank_adapters import AdapterScale
from bitrank_quant import (
    Applied,
    Encoding,
    apply_precision,
    left_out,
    store_in_16_bits,
    weight_matrices,
)
from torch import nn

from bitrank.arguments import (
    check_apply_arguments,
    check_attach_arguments,
    check_attachable,
    check_plan_arguments,
    given_plan,
)
from bitrank.export.registry import check_runtime
from bitrank.models.architectures import check_adaptable
from bitrank.models.quantized_checkpoints import is_quantized, refuse_quantized_model, refuse_saving
from bitrank.planning.bits_of_budgets import measured_plan
from bitrank.planning.in_memory import check_names, folder_of, new_heads, plannable, restored_threads
from bitrank.planning.make_plan import PlanResult
from bitrank.planning.plan_options import PLAN_DEFAULTS, PlanOptions, request_from_options
from bitrank.run.quantizers import encoder_of, stored_formats
from bitrank.spec.config import Config
from bitrank.spec.configs import config_of_plan
from bitrank.spec.make_spec import make_spec, refuse
from bitrank.spec.plan_file import check_plan_data, plan_data, read_plan
from bitrank.spec.plan_file import save_plan as _save_plan
from bitrank.spec.profiles import find_profile
from bitrank.spec.rule_interface import AttachOptions
from bitrank.spec.rules import check_adapted_shapes
from bitrank.spec.run_spec import TUNED, RunSpec

if TYPE_CHECKING:
    from bitrank_analysis import ReadOnlyStore
    from peft import PeftModel
    from torch.utils.data import DataLoader

__all__ = ["apply", "attach", "load_plan", "open_store", "plan", "save_plan"]

Plan = dict[str, Any]
# Fields of the planned run that arguments of `plan` decide, or the plan itself.
_BY_ARGUMENT = {
    "model": "give the model as the first argument",
    "plan": "this function makes a plan; leave it out",
    "init": "costs are those of the argument init; give init=",
    "init_rounds": "costs are those of one round; give it to the run of the plan",
    **dict.fromkeys(TUNED, "the planner chooses the ranks; restrict them with ranks=, max_rank= or pins="),
}


def plan(
    model: str | Path | nn.Module,
    task: str | Path,
    budget: str,
    *,
    tokenizer: Any = None,
    on_progress: Callable[[str], None] = lambda _: None,
    **options: Unpack[PlanOptions],
) -> Plan:
    """Choose a format and a rank for every matrix of ``model`` within ``budget``, without training it.

    Sensitivities are measured on a sample of ``task`` (minutes), and cached per model and task.

    Args:
        model: the name of an embedded model (``minilm``, ``smollm2``), a hub id, a folder in hub format, or a
            transformers model in memory, with float weights and its task's head. A model in memory is saved
            to a temporary folder for the measurement, and does not change.
        task: a task's name (``movie_sentences``) or the path of your own file or folder of files.
        budget: bytes of model and adapters together (``9MB``), stored bits per base parameter
            (``3.5bits``), or the bytes of a config on this model (``=B-Q4``).
        tokenizer: tokenizer of a model in memory; default: the one at ``model.name_or_path``.
        on_progress: called with the name of each matrix during the measurement.
        **options: the keyword arguments below; :data:`PLAN_DEFAULTS` has their defaults.

            - ``planner``: one of the names of ``bitrank plan --planner``.
            - ``init``: initialization of the adapters. :func:`attach` supports ``default`` (zero). With
              ``lq-lora``, rank reduces the quantization error, and the plan is for ``bitrank run --plan``.
            - ``quantizer``: the choice of codes and scales that the run will use.
            - ``learning``: ``probe`` adds the cost of what a limited rank does not learn (a short training).
            - ``formats``, ``ranks``: formats and ranks to choose from (rank 0: no adapter); default: those of
              ``bitrank plan``.
            - ``max_rank``: the largest rank.
            - ``ties``: groups of matrices that share a format, ``("qkv", "gate-up")``.
            - ``runtime``: only formats that this runtime can store in the planned bytes, as ``bitrank plan
              --for``.
            - ``pins``: part of a module name → (format or None, rank or None), such as
              ``{"down_proj": ("int8", None)}``.
            - ``max_trainable``: maximum trainable parameters of the adapters.
            - ``profile``: defaults for this kind of task.
            - ``settings``: fields of the spec of the planned run, such as ``{"max_length": 256}``; not those
              that the other arguments decide.

    Returns:
        The plan as plain data: ``precision``, ``ranks``, ``bytes`` and ``budget`` (bytes),
        ``predicted_added_loss`` (nats), ``proven_gap`` (relative), ``trainable`` (parameters), ``shapes``
        (out, in), ``planning_seconds``.

    Raises:
        UserError: a model, task, budget or setting does not exist or is invalid, or another argument has a
            wrong type. Errors of the packages also apply (:class:`~bitrank_planner.PlanError` when no plan
            fits the budget).

    Example:
        >>> import bitrank
        >>> plan = bitrank.plan("tiny-bert", "toy_sentences", "120kB", profile="smoke")
        >>> plan["bytes"] <= plan["budget"] == 120_000
        True
    """
    if unexpected := set(options) - set(PLAN_DEFAULTS):
        raise TypeError(f"plan() got an unexpected keyword argument {min(unexpected)!r}")
    chosen: PlanOptions = {**PLAN_DEFAULTS, **options}
    check_plan_arguments(budget, chosen)
    settings = chosen["settings"] or {}
    refuse(settings, _BY_ARGUMENT | ({"quantizer": "give quantizer= once"} if "quantizer" in options else {}))
    request = request_from_options(budget, chosen)
    with folder_of(model, tokenizer) as folder, restored_threads():
        given = {"quantizer": chosen["quantizer"], **settings, "model": folder}
        spec = make_spec(find_profile(chosen["profile"]), "B-FP", str(task), given)
        if isinstance(model, nn.Module):
            check_names(model, spec)
        check_runtime(request.runtime, spec)
        return _as_data(measured_plan(spec, request, on_progress), chosen["init"], spec.quantizer)


def apply(
    model: nn.Module,
    plan: Mapping[str, Any],
    *,
    quant_backend: str = "auto",
    compute_dtype: torch.dtype | None = None,
    quantizer: str | None = None,
    inputs: Sequence[Mapping[str, Any]] | DataLoader[Any] = (),
) -> dict[str, Applied]:
    """Store the matrices of a transformers ``model`` in the plan's formats, in place.

    Matrices that the plan does not name are stored in bf16, as in a run. The heads of a classifier, which are
    trained whole, do not change. A head tied to an embedding shares the embedding's format.

    Args:
        model: a transformers model with float weights, on its compute device.
        plan: from :func:`plan` or :func:`load_plan`; ``{"precision": {module: format}}`` is enough.
        quant_backend: ``auto`` selects for each format the first backend that supports it on this machine;
            other values as in ``bitrank run --set quant_backend=…``.
        compute_dtype: dtype of inputs and outputs of quantized layers; default: the model's dtype.
        quantizer: a key of ``bitrank_quant.QUANTIZERS``, the choice of codes and scales; default: the plan's.
        inputs: a list or DataLoader of calibration batches, arguments of ``model(**batch)`` on its device,
            for a quantizer that reduces errors at the inputs of each layer; ``attention_mask`` marks padding.

    Returns:
        Format and backend of every matrix. Gradients flow through quantized layers to their inputs, not to
        their weights. ``save_pretrained`` of a quantized model then raises :class:`UserError`.

    Raises:
        UserError: the plan was made for other shapes, or is not a plan; the quantizer needs ``inputs``, or
            none reaches a matrix; the model is quantized or has adapters; an argument has a wrong type.
        QuantError: a format or quantizer does not exist or does not fit, or the model lacks a module. The
            model does not change, as for a :class:`UserError`.

    Example:
        >>> import bitrank
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
        >>> model = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=1, vocab_size=100))
        >>> done = bitrank.apply(model, {"precision": {"model.layers.0.mlp.up_proj": "int4-g64"}})
        >>> done["model.layers.0.mlp.up_proj"].format
        'int4-g64'
    """
    batches = check_apply_arguments(compute_dtype, inputs)
    data = given_plan(plan, "ranks")
    config = config_of_plan(data, "the plan")
    refuse_quantized_model(model, "apply the plan to a newly loaded one", "apply the plan to its base")
    heads = new_heads(model)
    check_adaptable(type(model).__name__, model)
    formats = config.precision.assign_formats(plannable(model, heads))
    dtype = compute_dtype or next(p.dtype for p in model.parameters() if p.is_floating_point())
    own = config.settings.get("quantizer", RunSpec.quantizer)
    stored = stored_formats(formats, quant_backend)
    encode = encoder_of(model, quantizer or data.get("quantizer", own), batches, stored)
    applied = apply_precision(
        model,
        formats,
        quant_backend=quant_backend,
        compute_dtype=dtype,
        encoding=Encoding(encode=encode),
    )
    store_in_16_bits(model, left_out(model, heads))
    if is_quantized(model):
        model.save_pretrained = refuse_saving  # type: ignore[assignment]
    return applied


def attach(
    model: nn.Module,
    plan: Mapping[str, Any],
    *,
    scale: float | AdapterScale | None = None,
    heads: list[str] | None = None,
    total_steps: int | None = None,
    init: str | None = None,
    seed: int = 0,
) -> PeftModel:
    """Attach LoRA adapters with the plan's ranks; the base is frozen, adapters train in fp32.

    Args:
        model: the transformers model, quantized with :func:`apply` or not. PEFT changes it in place.
        plan: from :func:`plan` or :func:`load_plan`; uses ``ranks`` (module → rank), ``adaptive``,
            ``rank_rule`` or ``rank_rule_of``.
        scale: factor on the output of an adapter of rank 8, α / 8; default: that of runs. Other ranks
            follow the policy of runs with this plan; a :class:`~bitrank_adapters.AdapterScale` names another.
        heads: modules to train whole; default: the head of a classifier.
        total_steps: optimizer steps of the training; needed if the plan is ``adaptive`` (AdaLoRA). Then give
            :class:`~bitrank_adapters.AdaLoraCallback` to transformers' ``Trainer``.
        init: initialization; default: the plan's. Only ``default`` (zero) can be attached: the quantization
            error is available only while ``bitrank run`` quantizes the base.
        seed: seed of the adapters' random factor.

    Returns:
        A PEFT model: train it with any loop, save it with ``save_pretrained``. The plan's bytes count
        adapters in bf16: call :func:`bitrank_adapters.round_adapter` before the last evaluation.

    Raises:
        UserError: the plan's adapters start from the quantization error, an adaptive plan has no
            ``total_steps``, its rank rule needs a run (such as ``train-then-reduce``), it was made for other
            shapes, or an argument has a wrong type.
        AdapterError: a rank does not fit its matrix, the model lacks a module, or the plan has no ranks.

    Example:
        >>> import bitrank
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
        >>> model = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=1, vocab_size=100))
        >>> adapted = bitrank.attach(model, {"ranks": {"model.layers.0.mlp.up_proj": 4}})
        >>> sum(p.numel() for p in adapted.parameters() if p.requires_grad) == 4 * (64 + 128)
        True
    """
    check_attach_arguments(None if isinstance(scale, AdapterScale) else scale, heads, total_steps, seed)
    data = given_plan(plan, "precision")
    config = config_of_plan(data, "the plan")
    chosen_init = init or data.get("init", config.settings.get("init", "default"))
    check_attachable(data, config, chosen_init, total_steps)
    check_adapted_shapes(data, plannable(model, new_heads(model)))
    blocks = [m for m in weight_matrices(model) if m.adaptable]
    options = AttachOptions(
        scale=scale if isinstance(scale, AdapterScale) else _scale_of_runs(config, scale),
        heads=new_heads(model) if heads is None else heads,
        seed=seed,
        total_steps=total_steps or 0,
    )
    adapted, _ = config.rank.attach(model, config.rank.assign_ranks(blocks), options)
    return adapted


def load_plan(path: str | Path) -> Plan:
    """Read a plan file, from ``bitrank plan --save``, :func:`save_plan`, or a run's ``plan.json``.

    Raises :class:`~bitrank.errors.UserError` when it cannot be read or is not a plan.

    Example:
        >>> import bitrank
        >>> bitrank.save_plan({"precision": {}, "ranks": {"model.layers.0.mlp.up_proj": 4}}, "plan.json")
        >>> bitrank.load_plan("plan.json")["ranks"]
        {'model.layers.0.mlp.up_proj': 4}
    """
    return read_plan(Path(path))


def save_plan(plan: Mapping[str, Any], path: str | Path) -> None:
    """Write ``plan`` as JSON to ``path``, for :func:`load_plan` and ``bitrank run --plan``.

    Raises :class:`~bitrank.errors.UserError` when it is not a plan or cannot be written.

    Example:
        >>> import bitrank
        >>> bitrank.save_plan({"precision": {"lm_head": "int8"}, "ranks": {}}, "plan.json")
    """
    _save_plan(check_plan_data(plan, "the plan"), Path(path))


def open_store(uri: str | Path = "runs", artifacts: str | Path | None = None) -> ReadOnlyStore:
    """Open the store of finished runs for SQL that reads, with views (``wide``, ``plans``, …).

    ``uri`` is a folder with ``mlflow.db``, a ``sqlite:///`` or a ``postgresql://`` URI. ``artifacts`` is the
    folder with the files of runs that a tracking server stored: its ``--artifacts-destination``, mounted or
    copied. ``.sql(…).df()`` gives a DataFrame; a statement that writes is refused. Raises
    :class:`~bitrank_analysis.AnalysisError` when there is no MLflow store or no such folder.

    Example:
        >>> import bitrank
        >>> store = bitrank.open_store("runs")  # doctest: +SKIP
        >>> store.sql('SELECT run_name, "m.eval/acc", "m.model/mib" FROM wide').df()  # doctest: +SKIP
    """
    from bitrank_analysis import open_read_only

    return open_read_only(str(uri), None if artifacts is None else Path(artifacts))


def _as_data(result: PlanResult, init: str, quantizer: str) -> Plan:
    data = plan_data(result.plan, result.sizes.matrices, result.problem.budget, init, quantizer)
    data["planning_seconds"] = {"measuring": result.tables.seconds, "choosing": result.choosing}
    return check_plan_data(data, "the plan")


def _scale_of_runs(config: Config, scale: float | None) -> AdapterScale:
    """The scale of adapters in a run of ``config``; ``scale`` replaces its factor."""
    own = {key: config.settings.get(key, getattr(RunSpec, key)) for key in ("adapter_scale", "scale_policy")}
    return AdapterScale(own["adapter_scale"] if scale is None else scale, own["scale_policy"])
