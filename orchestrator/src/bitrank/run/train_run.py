"""The main function of a run, from its spec to its record. Start reading here."""

from __future__ import annotations

from pathlib import Path

from bitrank_data import TokenSplit
from bitrank_trainer import Evaluation, Processes, Task, peak_memory_mib, pin_threads, train

from bitrank.process.compute import Compute, objective_of
from bitrank.run.build import build_model
from bitrank.run.data import load_data
from bitrank.run.generations import Samples, sample_texts
from bitrank.run.memory_limits import tensor_safe, within_limit
from bitrank.run.record import Record
from bitrank.run.requested_plan import config_of_run
from bitrank.run.token_texts import with_token_texts
from bitrank.run.train_settings import settings_for, steps_of_epoch
from bitrank.spec.run_spec import RunSpec


def execute(spec: RunSpec, folder: Path, record: Record, processes: Processes) -> None:
    """Execute the run of ``spec``: write its files to ``folder`` and its events to ``record``."""
    compute = Compute.of(spec)
    device, dtype = compute.device, compute.dtype
    record.machine(device, dtype, pin_threads(spec.threads, processes.count), peak_memory_mib())

    record.phase("loading")
    data = load_data(spec)
    record.data(data.report)
    config = config_of_run(spec, folder, record)
    settings = settings_for(spec, len(data.task.splits["train"]), device, dtype)
    built = build_model(spec, compute, config, data.task.classes, settings.steps, record=record)
    model, hook = built.model, built.hook
    record.ready()
    settings, data = tensor_safe(settings, data, spec, compute, model, built.applied, record.emit)
    objective = objective_of(spec)

    def evaluate_on(split: TokenSplit) -> Evaluation:
        """Evaluate the adapter as its file will hold it, so that metrics belong to the stored numbers."""
        with hook.as_stored():
            return data.evaluate(model, split, objective, device, processes)

    if spec.tested:
        record.phase("zero-shot")
        record.zero_shot(lambda: evaluate_on(data.test))
    record.phase("training")
    task = Task(
        objective, data.train_batches, lambda: evaluate_on(data.validation).metrics, device, processes
    )
    settings = within_limit(settings, spec, compute, model, data, task, folder)
    progress = train(model, task, hook, settings, folder / "checkpoint", record.emit)
    record.trained(progress, progress.step / steps_of_epoch(spec, len(data.task.splits["train"])))
    hook.finish()
    record.adapter(hook)
    if spec.tested:
        record.phase("testing")
        with hook.as_stored():
            samples = (
                sample_texts(spec.kind, model, built.tokenizer, data.test, device)
                if processes.needed
                else Samples()
            )
        final = with_token_texts(evaluate_on(data.test), spec.kind, built.tokenizer)
        record.tested(final, data.test, samples)
    record.finish(hook.ranks(), hook.stored_bytes(), device)
