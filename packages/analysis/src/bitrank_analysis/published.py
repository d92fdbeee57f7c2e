"""What others claimed about their methods, and what the runs of a task show about it.

A claim is an entry of :data:`CLAIMS`: its text and source, the pairs of arms that test it, and the kind of
finding that decides. All tested pairs of a task are one family of tests, corrected by Holm as the other
comparisons. A claim whose arms were not run, or not under its conditions, is *not tested here*. One seed
decides nothing, as everywhere in the report.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bitrank_analysis import phrasing
from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.metrics import metric_of
from bitrank_analysis.statistics.compare import compare_pairs
from bitrank_analysis.statistics.examples import ArmResults
from bitrank_analysis.statistics.moderation import seed_spread
from bitrank_analysis.statistics.share import share_kept
from bitrank_analysis.statistics.verdicts import AS_GOOD, BETTER, WORSE, sentence

SUPPORTED = "supported"
NOT_SUPPORTED = "not supported"
NOT_DECIDED = "not decided"
NOT_TESTED = "not tested here"
COLUMNS = [
    "claim", "source", "citation", "candidate", "baseline", "seeds", "statistic", "value", "low", "high",
    "p_holm", "finding", "reason", "metric",
]  # fmt: skip
_16_BITS = "B-FP"
# Stored bits per parameter, with the scales of groups: 3-bit codes take up to 3.5.
_TWO_TO_THREE = (2.0, 3.5)
_FOUR = (4.0, math.inf)
_ADAPTER_BYTES = 2  # per parameter of a stored adapter
# L4Q and trained scales end without adapters, and groups come in few sizes: up to 5 % of a budget is left.
BYTES_TOLERANCE = 0.05
DIFFERENCE, SHARE = "difference", "share"  # statistics of a claim
REPORTED = "as reported about"  # begins the source of a claim that others make about a paper


@dataclass(frozen=True)
class Claim:
    """A claim: ``text`` by ``source``, whose key in the paper's bibliography is ``citation``.

    ``pairs`` are (candidate, baseline). An arm that a study brought to a budget is called ARM-BUDGET; it is
    compared with the baseline of the same budget. ``supported_by`` and ``refuted_by`` are verdicts of the
    comparison that decide; if *as good as* supports the claim, so does a difference below the margin. With
    ``share`` the claim is that this share of the baseline's score is kept; the baseline may then be at its
    own bytes. Conditions: ``kinds`` of tasks (empty: all), percent of trained parameters below
    ``trained_below`` (those left at the end, as in the AdaLoRA paper's tables), stored bits per parameter of
    the candidate at least the first and below the second of ``bits``. Without ``share`` the stored bytes of
    both arms, adapters included, differ by 5 % at most.
    """

    text: str
    source: str
    citation: str
    pairs: tuple[tuple[str, str], ...]
    supported_by: tuple[str, ...] = (BETTER,)
    refuted_by: tuple[str, ...] = (WORSE, AS_GOOD)
    share: float | None = None
    kinds: tuple[str, ...] = ()
    trained_below: float | None = None
    bits: tuple[float, float] = (0.0, math.inf)


CLAIMS: dict[str, Claim] = {
    "adalora": Claim(
        "AdaLoRA is better than LoRA on question answering with less than 0.1 % trained",
        "Zhang et al. 2023",
        "zhang2023adalora",
        (("B-Ada", _16_BITS), ("Joint-1", "B-Q4"), ("AdaLoRA-Attention", "LoRA-Attention")),
        kinds=("question-answering",),
        trained_below=0.1,
    ),
    "ard-lora": Claim(
        "ARD-LoRA keeps 99.3 % of full quality (here: of LoRA in 16 bits)",
        "Shinwari and Usama 2025",
        "shinwari2025ard",
        (("ARD-LoRA-Q4", _16_BITS),),
        share=0.993,
        bits=_FOUR,
    ),
    "qr-adaptor": Claim(
        "Bits and ranks found by QR-Adaptor are better than uniform 4-bit LoRA",
        "Zhou et al. 2025",
        "zhou2025qradaptor",
        (("qr-adaptor", "B-Q4"), ("qr-adaptor", "uniform")),
        bits=_FOUR,
    ),
    "qa-lora": Claim(
        "QA-LoRA is better than QLoRA at 2 to 3 bits",
        "Xu et al. 2024",
        "xu2024qalora",
        (("QA-LoRA-Q4", "B-Q4"),),
        bits=_TWO_TO_THREE,
    ),
    "l4q": Claim(
        "L4Q is better than QLoRA at 2 to 3 bits",
        "Jeon et al. 2025",
        "jeon2025l4q",
        (("L4Q-Q4", "B-Q4"),),
        bits=_TWO_TO_THREE,
    ),
    "loftq-rounds": Claim(
        "Rounds of LoftQ after the first bring nothing",
        f"{REPORTED} Li et al. 2024",
        "li2024loftq",
        (("LoftQ-5-Q4", "LoftQ-Q4"),),
        supported_by=(AS_GOOD, WORSE),
        refuted_by=(BETTER,),
    ),
    "four-bits": Claim(
        "QLoRA in 4 bits keeps 99 % of the score of LoRA in 16 bits",
        f"{REPORTED} Dettmers et al. 2023",
        "dettmers2023qlora",
        (("B-Q4", _16_BITS),),
        share=0.99,
        bits=_FOUR,
    ),
}


@dataclass(frozen=True)
class Setting:
    """What decides whether a claim is tested: the kind of task, and the table of its arms by config."""

    kind: str
    arms: pd.DataFrame


def findings_on_claims(
    arms: Mapping[str, ArmResults],
    setting: Setting,
    registry: Mapping[str, Claim] = CLAIMS,
    alpha: float = 0.05,
) -> pd.DataFrame:
    """Return one row per claim and tested pair of arms of one task, and a row for each claim without a pair.

    Columns are :data:`COLUMNS`. ``statistic`` is ``difference`` (candidate − baseline, as in
    :func:`~bitrank_analysis.statistics.compare.compare`) or ``share``; ``low`` and ``high`` are its 95 %
    interval, uncorrected. ``finding`` is decided by the corrected tests: a difference by its verdict, a share
    by the interval at ``alpha`` divided by the number of tested pairs.
    """
    tested, rows = [], []
    for claim in registry.values():
        pairs, reason = _testable(claim, list(arms), setting)
        tested += [(claim, pair) for pair in pairs]
        if not pairs:
            rows.append(_row(claim, reason=reason, finding=NOT_TESTED))
    compared = compare_pairs(arms, list(dict.fromkeys(pair for _, pair in tested)), alpha)
    verdicts = {(row.candidate, row.baseline): row for row in compared.itertuples()}
    for claim, pair in tested:
        if pair not in verdicts:
            rows.append(_row(claim, pair, finding=NOT_TESTED, reason="no seed in common"))
        elif claim.share is None:
            rows.append(_of_difference(claim, pair, verdicts[pair]))
        else:
            rows.append(_of_share(claim, pair, arms, alpha, len(tested)))
    order = {claim.text: place for place, claim in enumerate(registry.values())}
    frame = pd.DataFrame(rows, columns=COLUMNS).assign(metric=str(setting.arms["metric"].iloc[0]))
    return frame.sort_values("claim", key=lambda texts: texts.map(order), kind="stable", ignore_index=True)


def _testable(claim: Claim, names: Sequence[str], setting: Setting) -> tuple[list[tuple[str, str]], str]:
    """The pairs of finished arms under the claim's conditions; without one, the reason."""
    if claim.kinds and setting.kind not in claim.kinds:
        return [], f"needs a task of the kind {' or '.join(claim.kinds)}"
    found = [pair for named in claim.pairs for pair in _present(claim, *named, names)]
    if not found:
        lacking = {name for pair in claim.pairs for name in pair if not _at_budgets(name, names)}
        missing = ", ".join(sorted(lacking)) or "a pair at equal bytes"
        return [], f"no finished run of {missing}"
    reasons = [_condition(claim, pair, setting.arms) for pair in found]
    kept = [pair for pair, reason in zip(found, reasons, strict=True) if not reason]
    return kept, "" if kept else reasons[0]


def _present(claim: Claim, candidate: str, baseline: str, names: Sequence[str]) -> list[tuple[str, str]]:
    pairs = []
    for name in _at_budgets(candidate, names):
        same_bytes = baseline + name.removeprefix(candidate)
        if same_bytes in names:
            pairs.append((name, same_bytes))
        elif claim.share is not None and baseline in names:
            pairs.append((name, baseline))
    return pairs


def _at_budgets(arm: str, names: Sequence[str]) -> list[str]:
    """``arm`` itself, and ``arm`` at the budgets of a study, among ``names``."""
    return [name for name in names if name == arm or name.startswith(f"{arm}-")]


def _condition(claim: Claim, pair: tuple[str, str], table: pd.DataFrame) -> str:
    """The reason why ``pair`` is not under the claim's conditions; "" if it is."""
    by_config = table.set_index("config")
    if claim.trained_below is not None:
        trained = [_trained_percent(by_config.loc[name]) for name in pair]
        if not max(trained) < claim.trained_below:
            return f"trains {trained[0]:.2f} % and {trained[1]:.2f} %, not below {claim.trained_below:g} %"
    if claim.share is None:
        candidate, baseline = (float(by_config.loc[name, "stored_mib"]) for name in pair)
        if not abs(candidate / baseline - 1) <= BYTES_TOLERANCE:
            return f"{pair[0]} stores {candidate:.2f} MiB, {pair[1]} {baseline:.2f}: not equal bytes"
    low, high = claim.bits
    bits = float(by_config.loc[pair[0], "bits"])
    if (low, high) != (0.0, math.inf) and not low <= bits < high:
        expected = f"at least {low:g}" if high == math.inf else f"{low:g} to {high:g}"
        return f"{pair[0]} stores {bits:.2f} bits per parameter, not {expected}"
    return ""


def _trained_percent(arm: pd.Series) -> float:
    """Trained parameters that are left when ranks are pruned, in percent of the model's parameters."""
    left = arm["adapter_mib"] * 2**20 / _ADAPTER_BYTES
    return float(arm["trainable_percent"] * left / arm["adapter_params"])


def _of_difference(claim: Claim, pair: tuple[str, str], row: Any) -> dict[str, Any]:
    decided = {
        **dict.fromkeys(claim.supported_by, SUPPORTED),
        **dict.fromkeys(claim.refuted_by, NOT_SUPPORTED),
    }
    within = AS_GOOD in claim.supported_by and bool(row.equivalent) and row.verdict in decided
    finding = SUPPORTED if within else decided.get(row.verdict, NOT_DECIDED)
    reason = row.verdict if finding == NOT_DECIDED else sentence(row.verdict, row.baseline, within)
    return _row(
        claim,
        pair,
        seeds=row.seeds,
        value=row.difference,
        low=row.low,
        high=row.high,
        p_holm=row.p_holm,
        finding=finding,
        reason=reason,
    )


def _of_share(
    claim: Claim, pair: tuple[str, str], arms: Mapping[str, ArmResults], alpha: float, family: int
) -> dict[str, Any]:
    candidate, baseline = (arms[name] for name in pair)
    spread = seed_spread(arms.values())
    try:
        shown = share_kept(candidate, baseline, spread, alpha)
        corrected = share_kept(candidate, baseline, spread, alpha / family)
    except AnalysisError as error:
        return _row(claim, pair, finding=NOT_TESTED, reason=str(error))
    assert claim.share is not None, "only a claim with a share is decided by it"
    finding, reason = NOT_DECIDED, f"the corrected interval contains {100 * claim.share:g} %"
    if shown.seeds == 1:
        reason = "one seed"
    elif corrected.low >= claim.share:
        finding, reason = SUPPORTED, f"at least {100 * claim.share:g} % is kept"
    elif corrected.high < claim.share:
        finding, reason = NOT_SUPPORTED, f"less than {100 * claim.share:g} % is kept"
    elif corrected.low != corrected.low:
        reason = "too few documents for an interval"
    return _row(
        claim, pair, seeds=shown.seeds, value=shown.value, low=shown.low, high=shown.high, finding=finding,
        reason=reason,
    )  # fmt: skip


def _row(claim: Claim, pair: tuple[str, str] | None = None, **values: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"claim": claim.text, "source": claim.source, "citation": claim.citation}
    if pair is not None:
        found |= {"candidate": pair[0], "baseline": pair[1]}
    return found | {"statistic": DIFFERENCE if claim.share is None else SHARE} | values


def result_text(row: Any, metric: str) -> str:
    """The statistic of a row of :func:`findings_on_claims` with its interval; a dash if it was not tested."""
    if row.finding == NOT_TESTED:
        return phrasing.NOTHING
    if row.statistic == SHARE:
        value, low, high = (_percent(part) for part in (row.value, row.low, row.high))
        name = phrasing.name(metric)
        if metric_of(metric).higher_is_better:
            return f"{value} % [{low}, {high}] of {name} kept"
        return f"{value} % [{low}, {high}], {name} of {row.baseline} over that of {row.candidate}"
    return phrasing.difference(row.value, row.low, row.high, row.p_holm, metric)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}" if math.isfinite(share) else phrasing.NOTHING


def compared_text(row: Any) -> str:
    """The pair of arms of a row of :func:`findings_on_claims`; a dash if nothing was tested."""
    if not isinstance(row.candidate, str):
        return phrasing.NOTHING
    return f"{row.candidate} against {row.baseline}"
