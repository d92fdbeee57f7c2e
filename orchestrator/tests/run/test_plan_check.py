"""Plan files that contradict the ties of their model are refused before a run is opened."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bitrank.cli.main import main
from bitrank.errors import UserError
from bitrank.run.plan_check import check_plans
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import find_profile

TABLE, HEAD = "model.embed_tokens", "lm_head"  # of tiny-llama, one weight


def save(place: Path, precision: dict[str, str]) -> None:
    plan = {"precision": precision, "ranks": {"model.layers.0.self_attn.q_proj": 4}}
    (place / "my.json").write_text(json.dumps(plan))


def test_two_formats_of_a_shared_weight_are_refused_before_a_run_is_opened(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(place, {HEAD: "int8"})
    assert main(["run", "--profile", "smoke", "--task", "toy_articles", "--plan", "my.json"]) == 2
    assert (
        "lm_head shares its weight with model.embed_tokens: expected one format, got int8 and bf16"
        in capsys.readouterr().err
    )
    assert not (place / "runs").exists()


def test_one_format_of_a_shared_weight_may_be_written_twice_or_come_from_the_backend(place: Path) -> None:
    def check(backend: str, precision: dict[str, str]) -> None:
        save(place, precision)
        given = {"plan": "my.json", "quant_backend": backend}
        check_plans([make_spec(find_profile("smoke"), "B-FP", "toy_articles", given)])

    check("auto", {HEAD: "int8", TABLE: "int8"})
    check("cpu-int8", {HEAD: "nf4", TABLE: "int8"})
    with pytest.raises(UserError, match="shares its weight"):
        check("cpu-int8", {HEAD: "nf4"})
