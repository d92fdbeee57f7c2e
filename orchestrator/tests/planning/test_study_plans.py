"""Saved plans of a study are reused only for the same data, settings and code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bitrank.planning import planner_studies
from bitrank.planning.planner_studies import STUDIES
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import PROFILES

SMOKE, STUDY = PROFILES["smoke"], STUDIES["allocators"]


@pytest.mark.parametrize(
    ("made_with", "reused"), [({}, True), ({"max_length": 16}, False), ({"model": "tiny-gpt2"}, False)]
)
def test_saved_plan_is_reused_only_for_the_same_settings(
    made_with: dict[str, object], reused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "toy_sentences" / "exact-3bits.json"
    path.parent.mkdir()
    spec = make_spec(SMOKE, "B-FP", "toy_sentences", made_with)
    made_for = planner_studies._made_for(spec, STUDY, "exact", "3bits")
    path.write_text(json.dumps({"precision": {}, "ranks": {}, "made_for": made_for}))

    def refuse(*_: object) -> None:
        raise ValueError("planned again")

    monkeypatch.setattr(planner_studies, "make_plan", refuse)
    found = planner_studies._planned(STUDY, SMOKE, "exact", "3bits", "toy_sentences", {}, tmp_path)
    assert found == (path if reused else "no plan: planned again")
