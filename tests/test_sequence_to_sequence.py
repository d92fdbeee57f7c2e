"""Encoder-decoders from training to a verdict: runs, generated texts, scores, report, and a plan."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from bitrank.planning.costs import Choices
from bitrank.planning.make_plan import PlanRequest, make_plan
from bitrank.run.record import Record
from bitrank.run.train_run import execute
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import PROFILES
from bitrank.spec.run_spec import write_spec
from bitrank.spec.task_kinds import task_kind
from bitrank.tracking.mlflow_tracker import Tracker
from bitrank.tracking.store import open_store
from bitrank_analysis import load_study
from bitrank_analysis import open_store as open_for_analysis
from bitrank_analysis.metrics import METRICS, further_metrics
from bitrank_analysis.report import collect
from bitrank_analysis.report.plain import plain
from bitrank_trainer import ALONE

pytest.importorskip("rouge_score", reason="scores of texts need the extra text")
pytest.importorskip("sacrebleu", reason="scores of texts need the extra text")
SMOKE, TASK = PROFILES["smoke"], "toy_summaries"
SCORES = ("rouge1", "rouge2", "rougeL", "bleu", "chrf", "token_f1", "exact_match")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two arms, whose work folders are ``B-FP`` and ``B-Q4``."""
    place = tmp_path_factory.mktemp("summaries")
    store = str(place / "runs")
    tracker = Tracker(open_store(store), store, SMOKE.name)
    for config in ("B-FP", "B-Q4"):
        spec, folder = make_spec(SMOKE, config, TASK), place / config
        folder.mkdir()
        write_spec(spec, folder / "spec.json")
        log = tracker.open(spec, None)
        execute(spec, folder, Record(folder, ALONE), ALONE)
        log.close(folder, "FINISHED", {})
    return place


def test_a_run_learns_and_records_scores_of_its_texts(runs: Path) -> None:
    study = load_study(open_for_analysis(str(runs / "runs")))
    assert len(study.runs) == 2
    for run in study.runs.itertuples():
        assert run.quality < run.zero / 2  # perplexity
        result = json.loads((runs / run.config / "result.json").read_text())
        predictions = study.predictions(run.run_id)
        assert len(predictions) == 32 and result["speed/infer_tok_s"] > 0
        assert result["speed/eval_tok_s"] != result["speed/infer_tok_s"] and result["time/generate_s"] > 0
        assert predictions["text"].str.startswith("the ").all()
        for key in SCORES:
            frame = METRICS[key].examples.read(predictions, "a run")
            assert frame["value"].mean() == pytest.approx(result[f"eval/{key}"], abs=1e-9)


def test_the_report_compares_arms_on_every_score_and_shows_texts(runs: Path) -> None:
    report = collect(load_study(open_for_analysis(str(runs / "runs"))))
    (section,) = report.sections
    further = section.evidence.further
    assert tuple(further["metric"]) == ("token_acc", *SCORES) and set(further["candidate"]) == {"B-Q4"}
    assert further["p"].between(0, 1).all() and further["verdict"].notna().all()
    assert section.errors.heads == ("Prompt", "Reference", "B-FP", "B-Q4")
    text = plain(report)
    assert report.verdict[0].startswith(f"{TASK}, against B-FP: B-Q4 ")
    assert "| ROUGE-L |" in text and "Greedy texts of 32 examples" in text


def test_encoder_decoder_and_cross_attention_are_measured_and_planned() -> None:
    spec = make_spec(SMOKE, "B-FP", TASK)
    made = make_plan(spec, PlanRequest("9bits", "exact", Choices(("int4-g64", "bf16"), ranks=(2, 4))))
    assert made.plan.nbytes <= made.problem.budget
    names = {m.name for m in made.sizes.matrices.values() if m.adaptable}
    assert set(made.plan.ranks) == names and len(names) == 2 * 6 + 2 * 10
    for part in ("encoder.", "decoder.", "EncDecAttention."):
        moments = [made.tables.moments[name] for name in names if part in name]
        assert moments and all(float(found.column_I.sum()) > 0 for found in moments)


def test_answers_of_instruction_data_are_written_and_scored(tmp_path: Path) -> None:
    spec = make_spec(SMOKE, "B-FP", "toy_instructions", {"steps": 4})
    execute(spec, tmp_path, Record(tmp_path, ALONE), ALONE)
    predictions = pd.read_parquet(tmp_path / "predictions.parquet")
    assert {"text", "prediction_text", "reference_text", "rougeL", "token_f1"} <= set(predictions)
    assert predictions["reference_text"].str.len().min() > 0
    kept = further_metrics(spec.kind, task_kind(spec.kind).metric.key, set(predictions))
    assert kept == ["token_acc", "rouge1", "rouge2", "rougeL", "token_f1", "exact_match"]
