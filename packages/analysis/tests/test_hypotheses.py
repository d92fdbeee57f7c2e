"""The study's own hypotheses: each finding is reached by results that demand it, and by no others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from bitrank_analysis import load_study, open_store
from bitrank_analysis.evidence import gather
from bitrank_analysis.hypotheses import (
    COLUMNS,
    CONFIRMED,
    HYPOTHESES,
    NOT_CONFIRMED,
    NOT_DECIDED,
    NOT_TESTED,
    FastestOn,
    MemoryAndTrainedShare,
    Results,
)
from bitrank_analysis.paper.tables import hypotheses_table
from bitrank_analysis.statistics.pareto import OFF, ON, OPEN
from bitrank_analysis.statistics.verdicts import AS_GOOD, BETTER, DIFFERS, UNRESOLVED, WORSE
from bitrank_analysis.tables import tables

N = 400
JOINT = ("Joint-1", "Joint-2", "Joint-3")


def add(maker: Any, config: str, right: int, seeds: int = 2, **figures: float) -> None:
    """Runs of ``config`` that get the first ``right`` of 400 examples right, one fewer with each seed."""
    for seed in range(seeds):
        metrics = {"eval/acc": (right - seed) / N, "model/mib": 10.0, "lora/mib": 1.0, "mem/peak_mib": 100.0}
        metrics |= {key.replace("_", "/", 1): value for key, value in figures.items()}
        answers = [index < right - seed for index in range(N)]
        maker.classifier(config, answers, seed=seed, metrics=metrics, tags={"device": "cpu"})


def results(verdict: str, pair: tuple[str, str] = ("B-Q4", "B-FP")) -> Results:
    """Results with a comparison of ``pair`` that ended in ``verdict``; its adapters are half as large."""
    arms = pd.DataFrame({"config": list(pair), "seeds": 3, "adapter_mib": [0.5, 1.0]})
    compared = {"difference": -0.15, "low": -0.2, "high": -0.1, "p_holm": 0.01, "verdict": verdict}
    compared |= {"equivalent": verdict == AS_GOOD}
    comparison = pd.DataFrame([{"candidate": pair[0], "baseline": pair[1], **compared}])
    return Results("acc", arms, comparison, pd.DataFrame(), frozenset({"cpu"}))


@pytest.mark.parametrize(
    ("verdict", "finding", "reason"),
    [
        (AS_GOOD, CONFIRMED, "it is as good as B-FP"),
        (WORSE, NOT_CONFIRMED, "it is worse than B-FP"),
        (BETTER, NOT_CONFIRMED, "it is better than B-FP"),
        (UNRESOLVED, NOT_DECIDED, "unresolved"),
        (DIFFERS, NOT_DECIDED, "differs on these examples (one seed)"),
    ],
)
def test_about_as_good_is_confirmed_by_equivalence_alone(verdict: str, finding: str, reason: str) -> None:
    decided = HYPOTHESES["H1"].test(results(verdict))
    assert (decided.finding, decided.reason, decided.compared) == (finding, reason, "B-Q4 against B-FP")
    assert decided.result == "−15.00 [−20.00, −10.00] points of accuracy, p (Holm) 0.010"


@pytest.mark.parametrize(("verdict", "word"), [(WORSE, "worse"), (BETTER, "better")])
def test_about_as_good_includes_a_difference_below_the_margin(verdict: str, word: str) -> None:
    found = results(verdict)
    found.comparisons["equivalent"] = True
    decided = HYPOTHESES["H1"].test(found)
    assert decided.finding == CONFIRMED
    assert decided.reason == f"it is {word} than B-FP by less than the margin"


def test_better_is_not_refuted_by_a_difference_below_the_margin() -> None:
    found = results(BETTER, ("B-Ada", "B-FP"))
    found.comparisons["equivalent"] = True
    assert HYPOTHESES["H2"].test(found).finding == CONFIRMED


@pytest.mark.parametrize(
    ("verdict", "finding"), [(BETTER, CONFIRMED), (WORSE, NOT_CONFIRMED), (AS_GOOD, NOT_CONFIRMED)]
)
def test_better_is_confirmed_by_better_alone_and_states_the_parameters(verdict: str, finding: str) -> None:
    decided = HYPOTHESES["H2"].test(results(verdict, ("B-Ada", "B-FP")))
    assert decided.finding == finding
    assert decided.reason.endswith(" B-FP; it ends with 0.50 times the adapter parameters")
    assert HYPOTHESES["H2"].test(results(verdict)).reason == "no finished run of B-Ada"


@pytest.mark.parametrize(
    ("members", "seeds", "finding", "reason"),
    [
        ({"Joint-2": ON, "B-FP": OFF}, 3, CONFIRMED, "it is alone on the front"),
        ({"Joint-2": ON, "B-FP": OFF}, 1, NOT_DECIDED, "one seed"),
        ({"Joint-2": ON, "B-FP": ON}, 3, NOT_CONFIRMED, "the front also has B-FP"),
        ({"Joint-2": OFF, "B-FP": ON}, 3, NOT_CONFIRMED, "it is not on the front"),
        ({"Joint-2": ON, "B-FP": OPEN}, 3, NOT_DECIDED, "unresolved for B-FP"),
        ({"B-FP": ON}, 3, NOT_TESTED, "no finished run of Joint-2"),
    ],
)
def test_best_trade_is_an_arm_alone_on_the_front(
    members: dict[str, str], seeds: int, finding: str, reason: str
) -> None:
    front = pd.DataFrame({"config": list(members), "membership": list(members.values()), "probability": 0.97})
    arms = pd.DataFrame({"config": list(members), "seeds": seeds})
    decided = HYPOTHESES["H3"].test(Results("acc", arms, pd.DataFrame(), front, frozenset({"cpu"})))
    assert (decided.finding, decided.reason) == (finding, reason)
    assert decided.result == ("–" if finding == NOT_TESTED else "on the front: 0.97")


@pytest.mark.parametrize(
    ("peak", "percent", "finding", "reason"),
    [
        (109.0, 0.14, CONFIRMED, "both hold"),
        (111.0, 0.14, NOT_CONFIRMED, "memory differs by more than 10 %"),
        (100.0, 0.15, NOT_CONFIRMED, "not all train less than 0.15 %"),
        (80.0, 2.0, NOT_CONFIRMED, "memory differs by more than 10 % and not all train less than 0.15 %"),
    ],
)
def test_memory_and_trained_share_of_the_farthest_arm_decide(
    peak: float, percent: float, finding: str, reason: str
) -> None:
    rows = [(name, 100.0, 0.1) for name in ("B-Q4", "Joint-1", "Joint-3")] + [("Joint-2", peak, percent)]
    arms = pd.DataFrame(rows, columns=["config", "peak_mib", "trainable_percent"])
    measured = Results("acc", arms, pd.DataFrame(), pd.DataFrame(), frozenset({"cpu"}))
    decided = MemoryAndTrainedShare(JOINT, "B-Q4", below=0.15)(measured)
    assert (decided.finding, decided.reason) == (finding, reason)
    assert decided.result.startswith(f"peak memory up to {peak / 100:.2f} times")


@pytest.mark.parametrize(
    ("device", "speed", "seeds", "finding", "reason"),
    [
        ("mps", 90.0, 3, CONFIRMED, "each of the others is slower"),
        ("mps", 100.0, 3, NOT_CONFIRMED, "no slower: B-Q4"),
        ("mps", 90.0, 1, NOT_DECIDED, "one seed"),
        ("cpu", 90.0, 3, NOT_TESTED, "needs runs on mps, has cpu"),
    ],
)
def test_speed_is_compared_on_the_device_of_the_hypothesis(
    device: str, speed: float, seeds: int, finding: str, reason: str
) -> None:
    arms = pd.DataFrame([("B-FP", 100.0), ("B-Q4", speed)], columns=["config", "train_tok_s"])
    arms["seeds"] = seeds
    measured = Results("acc", arms, pd.DataFrame(), pd.DataFrame(), frozenset({device}))
    decided = FastestOn("mps", "B-FP", ("B-Q4",))(measured)
    assert (decided.finding, decided.reason) == (finding, reason)


@pytest.mark.parametrize("missing", ["B-FP", "B-Q4", "Joint-1", "Joint-2"])
def test_one_missing_speed_leaves_the_order_of_speeds_untested(missing: str) -> None:
    speeds = {"B-FP": 100.0, "B-Q4": 50.0, "Joint-1": 40.0, "Joint-2": 30.0, missing: float("nan")}
    arms = pd.DataFrame(list(speeds.items()), columns=["config", "train_tok_s"])
    measured = Results("acc", arms, pd.DataFrame(), pd.DataFrame(), frozenset({"mps"}))
    decided = FastestOn("mps", "B-FP", ("B-Q4", "Joint-1", "Joint-2"))(measured)
    assert (decided.finding, decided.reason) == (NOT_TESTED, "the speed of training was not measured")


@pytest.mark.parametrize("missing", ["B-Q4", "Joint-2"])
def test_one_missing_memory_leaves_the_memory_untested(missing: str) -> None:
    peaks = {"B-Q4": 100.0, **dict.fromkeys(JOINT, 100.0), missing: float("nan")}
    arms = pd.DataFrame(list(peaks.items()), columns=["config", "peak_mib"]).assign(trainable_percent=0.1)
    measured = Results("acc", arms, pd.DataFrame(), pd.DataFrame(), frozenset({"cpu"}))
    decided = MemoryAndTrainedShare(JOINT, "B-Q4", below=0.15)(measured)
    assert (decided.finding, decided.reason) == (NOT_TESTED, "memory or trained shares were not measured")


def test_unmeasured_adapter_parameters_are_named_instead_of_a_ratio() -> None:
    found = results(BETTER, ("B-Ada", "B-FP"))
    found.arms["adapter_mib"] = [float("nan"), 1.0]
    reason = HYPOTHESES["H2"].test(found).reason
    assert reason == "it is better than B-FP; its adapter parameters were not measured"


def test_table_of_report_and_paper_has_every_hypothesis_and_none_without_a_tested_one(
    maker: Any, tmp_path: Path
) -> None:
    add(maker, "other", 300)
    evidence = gather(load_study(open_store(str(tmp_path))), "movies")
    assert evidence.hypotheses.empty and list(evidence.hypotheses.columns) == COLUMNS
    assert hypotheses_table([evidence]) == ""
    assert not [table for table in tables(evidence) if table.name == "hypotheses-movies"]
    add(maker, "B-FP", 360)
    add(maker, "B-Q4", 300)
    evidence = gather(load_study(open_store(str(tmp_path))), "movies")
    (table,) = [table for table in tables(evidence) if table.name == "hypotheses-movies"]
    assert table.shown["Hypothesis"].to_list() == list(HYPOTHESES)
    latex = hypotheses_table([evidence])
    assert "H1. 4-bit quantization alone" in latex and "not confirmed: it is worse than B-FP" in latex
    assert "not tested here: needs runs on mps, has cpu" in latex


def test_reduction_is_the_percent_of_final_adapter_parameters_saved_against_full_lora(
    maker: Any, tmp_path: Path
) -> None:
    for name, mib in (("B-FP", 1.0), ("LoRA-Attention", 0.688), ("LoRA-FFN", 0.312)):
        add(maker, name, 300, lora_mib=mib)
    evidence = gather(load_study(open_store(str(tmp_path))), "movies")
    (table,) = [table for table in tables(evidence) if table.name == "arms-movies"]
    shown = dict(zip(table.shown["Arm"], table.shown["Reduction %"], strict=True))
    assert shown == {"B-FP": "0.0", "LoRA-Attention": "31.2", "LoRA-FFN": "68.8"}
