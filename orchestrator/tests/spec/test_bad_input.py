"""Arbitrary specs, settings and plan files give a valid value or a one-sentence error."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from bitrank.errors import UserError, is_user_error
from bitrank.spec.configs import find_config
from bitrank.spec.make_spec import SETTABLE, check, make_spec
from bitrank.spec.matrix import matrix
from bitrank.spec.parse import parse_bytes, parse_setting
from bitrank.spec.plan_file import valid_plan
from bitrank.spec.profiles import PROFILES
from bitrank.spec.run_spec import RunSpec
from bitrank_data import DataError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SMOKE = PROFILES["smoke"]
PLAN = {"precision": {"a": "nf4"}, "ranks": {"a": 3}}

# Whole code points, lone surrogates too, as JSON and command lines may hold them.
any_text = st.text(st.characters(), max_size=30)
any_number = st.one_of(
    st.integers(), st.floats(), st.sampled_from([10**23, -1, 0, 10**400, 1e308, math.inf, math.nan])
)
any_value = st.recursive(
    st.one_of(st.none(), st.booleans(), any_number, any_text),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(any_text, inner, max_size=3)),
    max_leaves=6,
)
slow_is_fine = settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def assert_user_error(error: ValueError) -> None:
    """The error is the user's, and its text is one printable line."""
    assert is_user_error(error), repr(error)
    assert "\n" not in str(error) and len(str(error)) < 1500


@slow_is_fine
@given(st.sampled_from(SETTABLE), any_value)
def test_any_value_of_any_field_is_valid_or_rejected(name: str, value: Any) -> None:
    if name in {"model", "plan", "data"} and isinstance(value, str):
        return  # a valid name of nothing is rejected when the run loads it
    try:
        spec = make_spec(SMOKE, "B-FP", "toy_sentences", {name: value})
    except ValueError as error:
        assert_user_error(error)
        return
    assert check(spec) == spec
    assert json.loads(json.dumps(vars(spec), allow_nan=False)) is not None


@slow_is_fine
@given(st.sampled_from(SETTABLE), st.one_of(any_text, st.from_type(float).map(str), st.integers().map(str)))
def test_any_setting_text_is_valid_or_rejected(name: str, text: str) -> None:
    try:
        key, value = parse_setting(f"{name}={text}")
    except ValueError as error:
        assert_user_error(error)
        return
    assert key == name
    assert not isinstance(value, float) or math.isfinite(value)


@slow_is_fine
@given(any_text)
def test_any_amount_of_bytes_is_a_whole_number_or_rejected(text: str) -> None:
    try:
        assert parse_bytes(text) >= 0
    except UserError as error:
        assert_user_error(error)


@slow_is_fine
@given(
    st.dictionaries(
        st.sampled_from(["precision", "ranks", "shapes", "adaptive", "init", "forecast", "other"]), any_value
    )
)
def test_any_plan_file_is_valid_or_rejected(tmp_path: Path, data: dict[str, Any]) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(data))
    try:
        spec = make_spec(SMOKE, "", "toy_sentences", {"plan": str(path)})
    except ValueError as error:
        assert_user_error(error)
        return
    assert spec.arm["precision"]["formats"] == data["precision"]


@slow_is_fine
@given(st.binary(max_size=60))
def test_any_bytes_as_a_plan_file_are_rejected(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match="is not a plan"):
        valid_plan(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"init": 3}, "init must be text, got 3"),
        ({"init": "loft"}, "unknown init 'loft'; nearest: loftq"),
        ({"shapes": 5}, "shapes = 5"),
        ({"shapes": {"a": ["x", 1]}}, r"shapes.a.0 must be a whole number, got 'x'"),
        ({"adaptive": {"init_r": 12.5, "target_r": 4}}, "init_r must be a whole number, got 12.5"),
        ({"adaptive": {"init_r": 4, "target_r": 12}}, "target_r < init_r"),
        ({"adaptive": {"first": 12}}, "init_r is missing"),
        ({"ranks": {"a": -1}}, "ranks.a must be 0 or more, got -1"),
        ({"rank_rule": {"name": "ffn-onyl", "rank": 8}}, "unknown name 'ffn-onyl'; nearest: ffn-only"),
        ({"rank_rule": {"name": "ffn-only", "rank": 0}}, "rank must be 1 or more, got 0"),
        ({"rank_rule": {"name": "ffn-only"}}, "rank is missing"),
        (
            {"rank_rule": {"name": "uniform", "rank": 8}, "adaptive": {"init_r": 12, "target_r": 4}},
            "it has adaptive and rank_rule; remove one",
        ),
        ({"ranks": {"a": True}}, "ranks whole numbers"),
        ({"precision": {"a": "\ud800"}}, "text without NUL characters and surrogates"),
        ({"precisions": {}}, "unknown key 'precisions'; nearest: precision"),
    ],
)
def test_the_error_names_the_wrong_key_or_type_of_a_plan(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({**PLAN, **change}))
    with pytest.raises(UserError, match=message):
        make_spec(SMOKE, "", "toy_sentences", {"plan": str(path)})


