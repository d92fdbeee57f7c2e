"""Specs: equal values give equal ids, other values other ids, and invalid values a clear error."""

from __future__ import annotations

import pytest
from bitrank.errors import UserError, is_user_error
from bitrank.spec.configs import DEFAULT_CONFIGS
from bitrank.spec.make_spec import make_spec
from bitrank.spec.matrix import matrix
from bitrank.spec.parse import parse_setting
from bitrank.spec.profiles import PROFILES, find_profile
from bitrank.spec.run_spec import read_spec, write_spec
from bitrank_data import DataError
from bitrank_planner import Infeasible, PlanError

LAPTOP = PROFILES["laptop"]


def test_the_study_is_every_config_on_two_tasks() -> None:
    specs = matrix(LAPTOP, list(DEFAULT_CONFIGS), list(LAPTOP.tasks), list(LAPTOP.seeds), {})
    assert len(specs) == len({spec.spec_id for spec in specs}) == 2 * len(DEFAULT_CONFIGS)
    assert {(s.config, s.task) for s in specs} == {
        (c, t) for c in DEFAULT_CONFIGS for t in ("movie_sentences", "wiki_articles")
    }


def test_the_paper_profile_is_the_study_as_designed() -> None:
    paper = PROFILES["paper"]
    specs = matrix(paper, list(DEFAULT_CONFIGS), list(paper.tasks), list(paper.seeds), {})
    assert len(specs) == 6 * len(DEFAULT_CONFIGS) and {s.seed for s in specs} == {0, 1, 2}
    sst2, wiki = (next(s for s in specs if s.task == task) for task in ("sst2", "wikitext2"))
    assert (sst2.model, sst2.batch_size, wiki.model, wiki.batch_size) == ("bert-base-uncased", 8, "gpt2", 4)
    for spec in (sst2, wiki):
        assert (spec.learning_rate, spec.epochs, spec.warmup, spec.clip, spec.log_every) == (
            2e-4,
            3,
            0.1,
            1.0,
            50,
        )


def test_the_base_profile_trains_larger_models_on_four_tasks_for_longer() -> None:
    base = PROFILES["base"]
    specs = matrix(base, ["B-FP", "B-Q4"], list(base.tasks), list(base.seeds), {})
    models = {spec.task: spec.model for spec in specs}
    assert len(specs) == 8 and list(models.values()) == ["mpnet", "mpnet", "smollm2", "smollm2"]
    for spec in specs:
        usual = make_spec(LAPTOP, spec.config, spec.task)
        assert spec.kind == usual.kind and spec.steps >= 1000 > usual.steps
        assert spec.eval_every < spec.steps and spec.steps % spec.checkpoint_every == 0


def test_the_dialogue_profile_is_instructions_of_two_sets_in_three_seeds() -> None:
    dialogue = PROFILES["dialogue"]
    specs = matrix(dialogue, ["B-FP", "B-Ada"], list(dialogue.tasks), list(dialogue.seeds), {})
    assert len(specs) == 12 and {spec.seed for spec in specs} == {0, 1, 2}
    assert {spec.task for spec in specs} == {"alpaca", "dolly"}
    assert {(spec.model, spec.epochs) for spec in specs} == {("microsoft/DialoGPT-medium", 3)}
    with pytest.raises(UserError, match="the profile dialogue has no settings for tasks of the kind"):
        make_spec(dialogue, "B-FP", "movie_sentences")


def test_only_the_config_differs_between_arms() -> None:
    specs = matrix(LAPTOP, list(DEFAULT_CONFIGS), ["movie_sentences"], [0], {})
    planned = [spec for spec in specs if spec.plan_request]
    assert all((spec.init, spec.quantizer) == ("lq-lora", "search") for spec in planned)  # parts of the arm
    stripped = {str({**vars(spec), "config": "", "arm": {}, "init": "", "quantizer": ""}) for spec in specs}
    assert len(stripped) == 1


