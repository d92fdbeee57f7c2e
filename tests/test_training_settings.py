"""The report compares every field of a spec that changes results; the others are listed here with reasons."""

from __future__ import annotations

from dataclasses import fields

from bitrank.spec.run_spec import RunSpec
from bitrank_analysis.training_settings import ARM_SETTINGS, SETTINGS

# Fields that name a run, an arm or an input. The digests identify the inputs; "model" is compared.
IDENTITY = {
    "config",
    "plan",
    "task",
    "data",
    "test_file",
    "seed",
    "profile",
    "kind",
    "data_digest",
    "model_digest",
}
# Fields that change rounding, speed, memory or the number of records only.
ROUNDING = {
    "checkpoint_every",
    "device",
    "fused",
    "log_every",
    "memory_limit",
    "mps_safe",
    "processes",
    "shard",
    "tested",
    "threads",
}


def test_every_field_of_a_spec_is_compared_or_has_a_reason_not_to_be() -> None:
    compared = {*SETTINGS, *ARM_SETTINGS}
    assert compared | IDENTITY | ROUNDING == {field.name for field in fields(RunSpec)}
    assert not compared & ROUNDING
