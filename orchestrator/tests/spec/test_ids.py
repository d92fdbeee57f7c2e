"""Ids of runs: specs of the current studies keep theirs, so finished runs are not repeated."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from bitrank.spec.configs import DEFAULT_CONFIGS
from bitrank.spec.make_spec import make_spec
from bitrank.spec.matrix import matrix
from bitrank.spec.profiles import PROFILES
from bitrank.spec.run_spec import FILE_OPTIONS, RunSpec, read_spec

LAPTOP = {
    "B-FP movie_sentences s0": "31c8bbb42af3",
    "B-Q4 movie_sentences s0": "ee98e49667d6",
    "B-Ada movie_sentences s0": "6fd4b31f99b3",
    "Joint-1 movie_sentences s0": "4675abe6e090",
    "Joint-2 movie_sentences s0": "0440b0659e3f",
    "Joint-3 movie_sentences s0": "f4d34429d331",
    "Plan-Q4 movie_sentences s0": "f69545c982e6",
    "B-FP wiki_articles s0": "ca3c3612252d",
    "B-Q4 wiki_articles s0": "c07e9a50e467",
    "B-Ada wiki_articles s0": "8b324c270d1e",
    "Joint-1 wiki_articles s0": "4492074440d0",
    "Joint-2 wiki_articles s0": "5902ff2b37bc",
    "Joint-3 wiki_articles s0": "46067b41151d",
    "Plan-Q4 wiki_articles s0": "e6052c4e6a90",
}


def test_the_laptop_specs_keep_their_ids() -> None:
    profile = PROFILES["laptop"]
    specs = matrix(profile, list(DEFAULT_CONFIGS), list(profile.tasks), list(profile.seeds), {})
    assert {spec.run_name: spec.spec_id for spec in specs} == LAPTOP


@pytest.mark.parametrize("later", ["init_rounds", "shrink", "special_tokens", "model_digest", "test_file"])
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


def test_options_of_a_file_enter_the_id_only_if_they_are_given(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv", "test.csv", "other.csv"):
        rows = "".join(f"film {n},{n % 2},{n % 3}\n" for n in range(40 - len(name)))
        (tmp_path / name).write_text("text,label,stars\n" + rows)
    (tmp_path / "b.csv").write_text((tmp_path / "a.csv").read_text())

    def id_of(name: str, **options: str) -> str:
        return make_spec(PROFILES["smoke"], "B-FP", str(tmp_path / name), options).spec_id

    plain = make_spec(PROFILES["smoke"], "B-FP", str(tmp_path / "a.csv"))
    old = {key: value for key, value in asdict(plain).items() if key not in FILE_OPTIONS}
    assert RunSpec(**old).spec_id == plain.spec_id == id_of("b.csv")
    test, other = str(tmp_path / "test.csv"), str(tmp_path / "other.csv")
    ids = [
        plain.spec_id,
        id_of("a.csv", label_column="stars"),
        id_of("a.csv", test_file=test),
        id_of("a.csv", test_file=other),
    ]
    assert len(set(ids)) == 4
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved/test.csv").write_text((tmp_path / "test.csv").read_text())
    assert id_of("b.csv", test_file=str(tmp_path / "moved/test.csv")) == ids[2], "content counts, not paths"


def test_a_run_without_a_test_has_an_id_of_its_own() -> None:
    plain = make_spec(PROFILES["smoke"], "B-Q4", "toy_articles")
    assert plain.tested
    assert make_spec(PROFILES["smoke"], "B-Q4", "toy_articles", {"tested": False}).spec_id != plain.spec_id


def test_dropout_of_adapters_enters_the_id_where_it_is_set() -> None:
    """Without it the ids above, which are older than the field, hold."""
    plain = make_spec(PROFILES["smoke"], "B-Q4", "toy_articles")
    assert plain.adapter_dropout is None
    ids = {
        make_spec(PROFILES["smoke"], "B-Q4", "toy_articles", {"adapter_dropout": rate}).spec_id
        for rate in (0.05, 0.1)
    }
    assert len(ids | {plain.spec_id}) == 3