def test_a_plan_with_two_values_for_one_key_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text('{"precision": {"a": "nf4", "a": "int8"}, "ranks": {}}')
    with pytest.raises(UserError, match="got two values for 'a'; remove one"):
        find_config("x", str(path))


def test_a_plan_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(PLAN), encoding="utf-8-sig")
    assert valid_plan(path)["ranks"] == PLAN["ranks"]


def test_a_deeply_nested_plan_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(UserError, match="nested too deeply"):
        find_config("x", str(path))


def test_a_plan_is_read_from_regular_files_only(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in ("/dev/zero", str(tmp_path / "pipe"), str(tmp_path)):
        with pytest.raises(UserError, match="it is not a regular file"):
            find_config("x", path)


def test_a_huge_plan_file_is_rejected_without_parsing_it(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("bitrank.spec.plan_file._LARGEST", 2**20)
    (tmp_path / "plan.json").write_bytes(b" " * (2**20 + 1))
    with pytest.raises(UserError, match="more than 1 MiB"):
        find_config("x", str(tmp_path / "plan.json"))


@pytest.mark.parametrize("text", ["9" * 400, "9" * 400 + "GiB", "1e23", "nan", "-1", ""])
def test_an_amount_of_bytes_has_few_digits(text: str) -> None:
    with pytest.raises(UserError, match="expected an amount of memory"):
        parse_bytes(text)


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e308", "1e400", "0", "-1"])
def test_a_learning_rate_that_cannot_train_is_rejected(text: str) -> None:
    with pytest.raises(UserError, match="learning_rate must be"):
        parse_setting(f"learning_rate={text}")


def test_seeds_of_a_matrix_are_checked() -> None:
    for seed in (-1, 2**32):
        with pytest.raises(UserError, match="seed must be"):
            matrix(SMOKE, ["B-FP"], ["toy_sentences"], [0, seed], {})
    with pytest.raises(UserError, match="expected at least one config, got none"):
        matrix(SMOKE, [], ["toy_sentences"], [0], {})


def test_data_that_no_task_reads_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not used by these tasks"):
        make_spec(SMOKE, "B-FP", "toy_sentences", {"data": str(tmp_path)})
    with pytest.raises(UserError, match="is not used by these tasks"):
        matrix(SMOKE, ["B-FP"], ["toy_sentences"], [0], {"data": str(tmp_path)})
    specs = matrix(SMOKE, ["B-FP"], ["toy_sentences", "sst2"], [0], {"data": str(tmp_path)})
    assert [spec.data for spec in specs] == [None, str(tmp_path)]


def test_a_local_copy_that_does_not_exist_is_refused_before_a_run_is_made() -> None:
    expected = "cannot load sst2 from the local folder glue: there is no such folder"
    with pytest.raises(DataError, match=expected):
        matrix(SMOKE, ["B-FP"], ["toy_sentences", "sst2"], [0], {"data": "glue"})


def test_a_spec_made_by_hand_is_checked_like_one_from_the_command_line() -> None:
    spec = RunSpec(config="B-FP", task="toy_sentences", model="tiny-bert", steps=4)
    assert check(spec) is spec
    bad: dict[str, Any] = {
        "threads": 10**23,
        "max_length": 2.5,
        "fused": "yes",
        "profile": "a\0b",
        "clip": math.nan,
    }
    for name, value in bad.items():
        with pytest.raises(UserError, match=f"{name} must be"):
            check(RunSpec(**{**vars(spec), name: value}))


def test_plan_file_with_the_name_of_a_config_is_refused(tmp_path: Path) -> None:
    """Its runs would replace those of the config in every table."""
    path = tmp_path / "B-Q4.json"
    path.write_text(json.dumps(PLAN))
    with pytest.raises(UserError, match=r"called as the config B-Q4.*give the file another name"):
        make_spec(SMOKE, "", "toy_sentences", {"plan": str(path)})
    path.rename(tmp_path / "mine.json")
    assert make_spec(SMOKE, "", "toy_sentences", {"plan": str(tmp_path / "mine.json")}).config == "mine"


def test_rank_of_a_plan_file_cannot_be_set(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(PLAN))
    with pytest.raises(UserError, match=r"mine\.json states the rank of every matrix: rank cannot be set"):
        make_spec(SMOKE, "", "toy_sentences", {"plan": str(path), "rank": 4})
