"""``rank_rule_of`` of a plan file: inner values are checked like those of the config that it names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bitrank.cli.main import main
from bitrank.errors import UserError
from bitrank.spec.configs import config_of_plan, find_config

JOINT = {"attention": 6, "ffn": 10}


def plan_of(given: dict[str, Any]) -> dict[str, Any]:
    return {
        "precision": {},
        "ranks": {},
        "adaptive": {},
        "rank_rule": {},
        "shapes": {},
        "rank_rule_of": given,
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"config": "Joint-3", "by_role": {"attention": "x", "ffn": 10}}, "got by_role="),
        ({"config": "Joint-3", "by_role": {"attention": 1.5, "ffn": 10}}, "got by_role="),
        ({"config": "Joint-3", "by_role": {"attention": True, "ffn": 10}}, "got by_role="),
        ({"config": "Joint-3", "by_role": {"attention": -1, "ffn": 10}}, "got by_role="),
        ({"config": "Joint-3", "by_role": {"attention": 2**16 + 1, "ffn": 10}}, "got by_role="),
        ({"config": "Joint-3", "by_role": {"attention": 6}}, "got by_role="),
        ({"config": "Joint-3", "by_role": {**JOINT, "attn": 6}}, "got by_role="),
        ({"config": "LoRA-FFN", "part": "fnn"}, "such as part=ffn, rank=8, got part='fnn'"),
        ({"config": "B-Q4", "rank": 2**16 + 1}, "such as rank=8, got rank=65537"),
        ({"config": "B-Q4", "rank": True}, "such as rank=8, got rank=True"),
        ({"config": "ARD-LoRA-Q4", "sparsity": float("nan")}, "got sparsity=nan"),
        ({"config": ["B-Q4"]}, "config of rank_rule_of must be text, got ['B-Q4']"),
    ],
)
def test_a_value_that_the_rule_cannot_have_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as found:
        config_of_plan(plan_of(given), "my.json")
    assert str(found.value).startswith("my.json is not a plan: ") and message in str(found.value)


@pytest.mark.parametrize("ranks", [JOINT, {"attention": 0, "ffn": 4}, {**JOINT, "cross-attention": 3}])
def test_ranks_by_role_may_be_zero_and_name_cross_attention(ranks: dict[str, int]) -> None:
    rule = config_of_plan(plan_of({"config": "Joint-3", "by_role": ranks}), "my.json").rank
    assert rule == type(find_config("Joint-3").rank)(ranks)


def test_a_run_of_a_plan_with_a_wrong_rank_by_role_ends_with_2(
    capsys: pytest.CaptureFixture[str], place: Path
) -> None:
    given = {"config": "Joint-3", "by_role": {"attention": "x", "ffn": 10}}
    (place / "my.json").write_text(json.dumps({"precision": {}, "ranks": {}, "rank_rule_of": given}))
    assert main(["run", "--profile", "smoke", "--task", "toy_sentences", "--plan", "my.json"]) == 2
    assert "my.json is not a plan: expected fields of the rank rule of Joint-3" in capsys.readouterr().err
    assert not (place / "runs").exists()
