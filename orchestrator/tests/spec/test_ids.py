"""Ids of runs: specs of the current studies keep theirs, so finished runs are not repeated."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from bitrank.spec.configs import CONFIGS
from bitrank.spec.profiles import PROFILES
from bitrank.spec.run_spec import matrix, read_spec

LAPTOP = {
    "B-FP movie_sentences s0": "853bf8d3ad9b",
    "B-Q4 movie_sentences s0": "99d321356ee8",
    "B-Ada movie_sentences s0": "b75b362b8968",
    "Joint-1 movie_sentences s0": "e14672004378",
    "Joint-2 movie_sentences s0": "609de5128556",
    "Joint-3 movie_sentences s0": "668251a4082d",
    "B-FP wiki_articles s0": "e7dc3d0a19a1",
    "B-Q4 wiki_articles s0": "693598395da4",
    "B-Ada wiki_articles s0": "18d368f2a81c",
    "Joint-1 wiki_articles s0": "7e3520862401",
    "Joint-2 wiki_articles s0": "d7a0ec896f99",
    "Joint-3 wiki_articles s0": "08640e8e308e",
}


def test_the_twelve_laptop_specs_keep_their_ids() -> None:
    profile = PROFILES["laptop"]
    specs = matrix(profile, list(CONFIGS), list(profile.tasks), list(profile.seeds), {})
    assert {spec.run_name: spec.spec_id for spec in specs} == LAPTOP


@pytest.mark.parametrize("later", ["init_rounds", "shrink", "special_tokens", "model_digest"])
def test_a_spec_file_without_a_newer_field_gets_its_default(tmp_path, later: str) -> None:
    profile = PROFILES["laptop"]
    (spec,) = matrix(profile, ["B-FP"], ["movie_sentences"], [0], {})
    data = asdict(spec)
    del data[later]
    (tmp_path / "spec.json").write_text(json.dumps(data))
    read = asdict(read_spec(tmp_path / "spec.json"))
    assert {**data, later: read[later]} == read


def test_a_spec_file_of_before_scale_policies_keeps_its_one_scale(tmp_path) -> None:
    (spec,) = matrix(PROFILES["laptop"], ["B-FP"], ["movie_sentences"], [0], {})
    data = asdict(spec)
    del data["scale_policy"]
    (tmp_path / "spec.json").write_text(json.dumps(data))
    assert asdict(read_spec(tmp_path / "spec.json")) == {**data, "scale_policy": "constant"}
