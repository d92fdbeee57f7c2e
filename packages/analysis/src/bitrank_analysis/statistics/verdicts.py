"""What a comparison may be called.

*Better*, *worse* and *as good as* speak of the configs: another seed would say the same. One seed cannot show that. Between arms that
are the same and vary by 0.7, 1.4 and 3.0 points between seeds, the examples of one seed alone tell them apart in 13, 38 and 63 % of
comparisons: they do differ, and training made them so. With one seed the verdict is on these trained models and is called by other words.
"""

from __future__ import annotations

BETTER = "better"
WORSE = "worse"
AS_GOOD = "as good as"
UNRESOLVED = "unresolved"
DIFFERS = "differs on these examples (one seed)"
ALIKE = "alike on these examples (one seed)"
# In the order in which they are told.
VERDICTS = (BETTER, AS_GOOD, DIFFERS, ALIKE, WORSE, UNRESOLVED)

RESOLVED = "resolved"  # of an effect of the factorial


def short(word: str) -> str:
    """The verdict for a narrow column: without "on these examples"."""
    return word.replace(" on these examples", "")


def verdict(differs: bool, equivalent: bool, wins: bool, seeds: int) -> str:
    """The word for a comparison over ``seeds`` whose corrected tests say ``differs`` and ``equivalent``; ``wins`` is its direction."""
    if differs and seeds > 1:
        return BETTER if wins else WORSE
    if differs:
        return DIFFERS
    if equivalent:
        return AS_GOOD if seeds > 1 else ALIKE
    return UNRESOLVED


def effect_verdict(differs: bool, seeds: int) -> str:
    """The same for an effect of the factorial."""
    if not differs:
        return UNRESOLVED
    return RESOLVED if seeds > 1 else DIFFERS
