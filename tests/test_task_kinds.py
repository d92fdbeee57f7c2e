"""A task kind added from outside the tree, from training to a verdict; registries alone name kinds.

The kind is token tagging: each word of a sentence is an opinion or not. It has its own sequences and labels,
objective, model class, metric and paired statistics; no shared loop knows of it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bitrank.errors import UserError
from bitrank.planning.costs import Choices
from bitrank.planning.make_plan import PlanRequest, make_plan
from bitrank.run.record import Record
from bitrank.run.train_run import execute
from bitrank.spec.make_spec import make_spec
from bitrank.spec.plan_file import plan_data, save_plan
from bitrank.spec.profiles import PROFILES
from bitrank.spec.run_spec import RunSpec, write_spec
from bitrank.spec.task_kinds import (
    TASK_KINDS,
    CalibrationSizes,
    Requirement,
    TaskKind,
    TaskMetric,
    task_metrics,
)
from bitrank.tracking.mlflow_tracker import Tracker
from bitrank.tracking.mlflow_views import experiment_views
from bitrank.tracking.store import open_store
from bitrank_analysis import load_study
from bitrank_analysis import open_store as open_for_analysis
from bitrank_analysis.metrics import METRICS, Metric, summed
from bitrank_analysis.report import collect
from bitrank_analysis.report.plain import plain
from bitrank_analysis.statistics import compare
from bitrank_data import (
    CLASSIFICATION,
    DATA_KINDS,
    EMBEDDED,
    IGNORED,
    Cutting,
    DataKind,
    Example,
    Piece,
    Source,
    Texts,
    labels_of_tokens,
)
from bitrank_trainer import ALONE, OBJECTIVES, Objective
from torch import Tensor, nn
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[1]
SMOKE = PROFILES["smoke"]
KIND, TASK = "token-tagging", "toy_opinions"
GOOD, BAD = {"good", "lovely", "bright", "fine", "superb"}, {"bad", "dull", "poor", "weak", "awful"}
FORMATS = ("int4-g64", "bf16")


def toy_opinions() -> Texts:
    """The toy sentences, whose words are tagged: other, praise, or blame."""
    splits = EMBEDDED["toy_sentences"].load().splits
    return Texts(KIND, splits, ("other", "praise", "blame"))


def encode_words(
    examples: Sequence[Example], tokenizer: Any, cutting: Cutting
) -> tuple[list[list[Piece]], int]:
    """One sequence per sentence; every word is one token of the tiny tokenizers."""
    encoded = []
    for example in examples:
        words = example.text.split()[: cutting.max_length]
        tags = [1 if word in GOOD else 2 if word in BAD else 0 for word in words]
        encoded.append([Piece(tokenizer.convert_tokens_to_ids(words), tags)])
    return encoded, 0


@dataclass(frozen=True)
class TokenTagging:
    """Cross entropy of each token's tag; metric: share of right tags."""

    metric: str = "tag_acc"
    higher_is_better: bool = True

    def logits_and_labels(
        self, model: nn.Module, batch: Mapping[str, np.ndarray], device: str
    ) -> tuple[Tensor, Tensor]:
        names = ("input_ids", "attention_mask")
        inputs = {name: torch.from_numpy(np.ascontiguousarray(batch[name])).to(device) for name in names}
        labels_BT = torch.from_numpy(np.ascontiguousarray(batch["labels"])).to(device)
        output: Any = model(**inputs)
        return output.logits.float().flatten(0, 1), labels_BT.flatten()

    def loss(self, model: nn.Module, batch: Mapping[str, np.ndarray], device: str) -> Tensor:
        return F.cross_entropy(*self.logits_and_labels(model, batch, device))

    def weight(self, batch: Mapping[str, np.ndarray]) -> int:
        return int((batch["labels"] != IGNORED).sum())

    def rows(
        self, model: nn.Module, batch: Mapping[str, np.ndarray], device: str
    ) -> list[dict[str, float | int]]:
        logits_NC, labels_N = self.logits_and_labels(model, batch, device)
        shape = (len(batch["index"]), -1)
        loss_B = F.cross_entropy(logits_NC, labels_N, reduction="none").view(shape).sum(1)
        right_B = (logits_NC.argmax(-1) == labels_N).view(shape).sum(1)
        tokens_B = (labels_N != IGNORED).view(shape).sum(1)
        columns = (batch["index"].tolist(), loss_B.tolist(), right_B.tolist(), tokens_B.tolist())
        names = ("index", "loss", "right", "tokens")
        return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]

    def metrics(self, rows: list[dict[str, float | int]]) -> dict[str, float]:
        tokens = sum(row["tokens"] for row in rows)
        return {
            name: sum(row[key] for row in rows) / tokens
            for name, key in (("loss", "loss"), ("tag_acc", "right"))
        }

    def plain(self) -> Objective:
        return self