def test_the_id_follows_every_number() -> None:
    base = make_spec(LAPTOP, "B-FP", "movie_sentences")
    assert make_spec(LAPTOP, "B-FP", "movie_sentences").spec_id == base.spec_id
    for change in (
        {"learning_rate": 1e-4},
        {"seed": 1},
        {"steps": 7},
        {"quant_backend": "none"},
        {"fused": False},
    ):
        assert make_spec(LAPTOP, "B-FP", "movie_sentences", change).spec_id != base.spec_id


def test_epochs_and_steps_replace_each_other() -> None:
    assert make_spec(LAPTOP, "B-FP", "movie_sentences", {"epochs": 2}).steps is None
    assert make_spec(PROFILES["paper"], "B-FP", "sst2", {"steps": 9}).epochs is None
    with pytest.raises(UserError, match="steps or epochs, not both"):
        make_spec(LAPTOP, "B-FP", "movie_sentences", {"epochs": 2, "steps": 9})


def test_a_spec_is_equal_after_writing_and_reading(tmp_path) -> None:
    spec = make_spec(LAPTOP, "Joint-3", "wiki_articles")
    write_spec(spec, tmp_path / "spec.json")
    assert read_spec(tmp_path / "spec.json").spec_id == spec.spec_id


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("learning_rate=1e-3", 1e-3),
        ("steps=5", 5),
        ("model=gpt2", "gpt2"),
        ("dropout=0.1", 0.1),
        ("fused=false", False),
    ],
)
def test_settings_take_the_type_of_their_field(text: str, value: object) -> None:
    assert parse_setting(text)[1] == value


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("learning_rat=1", "unknown key 'learning_rat'; nearest: learning_rate"),
        ("steps=many", "steps must be a whole number, got 'many'"),
        ("clip=x", "clip must be a number"),
        ("fused=maybe", "fused must be true or false"),
        ("steps", "expected key=value"),
        ("config=B-Q4", "unknown key 'config'"),
    ],
)
def test_bad_settings_are_rejected(setting: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_setting(setting)


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 0},
        {"steps": -1},
        {"learning_rate": 0.0},
        {"seed": -1},
        {"warmup": 1.5},
        {"max_length": 0},
    ],
)
def test_numbers_out_of_range(change: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(change))):
        make_spec(LAPTOP, "B-FP", "movie_sentences", change)


def test_the_ranks_of_an_arm_can_be_overridden() -> None:
    assert make_spec(LAPTOP, "B-FP", "movie_sentences", {"rank": 16}).arm["rank"] == {
        "rule": "FixedRank",
        "rank": 16,
    }
    assert make_spec(LAPTOP, "B-Ada", "movie_sentences", {"init_r": 8, "target_r": 2}).tuned == {
        "init_r": 8,
        "target_r": 2,
    }
    with pytest.raises(UserError, match="target_r < init_r, got init_r=4 and target_r=4"):
        make_spec(LAPTOP, "B-Ada", "movie_sentences", {"init_r": 4})
    with pytest.raises(UserError, match="rank rule of B-Ada has no 'rank' to set; it has init_r, target_r"):
        make_spec(LAPTOP, "B-Ada", "movie_sentences", {"rank": 8})


def test_errors_for_unknown_names_list_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown config 'Joint2'; nearest: Joint-2"):
        make_spec(LAPTOP, "Joint2", "movie_sentences")
    with pytest.raises(DataError, match="unknown task 'movies'"):
        make_spec(LAPTOP, "B-FP", "movies")
    with pytest.raises(UserError, match="unknown profile 'labtop'; nearest: laptop"):
        find_profile("labtop")


def test_user_errors_differ_from_other_errors() -> None:
    assert is_user_error(UserError("x")) and is_user_error(DataError("x")) and is_user_error(PlanError("x"))
    assert is_user_error(Infeasible("x", 1))
    assert not is_user_error(ValueError("x"))
