"""The adapter of a run for PEFT, over the base model before quantization.

PEFT loads the base in 16 bits, not in the formats of the run, so the audit evaluates that: an adapter that
was initialized from the quantization error, or learned to repair it, fits the quantized base only. One that
started as a part of its base gets that part as negative factors, since PEFT's base has it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import peft
import torch
from bitrank_adapters import SavedAdapter, over_whole_base, write_adapter
from bitrank_quant import stored_weight
from safetensors.torch import load_file

from bitrank.export.audit import Audit, MatrixAudit, matrix_audit
from bitrank.export.prepared import Options, Prepared
from bitrank.export.rebuild import Rebuilt
from bitrank.export.run_texts import run_texts
from bitrank.models.load import open_model
from bitrank.models.locate import locate, repository_of
from bitrank.spec.task_kinds import task_kind

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_TWICE_THE_RANK = (
    "the adapter started as a part of its base, which PEFT's base still has: the exported one has twice the "
    "rank, the trained factors and the negative first ones, in fp32"
)


def prepare_peft(rebuilt: Rebuilt, options: Options) -> Prepared:
    """The files of the adapter, with the base model's name and a README."""
    adapter = over_whole_base(rebuilt.adapter, rebuilt.taken)
    model, matrices = _over_unquantized_base(rebuilt, adapter)
    source = rebuilt.run.adapter
    size = _nbytes(adapter) if rebuilt.taken else sum(t.nbytes for t in load_file(source / _WEIGHTS).values())
    metrics = rebuilt.evaluate(model)
    audit = Audit(
        options.target,
        rebuilt.metrics,
        metrics,
        matrices,
        rebuilt.planned_bytes,
        size,
        adapter_bytes=size,
        planned_adapter_bytes=rebuilt.planned_adapter_bytes(),
    )
    source_name = rebuilt.spec.model_source
    repository = repository_of(source_name)
    commit = source_name.removeprefix(repository).removeprefix("@") or None
    base, texts = locate(repository), run_texts(rebuilt)
    kind, classes = task_kind(rebuilt.spec.kind), rebuilt.data.task.classes
    if Path(base).is_dir():
        base = str(Path(base).resolve())

    def write(folder: Path) -> None:
        if rebuilt.taken:
            write_adapter(adapter, source, folder)
        else:
            shutil.copy2(source / _WEIGHTS, folder / _WEIGHTS)
            shutil.copy2(source / _CONFIG, folder / _CONFIG)
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        config |= {"base_model_name_or_path": base, "revision": commit}
        (folder / _CONFIG).write_text(json.dumps(config, indent=2))
        known = {"revision": commit, "num_labels": len(classes) if kind.new_head and classes else None}
        of_base = {name: value for name, value in known.items() if value is not None}
        loading = _loading(base, kind.auto_model, config.get("task_type") is not None, of_base)
        (folder / "README.md").write_text(_readme(base, loading, audit), encoding="utf-8")
        texts.write(rebuilt.tokenizer, folder)

    return Prepared(audit, size, write, [*([_TWICE_THE_RANK] if rebuilt.taken else []), *texts.notes])


def _nbytes(adapter: SavedAdapter) -> int:
    """The bytes of all numbers of ``adapter`` in fp32."""
    factors = [tensor for part in adapter.parts.values() for tensor in (part.up_OR, part.down_RI)]
    return 4 * sum(tensor.numel() for tensor in (*factors, *adapter.whole.values()))


def _over_unquantized_base(rebuilt: Rebuilt, adapter: SavedAdapter) -> tuple[Any, dict[str, MatrixAudit]]:
    """The ``adapter`` folded into the unquantized base, which computes the same as PEFT."""
    loaded = open_model(
        rebuilt.spec, rebuilt.data.task.classes, rebuilt.compute.device, rebuilt.compute.dtype
    )
    loaded.fill_rest()
    audits = {}
    with torch.no_grad():
        for name in rebuilt.layers():
            layer: Any = loaded.model.get_submodule(name)
            part = adapter.parts.get(name)
            base_OI = stored_weight(layer).float()
            result_OI = base_OI if part is None else base_OI + part.product().to(base_OI)
            stored_weight(layer).copy_(result_OI)
            stored_OI, adapted_OI = rebuilt.stored_and_adapted(name)
            stored_as = str(rebuilt.compute.dtype).removeprefix("torch.")
            audits[name] = matrix_audit(rebuilt, name, stored_as, (stored_OI, adapted_OI, result_OI))
        rebuilt.copy_whole(loaded.model)
    return loaded.model, audits


def _readme(base: str, loading: Sequence[str], audit: Audit) -> str:
    """Model card of the adapter: front matter that the hub reads, and the metrics of the audit.

    ``loading`` are lines of Python that load the model.
    """
    rows = [f"| {name} | {audit.before[name]:.4f} | {value:.4f} |" for name, value in audit.after.items()]
    return "\n".join(
        [
            "---",
            f"base_model: {base}",
            "library_name: peft",
            "---",
            "",
            f"A LoRA adapter for `{base}`, trained by bitrank with a rank for every matrix.",
            "",
            "```python",
            *loading,
            "```",
            "",
            "| validation | over the base of its run, in the planned formats | over the unquantized base |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


def _loading(base: str, auto_model: str, has_task: bool, options: Mapping[str, Any]) -> list[str]:
    """Lines of Python that load the adapter, by PEFT's own class for ``auto_model`` if it has one.

    An adapter without a task type (``has_task``) must not be loaded by a class of a task. ``options`` are
    those of the base: the number of classes, without which a new head has two, and the commit.
    """
    loader = auto_model.replace("AutoModel", "AutoPeftModel", 1)
    if has_task and hasattr(peft, loader):  # it reads the commit from the adapter
        given = "".join(f", {name}={value!r}" for name, value in options.items() if name != "revision")
        return [f"from peft import {loader}", "", f'model = {loader}.from_pretrained("."{given})']
    given = "".join(f", {name}={value!r}" for name, value in options.items())
    return [
        "from peft import PeftModel",
        f"from transformers import {auto_model}",
        "",
        f'base = {auto_model}.from_pretrained("{base}"{given})',
        'model = PeftModel.from_pretrained(base, ".")',
    ]
