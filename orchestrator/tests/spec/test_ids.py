"""Ids of runs: specs of the current studies keep theirs, so finished runs are not repeated."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from bitrank.spec.configs import CONFIGS
from bitrank.spec.matrix import matrix
from bitrank.spec.profiles import PROFILES
from bitrank.spec.run_spec import read_spec

LAPTOP = {
    "B-FP movie_sentences s0": "a6d183815dc6",
    "B-Q4 movie_sentences s0": "cf0709c65179",
    "B-Ada movie_sentences s0": "b5bb8ab04fae",
    "Joint-1 movie_sentences s0": "2fe7fe7281c5",
    "Joint-2 movie_sentences s0": "8bb3a7d80522",
    "Joint-3 movie_sentences s0": "d2e561c9417d",
    "Plan-Q4 movie_sentences s0": "8a8114f4e111",
    "B-FP wiki_articles s0": "fdec399d80ef",
    "B-Q4 wiki_articles s0": "0f1d9e0f20f8",
    "B-Ada wiki_articles s0": "024bafb6e96b",
    "Joint-1 wiki_articles s0": "c67ef6168fba",
    "Joint-2 wiki_articles s0": "cbc300744df3",
    "Joint-3 wiki_articles s0": "8e4dde20b451",
    "Plan-Q4 wiki_articles s0": "5c7b811ef56c",
}


def test_the_laptop_specs_keep_their_ids() -> None:
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
