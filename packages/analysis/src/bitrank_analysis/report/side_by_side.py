"""Outputs side by side: examples on which arms disagree, generated texts, and continuations of prompts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bitrank_analysis.artifacts import CONTINUATIONS, read_file
from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.evidence import Evidence
from bitrank_analysis.metrics import metric_of
from bitrank_analysis.study import Study

_SHOWN = 12
_LONGEST = 300  # characters of a text in a cell
_TEXT, _REFERENCE = "prediction_text", "reference_text"  # columns of generated texts


@dataclass(frozen=True)
class SideBySide:
    """A sentence, and a table with the headings ``heads`` (empty if there is only the sentence)."""

    sentence: str
    heads: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


def side_by_side(study: Study, evidence: Evidence) -> SideBySide:
    """Disagreements if runs predict one label per example, else generated texts, else continuations."""
    runs = _one_run_each(evidence)
    predictions = {config: study.predictions(run_id) for config, run_id in runs.items()}
    if "prediction" in metric_of(evidence.metric).examples.columns:
        return disagreements(predictions)
    if all({_TEXT, _REFERENCE} <= set(frame) for frame in predictions.values()):
        return generated_texts(predictions)
    return _side_by_side_continuations(study, runs)


def disagreements(predictions: dict[str, pd.DataFrame], shown: int = _SHOWN) -> SideBySide:
    """Examples on which arms disagree, the most evenly split first.

    ``predictions`` maps a config to a frame with id, label, prediction and optionally confidence and text.
    """
    arms = list(predictions)
    if len(arms) < 2:
        return SideBySide(f"{arms[0]} is the only arm, so there is nothing to disagree with.")
    right = pd.DataFrame({arm: _right(frame) for arm, frame in predictions.items()})
    split = right[right.nunique(axis=1) > 1]
    every, none = int(right.all(axis=1).sum()), int((~right.any(axis=1)).sum())
    counts = (
        f"Of {len(right):,} examples all arms are right on {every:,} and wrong on {none:,}; "
        f"they disagree on {len(split):,}."
    )
    if split.empty:
        return SideBySide(counts)
    evenness = (split.mean(axis=1) - 0.5).abs()
    keyed = split.assign(_even=evenness, _id=split.index.astype(str))
    chosen = keyed.sort_values(["_even", "_id"]).index[:shown]
    by_id = {arm: frame.drop_duplicates("id").set_index("id") for arm, frame in predictions.items()}
    first = by_id[arms[0]]
    rows = tuple(
        (_example(first, id), str(first.loc[id, "label"]), *(_cell(by_id[arm], id) for arm in arms))
        for id in chosen
    )
    if len(split) > shown:
        counts += f" The {len(rows)} most evenly split are shown with each arm's prediction and confidence."
    return SideBySide(counts, ("Example", "Label", *arms), rows)


def generated_texts(predictions: dict[str, pd.DataFrame], shown: int = _SHOWN) -> SideBySide:
    """Texts of each arm beside the reference, those with the most different texts first.

    ``predictions`` maps a config to a frame with id, reference_text, prediction_text and optionally text, the
    prompt. Several rows of an id are the answers of a dialogue, in the order of the test split.
    """
    by_id = {arm: _by_answer(frame) for arm, frame in predictions.items()}
    first = next(iter(by_id.values()))
    texts = pd.DataFrame({arm: frame[_TEXT] for arm, frame in by_id.items()})
    kinds = texts.nunique(axis=1)
    keyed = texts.assign(_kinds=kinds, _id=texts.index.astype(str))
    chosen = keyed.sort_values(["_kinds", "_id"], ascending=[False, True]).index[:shown]
    rows = tuple(
        (
            _cut(_example(first, id)),
            _cut(str(first.loc[id, _REFERENCE])),
            *(_cut(str(frame.loc[id, _TEXT])) for frame in by_id.values()),
        )
        for id in chosen
    )
    same = int((kinds == 1).sum())
    sentence = f"Greedy texts of {len(texts):,} {_unit(first)}; all arms write the same text on {same:,}."
    if len(texts) > shown:
        sentence += f" The {len(rows)} with the most different texts are shown."
    return SideBySide(sentence, ("Prompt", "Reference", *by_id), rows)


def _by_answer(frame: pd.DataFrame) -> pd.DataFrame:
    """``frame`` by id; later rows of an id have its number of the answer too."""
    number = frame.groupby("id").cumcount() + 1
    ids = frame["id"].astype(str)
    return frame.set_index(ids.where(number == 1, ids + " (answer " + number.astype(str) + ")"))


def _unit(frame: pd.DataFrame) -> str:
    return "answers" if frame["id"].duplicated().any() else "examples"


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _right(frame: pd.DataFrame) -> pd.Series:
    return (frame["prediction"] == frame["label"]).set_axis(frame["id"]).groupby(level=0).first()


def _example(frame: pd.DataFrame, id: Any) -> str:
    return str(frame.loc[id, "text"]) if "text" in frame else str(id)


def _cell(frame: pd.DataFrame, id: Any) -> str:
    prediction = frame.loc[id, "prediction"]
    mark = "✓" if prediction == frame.loc[id, "label"] else "✗"
    confidence = f" ({frame.loc[id, 'confidence']:.2f})" if "confidence" in frame else ""
    return f"{mark} {prediction}{confidence}"


def _one_run_each(evidence: Evidence) -> dict[str, str]:
    """Config → run_id, of the lowest among the seeds that most arms have."""
    counts = evidence.runs.groupby("seed")["config"].nunique()
    seed = counts[counts == counts.max()].index.min()
    runs = evidence.runs[evidence.runs["seed"] == seed]
    return dict(zip(runs["config"], runs["run_id"], strict=True))


def _side_by_side_continuations(study: Study, runs: dict[str, str]) -> SideBySide:
    texts = {config: found for config, run_id in runs.items() if (found := _continuations(study, run_id))}
    if not texts:
        return SideBySide(f"No run has a {CONTINUATIONS}, so there are no texts to compare.")
    prompts = list(dict.fromkeys(prompt for found in texts.values() for prompt in found))
    rows = tuple(
        (prompt, config, found[prompt])
        for prompt in prompts
        for config, found in texts.items()
        if prompt in found
    )
    without = [config for config in runs if config not in texts]
    also = f" No texts of {', '.join(without)}." if without else ""
    return SideBySide(
        f"Continuations of the same prompts by each arm, greedy decoding.{also}",
        ("Prompt", "Arm", "Continuation"),
        rows,
    )


def _continuations(study: Study, run_id: str) -> dict[str, str]:
    """Prompt → continuation, empty if the run has no file. Raises :class:`AnalysisError` if malformed."""
    content = read_file(study.database, run_id, CONTINUATIONS)
    if content is None:
        return {}
    try:
        return {str(entry["prompt"]): str(entry["continuation"]) for entry in json.loads(content)}
    except (ValueError, KeyError, TypeError) as error:
        raise AnalysisError(
            f'run {run_id}: expected {CONTINUATIONS} to be a list of {{"prompt": …, "continuation": …}}, '
            f"got {type(error).__name__}: {error}"
        ) from error
