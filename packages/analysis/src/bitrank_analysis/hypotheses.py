"""The study's own hypotheses, stated before its runs, and what the runs of a task show about them.

A hypothesis is an entry of :data:`HYPOTHESES`: its text, and the test that decides it. H1 to H5 are the
expected outcomes of the study's design; H6 was added after the first results and is marked so. Tests read the
corrected comparisons, the front and the costs of :class:`Results`. One seed decides nothing on quality or
speed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import pandas as pd

from bitrank_analysis import phrasing
from bitrank_analysis.statistics.pareto import OFF, ON
from bitrank_analysis.statistics.verdicts import AS_GOOD, BETTER, OVER_SEEDS, sentence

CONFIRMED = "confirmed"
NOT_CONFIRMED = "not confirmed"
NOT_DECIDED = "not decided"
NOT_TESTED = "not tested here"
COLUMNS = ["hypothesis", "text", "compared", "result", "finding", "reason", "metric"]
# "About the memory of B-Q4": the design names no limit; 10 % was chosen when the test was written.
_ABOUT = 0.1


@dataclass(frozen=True)
class Results:
    """What tests read about one task.

    ``arms``, ``comparisons`` and ``front`` are the frames of
    :func:`~bitrank_analysis.statistics.arms.arms`, :func:`~bitrank_analysis.statistics.compare.compare` and
    :func:`~bitrank_analysis.statistics.pareto.pareto`, the last two empty where they could not be made.
    ``devices`` are those that runs were trained on (cpu, cuda, mps).
    """

    metric: str
    arms: pd.DataFrame
    comparisons: pd.DataFrame
    front: pd.DataFrame
    devices: frozenset[str]

    def has(self, *names: str) -> str:
        """A reason why arms called ``names`` cannot be tested; "" if all have finished."""
        missing = [name for name in names if name not in set(self.arms["config"])]
        return f"no finished run of {phrasing.listed(missing)}" if missing else ""

    def arm(self, name: str) -> pd.Series:
        """The row of an arm that :meth:`has` found."""
        return self.arms.set_index("config").loc[name]


@dataclass(frozen=True)
class Finding:
    """``result`` is the measured statistic as text; ``reason`` completes the finding to a sentence."""

    finding: str
    reason: str
    compared: str = phrasing.NOTHING
    result: str = phrasing.NOTHING


class Test(Protocol):
    """Decides a hypothesis from the results of one task."""

    def __call__(self, results: Results) -> Finding: ...


@dataclass(frozen=True)
class Compared:
    """The corrected comparison of ``candidate`` with ``baseline`` has the verdict ``confirmed_by``.

    Every other verdict of several seeds refutes it. Arms that differ by less than the margin are as good as
    each other even if the difference is not by chance. With ``parameters`` the hypothesis is about arms of
    equal parameters, and the reason says how many the candidate has at the end of training.
    """

    candidate: str
    baseline: str
    confirmed_by: str = BETTER
    parameters: bool = False

    def __call__(self, results: Results) -> Finding:
        if reason := results.has(self.candidate, self.baseline):
            return Finding(NOT_TESTED, reason)
        rows = results.comparisons
        if not rows.empty:
            rows = rows[(rows["candidate"] == self.candidate) & (rows["baseline"] == self.baseline)]
        if rows.empty:
            return Finding(NOT_TESTED, "the two were not compared")
        row: Any = next(rows.itertuples())
        finding, reason = NOT_DECIDED, str(row.verdict)
        if row.verdict in OVER_SEEDS:
            within = self.confirmed_by == AS_GOOD and bool(row.equivalent)
            finding = CONFIRMED if within or row.verdict == self.confirmed_by else NOT_CONFIRMED
            reason = sentence(row.verdict, self.baseline, within)
        if self.parameters:
            reason += f"; {self._share(results)}"
        compared = f"{self.candidate} against {self.baseline}"
        result = phrasing.difference(row.difference, row.low, row.high, row.p_holm, results.metric)
        return Finding(finding, reason, compared, result)

    def _share(self, results: Results) -> str:
        ours, theirs = (float(results.arm(name)["adapter_mib"]) for name in (self.candidate, self.baseline))
        if math.isnan(ours) or math.isnan(theirs):
            return "its adapter parameters were not measured"
        return f"it ends with {ours / theirs:.2f} times the adapter parameters"


@dataclass(frozen=True)
class AloneOnFront:
    """``arm`` is on the front of quality and stored bytes, and no other arm is."""

    arm: str

    def __call__(self, results: Results) -> Finding:
        reason = results.has(self.arm) or ("the front was not computed" if results.front.empty else "")
        if reason:
            return Finding(NOT_TESTED, reason)
        members = dict(zip(results.front["config"], results.front["membership"], strict=True))
        probability = float(results.front.set_index("config").loc[self.arm, "probability"])
        others = [name for name, member in members.items() if member == ON and name != self.arm]
        unclear = [name for name, member in members.items() if member not in (ON, OFF)]
        if results.arms["seeds"].min() == 1:
            finding, reason = NOT_DECIDED, "one seed"
        elif members[self.arm] == OFF:
            finding, reason = NOT_CONFIRMED, "it is not on the front"
        elif others:
            finding, reason = NOT_CONFIRMED, f"the front also has {phrasing.listed(others)}"
        elif unclear:
            finding, reason = NOT_DECIDED, f"unresolved for {phrasing.listed(unclear)}"
        else:
            finding, reason = CONFIRMED, "it is alone on the front"
        return Finding(finding, reason, f"{self.arm} and all arms", f"on the front: {probability:.2f}")


@dataclass(frozen=True)
class MemoryAndTrainedShare:
    """``arms`` have about the peak memory of ``baseline``, and each trains less than ``below`` percent."""

    arms: tuple[str, ...]
    baseline: str
    below: float

    def __call__(self, results: Results) -> Finding:
        if reason := results.has(*self.arms, self.baseline):
            return Finding(NOT_TESTED, reason)
        rows = results.arms[results.arms["config"].isin(self.arms)]
        reference = float(results.arm(self.baseline)["peak_mib"])
        if math.isnan(reference) or rows[["peak_mib", "trainable_percent"]].isna().any(axis=None):
            return Finding(NOT_TESTED, "memory or trained shares were not measured")
        ratios = rows["peak_mib"] / reference
        farthest = ratios.loc[(ratios - 1).abs().idxmax()]
        low, high = rows["trainable_percent"].min(), rows["trainable_percent"].max()
        reasons = []
        if not abs(farthest - 1) <= _ABOUT:
            reasons.append(f"memory differs by more than {100 * _ABOUT:g} %")
        if not high < self.below:
            reasons.append(f"not all train less than {self.below:g} %")
        return Finding(
            NOT_CONFIRMED if reasons else CONFIRMED,
            " and ".join(reasons) or "both hold",
            f"{phrasing.listed(self.arms)} against {self.baseline}",
            f"peak memory up to {farthest:.2f} times; trained {low:.2f} to {high:.2f} %",
        )


@dataclass(frozen=True)
class FastestOn:
    """On ``device``, ``arm`` trains more tokens a second than each of ``others``."""

    device: str
    arm: str
    others: tuple[str, ...]

    def __call__(self, results: Results) -> Finding:
        if results.devices != {self.device}:
            found = phrasing.listed(sorted(results.devices)) or "an unknown device"
            return Finding(NOT_TESTED, f"needs runs on {self.device}, has {found}")
        if reason := results.has(self.arm, *self.others):
            return Finding(NOT_TESTED, reason)
        ours = float(results.arm(self.arm)["train_tok_s"])
        ratios = {name: ours / float(results.arm(name)["train_tok_s"]) for name in self.others}
        # `min` returns a number or NaN, depending on their order.
        if any(map(math.isnan, ratios.values())):
            return Finding(NOT_TESTED, "the speed of training was not measured")
        slowest = min(ratios.values())
        faster = [name for name, ratio in ratios.items() if ratio <= 1]
        finding, reason = CONFIRMED, "each of the others is slower"
        if results.arms["seeds"].min() == 1:
            finding, reason = NOT_DECIDED, "one seed"
        elif faster:
            finding, reason = NOT_CONFIRMED, f"no slower: {phrasing.listed(faster)}"
        return Finding(
            finding,
            reason,
            f"{self.arm} against {phrasing.listed(self.others)}",
            f"tokens/s at least {slowest:.2f} times",
        )


@dataclass(frozen=True)
class Hypothesis:
    """``text`` as the design states it, and the test that decides."""

    text: str
    test: Test


_JOINT = ("Joint-1", "Joint-2", "Joint-3")
HYPOTHESES: dict[str, Hypothesis] = {
    "H1": Hypothesis(
        "4-bit quantization alone is about as good as 16 bits", Compared("B-Q4", "B-FP", AS_GOOD)
    ),
    "H2": Hypothesis(
        "Adaptive rank is better than fixed rank at equal parameters",
        Compared("B-Ada", "B-FP", parameters=True),
    ),
    "H3": Hypothesis("Joint-2 is the best trade of quality and bytes", AloneOnFront("Joint-2")),
    "H4": Hypothesis(
        "Joint configs take about the memory of B-Q4 and train less than 0.15 % of the parameters",
        MemoryAndTrainedShare(_JOINT, "B-Q4", below=0.15),
    ),
    "H5": Hypothesis(
        "16 bits train fastest on MPS; 4 bits are slower", FastestOn("mps", "B-FP", ("B-Q4", *_JOINT))
    ),
    "H6": Hypothesis(
        "A joint plan in the bytes of B-Q4 is better than B-Q4 (added after the results)",
        Compared("Plan-Q4", "B-Q4"),
    ),
}


def findings_on_hypotheses(results: Results, registry: Mapping[str, Hypothesis] = HYPOTHESES) -> pd.DataFrame:
    """Return one row per hypothesis with the columns :data:`COLUMNS`; no row if none could be tested.

    ``finding`` is confirmed, not confirmed, not decided or not tested here.
    """
    found = {name: hypothesis.test(results) for name, hypothesis in registry.items()}
    rows = [
        (name, registry[name].text, one.compared, one.result, one.finding, one.reason, results.metric)
        for name, one in found.items()
    ]
    tested = any(one.finding != NOT_TESTED for one in found.values())
    return pd.DataFrame(rows if tested else [], columns=COLUMNS)