TAGGING = TaskKind(
    objective=KIND,
    metric=TaskMetric("tag_acc", "tag accuracy", higher_is_better=True, decimals=3),
    auto_model="AutoModelForTokenClassification",
    requirement=Requirement("tag tokens", "token classification", "an encoder such as minilm"),
    calibration=CalibrationSizes(moments=32, per_plan=8, held_out=8, batch_tokens=512, graph_tokens=256),
    validation_sequences=32,
    quick_steps=20,
    new_head=True,
)
TAG_ACCURACY = Metric(
    key="tag_acc",
    name="tag accuracy",
    kind=KIND,
    higher_is_better=True,
    examples=summed("right", "tokens", "numbers of tokens"),
    test="sign flips",
    margin=0.01,
    change_unit="points",
    factor=100.0,
    decimals=1,
    symbol="%",
    examples_name="sentences",
)


@pytest.fixture(scope="module")
def tagging() -> Iterator[None]:
    """One entry in each layer but analysis."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        register(monkeypatch)
        yield


def register(monkeypatch: pytest.MonkeyPatch) -> None:
    data = DataKind("the tag of each token", encode_words, labels_of_tokens)
    source = Source(TASK, KIND, lambda: "1", toy_opinions, "made sentences with tagged words")
    monkeypatch.setitem(DATA_KINDS, KIND, data)
    monkeypatch.setitem(EMBEDDED, TASK, source)
    monkeypatch.setitem(OBJECTIVES, KIND, TokenTagging())
    monkeypatch.setitem(TASK_KINDS, KIND, TAGGING)
    monkeypatch.setitem(SMOKE.by_kind, KIND, {**SMOKE.by_kind[CLASSIFICATION], "steps": 12})


def stored_run(spec: RunSpec, folder: Path, tracker: Tracker) -> str:
    """Train ``spec`` as a real run and store its record; the id of the stored run."""
    folder.mkdir()
    write_spec(spec, folder / "spec.json")
    log = tracker.open(spec, None)
    execute(spec, folder, Record(folder, ALONE), ALONE)
    log.close(folder, "FINISHED", {})
    return log.run_id


@pytest.fixture(scope="module")
def store(tagging: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store with two arms of the task."""
    tmp_path = tmp_path_factory.mktemp("tagging")
    folder = str(tmp_path / "runs")
    tracker = Tracker(open_store(folder), folder, SMOKE.name)
    for config in ("B-FP", "B-Q4"):
        stored_run(make_spec(SMOKE, config, TASK), tmp_path / config, tracker)
    return folder


def test_a_kind_of_one_entry_a_layer_trains_and_gets_a_verdict_on_its_metric(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METRICS, TAG_ACCURACY.key, TAG_ACCURACY)
    study = load_study(open_for_analysis(store))
    assert set(study.runs["kind"]) == {KIND} and set(study.runs["metric"]) == {"tag_acc"}
    for run in study.runs.itertuples():
        predictions = study.predictions(run.run_id)
        assert run.quality == pytest.approx(predictions["right"].sum() / predictions["tokens"].sum())
        assert run.quality > run.zero
    (row,) = compare(study, TASK, ["B-FP"]).to_dict("records")
    assert row["difference"] == pytest.approx(row["candidate_quality"] - row["baseline_quality"])
    assert row["test"] == "sign flips of documents" and row["margin"] == TAG_ACCURACY.margin
    report = collect(study)
    assert report.verdict[0].startswith(f"{TASK}, against B-FP: B-Q4 ")
    assert "32 sentences" in report.verdict[-1] and "points of tag accuracy" in report.verdict[-1]
    assert "| Tag accuracy |" in plain(report)


