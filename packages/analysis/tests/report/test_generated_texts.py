"""Generated texts of all arms beside the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from bitrank_analysis import load_study, open_store
from bitrank_analysis.evidence import gather
from bitrank_analysis.report.side_by_side import generated_texts, side_by_side


def frame(texts: list[str]) -> pd.DataFrame:
    count = len(texts)
    columns = {"id": [f"e{n}" for n in range(count)], "text": [f"prompt {n}" for n in range(count)]}
    return pd.DataFrame(
        {**columns, "reference_text": [f"target {n}" for n in range(count)], "prediction_text": texts}
    )


def test_examples_with_different_texts_are_shown_first() -> None:
    shown = generated_texts({"A": frame(["x", "y", "z"]), "B": frame(["x", "q", "z"])}, shown=2)
    assert shown.heads == ("Prompt", "Reference", "A", "B")
    assert shown.rows == (("prompt 1", "target 1", "y", "q"), ("prompt 0", "target 0", "x", "x"))
    assert shown.sentence == (
        "Greedy texts of 3 examples; all arms write the same text on 2. The 2 with the most different texts "
        "are shown."
    )


def test_texts_are_matched_by_id_and_long_ones_are_cut() -> None:
    turned = frame(["a", "b" * 400]).iloc[::-1]
    shown = generated_texts({"A": frame(["a", "b"]), "B": turned})
    by_prompt = {row[0]: row for row in shown.rows}
    assert by_prompt["prompt 0"][2:] == ("a", "a")
    assert by_prompt["prompt 1"][3] == "b" * 299 + "…"


def test_a_report_has_texts_and_comparisons_of_runs_that_generate(maker: Any, tmp_path: Path) -> None:
    for config, share in (("B-FP", 0.9), ("B-Q4", 0.5)):
        texts = frame([f"{config} {n}" for n in range(20)]).to_dict("list")
        scores = {"rouge1": [share] * 10 + [0.2] * 10, "exact_match": [1.0] * 10 + [0.0] * 10}
        counts = {"bleu_counts": [[5, 5, int(5 * share), 2, 1, 1, 5, 4, 3, 2]] * 20}
        losses = {"loss": [3.0] * 20, "tokens": [2] * 20}
        maker.run(
            config,
            task="summaries",
            predictions={**texts, **losses, **scores, **counts},
            metrics={"eval/ppl": 4.0, "model/mib": 1.0},
            tags={"kind": "sequence-to-sequence", "metric": "ppl"},
        )
    study = load_study(open_store(str(tmp_path)))
    evidence = gather(study, "summaries")
    assert evidence.further["metric"].to_list() == ["rouge1", "bleu", "exact_match"]
    rows = evidence.further.set_index("metric")
    assert rows.loc["rouge1", "difference"] == -0.2 and rows.loc["exact_match", "p"] == 1.0
    assert rows.loc["bleu", "candidate_quality"] < rows.loc["bleu", "baseline_quality"]
    assert rows.loc["bleu", "p"] < 0.001
    shown = side_by_side(study, evidence)
    assert shown.heads == ("Prompt", "Reference", "B-FP", "B-Q4") and len(shown.rows) == 12
