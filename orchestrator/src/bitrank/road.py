"""THE ROAD: one run from its spec to its record, top to bottom. Read this first."""

from __future__ import annotations

from pathlib import Path

from bitrank_adapters import adapter_bytes
from bitrank_data import TokenSplit
from bitrank_quant import stored_bytes
from bitrank_trainer import (
    DTYPES,
    OBJECTIVES,
    PLAIN_OBJECTIVES,
    Evaluation,
    Processes,
    Task,
    choose_device,
    choose_dtype,
    evaluate,
    peak_memory_mib,
    pin_threads,
    train,
    trainable,
)  # fmt: skip

from bitrank.configs import find_config
from bitrank.material import load_material
from bitrank.memory import tensor_safe, within_limit
from bitrank.models import fuse_model, open_model
from bitrank.notices import notice
from bitrank.padding import padding_message
from bitrank.plans import make_plans, store_base
from bitrank.record import Record
from bitrank.samples import leave_samples
from bitrank.schedule import settings_for
from bitrank.specs import RunSpec
from bitrank.starts import starting_point


def travel(spec: RunSpec, folder: Path, record: Record, processes: Processes) -> None:
    """Do the run that ``spec`` describes, keep what it leaves in ``folder``, and tell ``record`` everything on the way."""
    device = choose_device(spec.device)
    dtype = DTYPES[choose_dtype(device) if spec.dtype == "auto" else spec.dtype]
    record.machine(device, dtype, pin_threads(spec.threads, processes.count), peak_memory_mib())

    record.phase("loading")
    material = load_material(spec)
    record.data(material.report)
    loaded = open_model(spec, material.task.classes, device, dtype)
    if said := padding_message(loaded.tokenizer, loaded.model.config):
        record.emit(notice("padding", said))
    config = find_config(spec.config, spec.plan, spec.tuned)
    plans = make_plans(config, loaded)
    record.plan(plans.bits, plans.ranks, plans.free, plans.left, loaded.parameters, loaded.new_modules)
    record.notices("weights", loaded.notices)

    start = starting_point(spec, plans.ranks)
    applied = store_base(spec, loaded, plans.bits, start, device, dtype)
    settings = settings_for(spec, len(material.task.splits["train"]), device, dtype)
    model, hook = config.rank.attach(
        loaded.model, plans.ranks, total_steps=settings.steps, scale=spec.adapter_scale, heads=loaded.fresh, seed=spec.seed
    )
    record.model(applied, stored_bytes(model).total - adapter_bytes(model), trainable(model), loaded.parameters)
    processes.share_out(model)
    model.to(device)
    start.write(model)
    if spec.fused:
        fuse_model(model)
    record.ready()
    settings, material = tensor_safe(settings, material, spec, model, applied, device, record.emit)
    objective = (OBJECTIVES if spec.fused else PLAIN_OBJECTIVES)[spec.kind]

    def judge(split: TokenSplit) -> Evaluation:
        return evaluate(model, material.batches_of(split), objective, device, processes)

    record.phase("zero-shot")
    record.zero_shot(lambda: judge(material.test))
    record.phase("training")
    task = Task(objective, material.train_batches, lambda: judge(material.validation).metrics, device, processes)
    settings = within_limit(settings, spec, model, objective, material, device, folder, processes)
    progress = train(model, task, hook, settings, folder / "checkpoint", record.emit)
    record.phase("testing")
    record.adapter(hook)
    texts = leave_samples(spec.kind, model, loaded.tokenizer, material.test, device, record.samples) if processes.needed else []
    record.finish(judge(material.test), material.test, progress, hook.ranks(), adapter_bytes(model), device, texts)
