"""Names of the results of a comparison.

*Better*, *worse* and *as good as* are statements about configs: they should hold for another seed. One seed
cannot show that. For equal arms that vary by 0.7, 1.4 and 3.0 points between seeds, tests over the examples
of one seed reject equality in 13, 38 and 63 % of comparisons: the trained models do differ, but by chance of
training. With one seed the verdict is therefore about these trained models and has a different name.
"""

from __future__ import annotations

BETTER = "better"
WORSE = "worse"
AS_GOOD = "as good as"
UNRESOLVED = "unresolved"
DIFFERS = "differs on these examples (one seed)"
ALIKE = "alike on these examples (one seed)"
# In the order in which reports list them.
VERDICTS = (BETTER, AS_GOOD, DIFFERS, ALIKE, WORSE, UNRESOLVED)

# Verdicts on configs, which need several seeds → how a sentence says them.
OVER_SEEDS = {BETTER: "better than", WORSE: "worse than", AS_GOOD: "as good as"}

RESOLVED = "resolved"  # verdict on an effect of the factorial


def short(word: str) -> str:
    """The verdict for a narrow column, without "on these examples"."""
    return word.replace(" on these examples", "")


def verdict(differs: bool, equivalent: bool, wins: bool, seeds: int) -> str:
    """The verdict on a comparison over ``seeds`` seeds.

    ``differs`` and ``equivalent`` are the results of the corrected tests; ``wins`` is whether the difference
    favours the candidate.
    """
    if differs and seeds > 1:
        return BETTER if wins else WORSE
    if differs:
        return DIFFERS
    if equivalent:
        return AS_GOOD if seeds > 1 else ALIKE
    return UNRESOLVED


def sentence(word: str, baseline: str, within: bool = False) -> str:
    """One of :data:`OVER_SEEDS` as a sentence. ``within``: the difference shown is below the margin."""
    less = " by less than the margin" if within and word != AS_GOOD else ""
    return f"it is {OVER_SEEDS[word]} {baseline}{less}"


def effect_verdict(differs: bool, seeds: int) -> str:
    """The verdict on an effect of the factorial over ``seeds`` seeds."""
    if not differs:
        return UNRESOLVED
    return RESOLVED if seeds > 1 else DIFFERS