def test_runs_on_a_metric_without_an_entry_are_not_compared(store: str) -> None:
    study = load_study(open_for_analysis(store))
    assert study.runs.empty
    (reason,) = set(study.missing["reason"])
    known = ", ".join(f"eval/{key}" for key in METRICS)
    assert f"a metric that is not known: expected one of {known}, got eval/loss, eval/tag_acc" in reason


def test_a_kind_of_one_entry_a_layer_can_be_planned_for(tagging: None, tmp_path: Path) -> None:
    spec = make_spec(SMOKE, "B-FP", TASK)
    made = make_plan(spec, PlanRequest("9bits", "exact", Choices(FORMATS, ranks=(2, 4))))
    assert made.tables.base > 0 and set(made.plan.precision.values()) == set(FORMATS)
    path = tmp_path / "plan.json"
    save_plan(plan_data(made.plan, made.sizes.matrices, made.problem.budget, "default"), path)
    folder = str(tmp_path / "runs")
    tracker = Tracker(open_store(folder), folder, SMOKE.name)
    planned = make_spec(SMOKE, "", TASK, {"plan": str(path)})
    run_id = stored_run(planned, tmp_path / "run", tracker)
    assert tracker.client.get_run(run_id).data.metrics["lora/rank"] == sum(made.plan.ranks.values())


def test_views_of_the_store_have_the_metric_of_an_added_kind(tagging: None) -> None:
    view = next(view for view in experiment_views() if view.key == "by-tag-accuracy")
    assert view.order_by == "metrics.`eval/tag_acc`" and not view.ascending


def test_a_profile_without_fields_for_a_kind_is_an_error_of_the_user(tagging: None) -> None:
    with pytest.raises(
        UserError, match="the profile paper has no settings for tasks of the kind 'token-tagging'"
    ):
        make_spec(PROFILES["paper"], "B-FP", TASK)


def test_a_model_without_a_class_for_the_kind_is_refused(tagging: None, tmp_path: Path) -> None:
    from bitrank.models.architectures import check_task
    from transformers import AutoConfig

    config = AutoConfig.for_model("mamba")
    with pytest.raises(
        UserError, match="cannot tag tokens: transformers has no token classification for mamba"
    ):
        check_task("a model", config, KIND)


def test_the_head_of_an_added_kind_is_trained_whole_in_memory_too(tagging: None) -> None:
    from bitrank.models.architectures import has_new_head
    from transformers import BertConfig, BertForTokenClassification, BertModel

    sizes = {"hidden_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1, "intermediate_size": 8}
    config = BertConfig(**sizes, vocab_size=10)
    assert has_new_head(BertForTokenClassification(config)) and not has_new_head(BertModel(config))


@pytest.mark.parametrize("name", TASK_KINDS)
def test_layers_agree_about_a_kind_and_its_metric(name: str) -> None:
    kind = TASK_KINDS[name]
    objective, metric = OBJECTIVES[kind.objective], METRICS[kind.metric.key]
    assert name in DATA_KINDS and name in metric.kinds
    assert (objective.metric, metric.name) == (kind.metric.key, kind.metric.name)
    assert objective.higher_is_better == kind.metric.higher_is_better == metric.higher_is_better


REGISTRIES = {
    "bitrank/run/text_scores.py",
    "bitrank/spec/task_kinds.py",
    "bitrank_analysis/metrics.py",
    "bitrank_analysis/published.py",
    "bitrank_data/__init__.py",
    "bitrank_data/kinds.py",
    "bitrank_data/question_answering.py",
    "bitrank_trainer/objectives.py",
    "bitrank_trainer/probing.py",
    "bitrank_trainer/question_answering.py",
}


def names_of_kinds() -> set[str]:
    """Names of kinds, and keys and names under which their metrics are stored."""
    keys = {metric.key for metric in task_metrics()}
    return {*TASK_KINDS, *keys, *(f"{prefix}/{key}" for prefix in ("eval", "val", "zero") for key in keys)}


def literals(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_kinds_and_metrics_are_named_in_registries_only() -> None:
    names, found = names_of_kinds(), []
    sources = [*ROOT.glob("packages/*/src"), ROOT / "orchestrator/src"]
    files = {path.relative_to(source).as_posix(): path for source in sources for path in source.rglob("*.py")}
    for name in sorted(files.keys() - REGISTRIES):
        found += [f"{name}: {text!r}" for text in literals(files[name]) if text in names]
    assert found == []
    assert files.keys() >= REGISTRIES
