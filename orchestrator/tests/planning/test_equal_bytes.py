"""Configs at a byte budget: the largest rank that fits, in formats as close to the config's own as fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from bitrank.errors import UserError
from bitrank.planning.budget import Sizes, parse_budget, sizes_of
from bitrank.planning.equal_bytes import LEAST_RANK, Fitted, _coarser, fit_arm
from bitrank.planning.planner_studies import STUDIES, find_study
from bitrank.planning.study_arms import STUDY_ARMS, SYSTEM_ARMS
from bitrank.planning.study_forecast import _not_fitting
from bitrank.planning.study_plans import _planned
from bitrank.spec.configs import CONFIGS, Config, find_config
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import PROFILES
from bitrank.spec.rules import BlocksIn, FixedRank, GivenBits, RankByRole
from bitrank_quant import parse_format

SMOKE, TASK = PROFILES["smoke"], "toy_sentences"


@pytest.fixture(scope="module")
def sizes() -> Sizes:
    return sizes_of(make_spec(SMOKE, "B-FP", TASK))


@pytest.fixture(scope="module")
def budget(sizes: Sizes) -> int:
    return parse_budget("=B-Q4", sizes)


def bytes_of(config: Config, fields: dict[str, int], sizes: Sizes) -> int:
    """Bytes of ``config`` with changed fields of its rank rule, counted as for any config."""
    return sizes.of_config(replace(config, rank=replace(config.rank, **fields)))  # type: ignore[type-var]


def test_config_whose_bytes_are_the_budget_stays_as_it_is(sizes: Sizes, budget: int) -> None:
    fitted = fit_arm(find_config("B-Q4"), sizes, budget)
    assert fitted.fields == {} and fitted.nbytes == budget
    assert fitted.precision == find_config("B-Q4").precision.assign_formats(sizes.outline.matrices)


def test_rank_is_the_largest_that_fits(sizes: Sizes, budget: int) -> None:
    for name in ("LoRA-Attention", "DoRA-Weight-Q4", "GPTQ-Q4"):
        config = find_config(name)
        fitted = fit_arm(config, sizes, budget)
        rank = fitted.fields["rank"]
        assert fitted.nbytes == bytes_of(config, {"rank": rank}, sizes) <= budget
        assert bytes_of(config, {"rank": rank + 1}, sizes) > budget


@pytest.mark.parametrize("name", ["PARA-Q4", "DoRA-Dynamic-Q4", "ARD-LoRA-Q4"])
def test_budget_of_a_config_that_ends_at_rank_8_is_that_of_rank_8(
    name: str, sizes: Sizes, budget: int
) -> None:
    """All have the formats of B-Q4, start with higher ranks, and store what is left of them."""
    assert parse_budget(f"={name}", sizes) == budget


def test_budget_of_adalora_is_that_of_its_last_mean_rank(sizes: Sizes) -> None:
    rank_4 = replace(find_config("B-Q4"), rank=FixedRank(4))
    assert parse_budget("=Joint-1", sizes) == sizes.of_config(rank_4)


def test_pruned_ranks_count_as_their_mean_at_the_end(sizes: Sizes, budget: int) -> None:
    fitted = fit_arm(find_config("Joint-1"), sizes, budget)
    assert fitted.fields == {"init_r": 24, "target_r": 8}, "three times the last rank, as in 12 to 4"
    assert fitted.nbytes == budget and set(fitted.ranks.values()) == {8}


def test_pruned_ranks_of_one_part_count_on_that_part(sizes: Sizes, budget: int) -> None:
    fixed, pruned = (
        fit_arm(find_config(name), sizes, budget) for name in ("LoRA-Attention", "AdaLoRA-Attention")
    )
    rank = fixed.fields["rank"]
    assert pruned.fields["target_r"] == rank and pruned.ranks == fixed.ranks
    assert set(pruned.ranks.values()) == {0, rank} and pruned.nbytes == fixed.nbytes


def test_ranks_by_role_keep_their_proportions(sizes: Sizes) -> None:
    config = Config(BlocksIn("nf4-dq"), RankByRole({"attention": 4, "ffn": 8}), "system")
    own = sizes.of_config(config)
    assert fit_arm(config, sizes, own).fields == {}
    half = bytes_of(config, {"by_role": {"attention": 2, "ffn": 4}}, sizes)  # type: ignore[dict-item]
    assert fit_arm(config, sizes, half).fields == {"by_role": {"attention": 2, "ffn": 4}}


def test_embeddings_are_quantized_before_blocks_get_fewer_bits(sizes: Sizes) -> None:
    config = find_config("GPTQ-Q4")
    tried = {}
    for budget in range(141_000, 60_000, -500):
        try:
            fitted = fit_arm(config, sizes, budget)
        except UserError:
            break
        assert fitted.nbytes <= budget
        tried[frozenset(fitted.precision.values())] = min(fitted.ranks.values())
    order = [sorted(formats) for formats in tried]
    assert order[0] == ["bf16", "int4-g64"] and ["int4-g64"] in order
    assert order.index(["int4-g64"]) < order.index(["int3-g64"])
    assert min(tried.values()) >= LEAST_RANK


def test_coarser_formats_have_larger_groups_first_and_then_fewer_bits() -> None:
    assert list(_coarser("nf4-dq"))[:3] == ["nf4-g128-dq", "nf3-dq", "nf3-g128-dq"]
    assert list(_coarser("int4-g32"))[:5] == ["int4-g64", "int4-g128", "int4-g96", "int4-g192", "int3-g32"]


def test_groups_that_divide_the_width_of_smollm2_store_fewer_bytes_than_padded_ones() -> None:
    sizes = {group: parse_format(f"int3-g{group}").nbytes((576, 576)) for group in (64, 96, 128)}
    assert sizes[96] < sizes[64] < sizes[128]
    assert "int3-g96" in _coarser("int4-g64")


@pytest.mark.parametrize(
    ("name", "own", "key"), [("QA-LoRA-Q4", "int4-g32", "group"), ("L4Q-Q4", "int4-g64", "format")]
)
def test_adapters_that_fit_their_formats_follow_them_to_fewer_bits(
    sizes: Sizes, budget: int, name: str, own: str, key: str
) -> None:
    config, found = find_config(name), []
    for left in range(budget, 40_000, -1_000):
        try:
            fitted = fit_arm(config, sizes, left)
        except UserError:
            break
        (text,) = set(fitted.precision.values()) - {"bf16"}
        expected = {"group": parse_format(text).block, "format": text}[key]
        assert fitted.fields.get(key, getattr(config.rank, key)) == expected
        assert fitted.nbytes == sizes.of_config(_at(config, fitted)) <= left
        found.append(text)
    assert found[0] == own and "bf16" not in fitted.precision.values()
    assert {"int3-g64", "int2-g64"} <= set(found), "larger groups and fewer bits"


def _at(config: Config, fitted: Fitted) -> Config:
    rule = replace(config.rank, **fitted.fields)  # type: ignore[type-var]
    return replace(config, precision=GivenBits(fitted.precision), rank=rule)


def test_config_that_takes_too_many_bytes_is_refused_with_its_least_bytes(sizes: Sizes, budget: int) -> None:
    config = find_config("B-FP")
    least = bytes_of(config, {"rank": LEAST_RANK}, sizes)
    with pytest.raises(UserError, match=rf"{budget:,} bytes: it takes {least:,} bytes at least \(bf16\)"):
        fit_arm(config, sizes, budget)
    with pytest.raises(UserError, match="needs an encoder-decoder"):
        fit_arm(find_config("Cross-8"), sizes, budget)


def test_rule_whose_bytes_do_not_depend_on_the_rank_keeps_it(sizes: Sizes) -> None:
    class Free(FixedRank):
        def stored_numbers(self, shape: object, rank: int) -> int:
            return 0

    config = Config(BlocksIn("nf4-dq"), Free(8), "system")
    fitted = fit_arm(config, sizes, sizes.of_config(config) + 10_000)
    assert fitted.fields == {} and set(fitted.ranks.values()) == {8}


def test_plan_of_a_config_gives_its_rule_defaults_and_bytes(
    tmp_path: Path, sizes: Sizes, budget: int
) -> None:
    study = find_study("systems", quick=True)
    path = _planned(study, SMOKE, "LoftQ-5-Q4", "=B-Q4", TASK, {}, tmp_path)
    assert isinstance(path, Path)
    data = json.loads(path.read_text())
    assert data["bytes"] == budget == data["budget"] and data["rank_rule_of"] == {"config": "LoftQ-5-Q4"}
    spec = make_spec(SMOKE, "", TASK, {"plan": str(path)})
    assert (spec.config, spec.init, spec.init_rounds) == ("LoftQ-5-Q4-B-Q4", "loftq", 5)
    assert spec.arm["rank"] == find_config("LoftQ-5-Q4").as_data()["rank"]
    written = path.stat().st_mtime_ns
    assert _planned(study, SMOKE, "LoftQ-5-Q4", "=B-Q4", TASK, {}, tmp_path) == path
    assert path.stat().st_mtime_ns == written, "the plan is reused"
    refused = _planned(study, SMOKE, "B-FP", "=B-Q4", TASK, {}, tmp_path)
    assert isinstance(refused, str) and refused.startswith("no plan: does not fit into")


def test_defaults_of_the_named_config_hold_unless_the_plan_gives_its_own(tmp_path: Path) -> None:
    path = tmp_path / "by-hand.json"
    plan = {"precision": {}, "ranks": {}, "rank_rule_of": {"config": "LoftQ-5-Q4"}}
    for own, init in (({}, "loftq"), ({"init": "qera"}, "qera")):
        path.write_text(json.dumps(plan | own))
        spec = make_spec(SMOKE, "", TASK, {"plan": str(path)})
        assert (spec.init, spec.init_rounds) == (init, 5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"config": "B-Q4", "ranks": 4},
            "expected fields of the rank rule of B-Q4 such as rank=8, got ranks=4",
        ),
        ({"config": "B-Q4", "rank": "4"}, "got rank='4'"),
        ({"config": "B-Q4", "rank": 0}, "got rank=0"),
        ({"config": "B-Q5"}, "unknown config 'B-Q5'"),
        ({"rank": 4}, "config"),
    ],
)
def test_wrong_rank_rule_of_a_plan_is_refused(given: dict[str, object], message: str, tmp_path: Path) -> None:
    path = tmp_path / "by-hand.json"
    path.write_text(json.dumps({"precision": {}, "ranks": {}, "rank_rule_of": given}))
    with pytest.raises(UserError, match=message):
        make_spec(SMOKE, "", TASK, {"plan": str(path)})


def test_study_of_systems_has_every_config_and_no_control(sizes: Sizes) -> None:
    arms = (*STUDIES["systems"].arms, *STUDIES["systems"].configs)
    assert set(CONFIGS) <= set(SYSTEM_ARMS) == set(arms) and len(arms) == len(set(arms))
    assert {name for name, arm in STUDY_ARMS.items() if arm.control}.isdisjoint(SYSTEM_ARMS)
    study = replace(find_study("systems", quick=True), arms=("B-Q4", "B-FP", "Cross-8", "adalora"))
    assert _not_fitting(study, sizes) == 2


def test_pooled_adapters_get_groups_that_divide_the_inputs_of_every_matrix(sizes: Sizes) -> None:
    odd = [replace(m, shape=(m.shape[0], 96)) if m.adaptable else m for m in sizes.outline.matrices]
    wide = replace(sizes, outline=replace(sizes.outline, matrices=odd))
    fitted = fit_arm(find_config("QA-LoRA-Q4"), wide, 10**9)
    groups = {parse_format(fitted.precision[m.name]).block for m in odd if m.adaptable}
    assert all(96 % group == 0 for group in groups)
    narrow = [replace(m, shape=(m.shape[0], 40)) if m.adaptable else m for m in sizes.outline.matrices]
    with pytest.raises(UserError, match="does not fit"):
        fit_arm(
            find_config("QA-LoRA-Q4"), replace(sizes, outline=replace(sizes.outline, matrices=narrow)), 10**9
        )


def test_bytes_of_a_config_as_budget_are_those_of_its_own_run(sizes: Sizes) -> None:
    """Rows that are no whole blocks take other bytes with a quantizer's codes than by rounding."""
    odd = [replace(m, shape=(m.shape[0], 100)) if m.adaptable else m for m in sizes.outline.matrices]
    plain = replace(sizes, outline=replace(sizes.outline, matrices=odd))
    coded = replace(plain, coded=True)
    assert plain.of_config(find_config("B-Q4")) != coded.of_config(find_config("B-Q4"))
    assert parse_budget("=B-Q4", coded) == parse_budget("=B-Q4", plain)
