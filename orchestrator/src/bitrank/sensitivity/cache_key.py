"""Identity of a measurement: everything that its numbers depend on, besides formats, quantizer and code."""

from __future__ import annotations

from dataclasses import replace

from bitrank_data import Source

from bitrank.models.locate import folder_of, weights_fingerprint
from bitrank.process.compute import Compute
from bitrank.spec.inputs import is_hub, model_digest, source_of
from bitrank.spec.run_spec import RunSpec


def measured_spec(spec: RunSpec) -> RunSpec:
    """Return ``spec`` with the settings of all measurements, whose results runs with others share.

    New heads are drawn from the seed before they are fitted. Fused layers differ from standard ones by
    rounding, which is enough to change some codes of GPTQ.
    """
    return replace(spec, seed=0, fused=True)


def key_parts(spec: RunSpec, source: Source | None = None) -> tuple[str, ...]:
    """Digests of the model and of the task's text, and the settings that change a measured number.

    ``source`` is that of the spec's task, if it is open already.
    """
    source = source or source_of(spec)
    compute = Compute.of(spec)
    length = f"{spec.max_length}" if spec.special_tokens else f"{spec.max_length} without special tokens"
    return model_key(spec), source.fingerprint(), length, compute.device, compute.dtype_name


def model_key(spec: RunSpec) -> str:
    """Return a digest of the model's content."""
    folder_of(spec.model_source)  # downloads a hub model; without a pinned commit it is known only afterwards
    pinned = spec.model_digest if is_hub(spec.model_digest) else None
    return pinned or model_digest(spec.model) or weights_fingerprint(spec.model)
