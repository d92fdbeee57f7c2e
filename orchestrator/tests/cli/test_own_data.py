"""A user's own file in a run: special tokens of the tokenizer, evaluation windows, and excluded data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bitrank.cli.main import _parser, main
from bitrank.cli.options import given_settings
from bitrank.cli.plan_request import measured_spec
from bitrank.cli.settings import OF_RUN
from bitrank.models.locate import locate
from bitrank.run.data import load_data
from bitrank.sensitivity.measure import tables_place
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import find_profile
from bitrank.spec.run_spec import RunSpec
from bitrank_trainer import OBJECTIVES, evaluate
from tokenizers import processors
from transformers import AutoModelForCausalLM, AutoTokenizer

SENTENCE = "the film is good . the story is bad and the cast is fine . "


def documents(path: Path, count: int = 12) -> str:
    """Documents of different lengths, one of them without text."""
    rows = [{"text": SENTENCE * (number + 1)} for number in range(count)] + [{"text": None}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def spec_of(task: str, profile: str = "laptop", **given: object) -> RunSpec:
    return make_spec(
        find_profile(profile),
        "B-FP",
        task,
        {"model": "tiny-llama", "device": "cpu", "max_length": 16, **given},
    )


@pytest.fixture
def with_bos(tmp_path: Path) -> str:
    """tiny-llama with a tokenizer that starts each text with [CLS] as BOS."""
    folder = tmp_path / "bos"
    AutoModelForCausalLM.from_pretrained(locate("tiny-llama")).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(locate("tiny-llama"))
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A", special_tokens=[("[CLS]", 2)]
    )
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_own_documents_are_evaluated_on_all_windows_and_embedded_ones_on_two(tmp_path: Path) -> None:
    own = spec_of(documents(tmp_path / "mine.jsonl"))
    assert (own.test_windows, own.validation_windows) == (None, None)
    embedded = spec_of("wiki_articles")
    assert (embedded.test_windows, embedded.validation_windows) == (2, 2)
    assert spec_of(str(tmp_path / "mine.jsonl"), test_windows=3).test_windows == 3


def test_the_last_window_counts_with_its_own_number_of_targets(tmp_path: Path) -> None:
    spec = spec_of(documents(tmp_path / "mine.jsonl"))
    data = load_data(spec)
    tokenizer = AutoTokenizer.from_pretrained(locate("tiny-llama"))
    document = data.test.ids[0]
    text = SENTENCE * (int(document) + 1)
    lengths = [len(data.test.sequence(n)) for n in range(len(data.test)) if data.test.ids[n] == document]
    tokens = len(tokenizer(text)["input_ids"])
    assert lengths == [16] * (tokens // 16) + ([tokens % 16] if tokens % 16 > 1 else [])
    model = AutoModelForCausalLM.from_pretrained(locate("tiny-llama"))
    rows = evaluate(model, data.batches_of(data.test), OBJECTIVES[spec.kind].plain(), "cpu").rows
    evaluated = sum(
        row["tokens"] for row, owner in zip(rows, data.test.ids, strict=True) if owner == document
    )
    assert evaluated == sum(lengths) - len(lengths)
    counts = data.report.counts
    assert counts["test_tokens"] == counts["test_tokens_evaluated"] == sum(row["tokens"] for row in rows)


def test_a_smaller_share_is_reported_with_its_counts(tmp_path: Path) -> None:
    whole = load_data(spec_of(documents(tmp_path / "mine.jsonl"))).report.counts["test_tokens"]
    data = load_data(spec_of(str(tmp_path / "mine.jsonl"), test_windows=1))
    evaluated = sum(len(data.test.sequence(n)) - 1 for n in range(len(data.test)))
    assert (
        data.report.counts["test_tokens_evaluated"] == evaluated < whole == data.report.counts["test_tokens"]
    )
    assert data.report.notes[-1].startswith(
        f"{evaluated:,} of {whole:,} tokens of the test split ({evaluated / whole:.1%}) are evaluated"
    )


def test_every_window_begins_with_bos_where_the_tokenizer_adds_it(tmp_path: Path, with_bos: str) -> None:
    file = documents(tmp_path / "mine.jsonl")
    data = load_data(spec_of(file, model=with_bos))
    windows = [data.test.sequence(n).tolist() for n in range(len(data.test))]
    assert all(window[0] == 2 and 2 not in window[1:] and len(window) <= 16 for window in windows)
    plain = load_data(spec_of(file, model=with_bos, special_tokens=False))
    assert all(2 not in plain.test.sequence(n) for n in range(len(plain.test)))
    predicted = [token for window in windows for token in window[1:]]
    assert predicted == [token for n in range(len(plain.test)) for token in plain.test.sequence(n).tolist()]


def test_the_loss_of_windows_with_bos_is_that_of_plain_transformers(tmp_path: Path, with_bos: str) -> None:
    spec = spec_of(documents(tmp_path / "mine.jsonl"), model=with_bos)
    data = load_data(spec)
    tokenizer, model = (
        AutoTokenizer.from_pretrained(with_bos),
        AutoModelForCausalLM.from_pretrained(with_bos).eval(),
    )
    nats, targets = 0.0, 0
    for document in dict.fromkeys(data.test.ids):
        tokens = tokenizer(SENTENCE * (int(document) + 1), add_special_tokens=False)["input_ids"]
        for start in range(0, len(tokens), 15):
            window = torch.tensor([[2, *tokens[start : start + 15]]])
            with torch.no_grad():
                loss = model(input_ids=window, labels=window).loss
            nats += float(loss) * (window.shape[1] - 1)
            targets += window.shape[1] - 1
    found = evaluate(model, data.batches_of(data.test), OBJECTIVES[spec.kind].plain(), "cpu")
    assert sum(row["tokens"] for row in found.rows) == targets
    assert found.metrics["loss"] == pytest.approx(nats / targets, rel=1e-5)


def test_measurements_with_and_without_special_tokens_are_kept_apart(with_bos: str) -> None:
    places = {
        tables_place(spec_of("toy_articles", model=with_bos, special_tokens=special))
        for special in (True, False)
    }
    assert len(places) == 2


def test_a_run_reports_and_stores_the_excluded_texts_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    file = documents(tmp_path / "mine.jsonl")
    words = [
        "run",
        "--task",
        file,
        "--config",
        "B-FP",
        "--profile",
        "smoke",
        "--store",
        str(tmp_path / "runs"),
        "--set",
        "steps=4",
    ]
    assert main(words) == 0
    output = capsys.readouterr().out
    note = "1 of 13 rows have no text and were left out (the first: row 13 (line 13))"
    assert output.index(f"mine: note: {note}") < output.index("zero-shot"), "before training"
    figures = json.loads(next(tmp_path.rglob("result.json")).read_text())
    assert figures["data/rows"] == 13 and figures["data/rows_without_text"] == 1
    assert figures["data/test_tokens"] == figures["data/test_tokens_evaluated"] > 0


@pytest.mark.parametrize(("name", "content", "message"), [
    ("labels.jsonl", '{"text": "a", "labels": 1}\n' * 20, "a column 'labels' but none called 'label'"),
    ("unquoted.csv", "text,label\n" + "well, good,1\nbad,0\n" * 20, r"row 1 (line 2): expected 2 fields"),
])  # fmt: skip
def test_a_file_that_cannot_be_used_ends_with_code_2_before_any_run(
    name: str, content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    (tmp_path / name).write_text(content)
    words = [
        "run",
        "--task",
        str(tmp_path / name),
        "--config",
        "B-FP",
        "--profile",
        "smoke",
        "--store",
        str(tmp_path / "runs"),
    ]
    assert main(words) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.rglob("events.jsonl"))


def test_named_columns_and_a_test_file_reach_run_and_plan(tmp_path: Path) -> None:
    """The options of the command line give the spec that the settings give."""
    for name in ("mine.csv", "test.csv"):
        rows = "".join(f"film {n} is good,{n % 2}\n" for n in range(40))
        (tmp_path / name).write_text("review,stars\n" + rows)
    test = str(tmp_path / "test.csv")
    words = ["--task", str(tmp_path / "mine.csv"), "--profile", "smoke", "--text-column", "review"]
    words += ["--label-column", "stars", "--test-file", test]
    settings = {"text_column": "review", "label_column": "stars", "test_file": test}
    expected = make_spec(find_profile("smoke"), "B-FP", str(tmp_path / "mine.csv"), settings)
    run = _parser().parse_args(["run", "--config", "B-FP", *words])
    assert given_settings(run, OF_RUN) == settings
    plan = _parser().parse_args(["plan", "--budget", "9bits", *words])
    planned = replace(expected, quantizer="search")
    assert measured_spec(plan) == planned and planned.file_options.test_file == test


def test_options_of_files_for_a_named_task_are_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", "--task", "toy_sentences", "--config", "B-FP", "--label-column", "stars"]
    assert main([*words, "--profile", "smoke"]) == 2
    assert "label_column: only for your own files" in capsys.readouterr().err


def test_loss_of_a_chat_is_that_of_its_answers_by_plain_transformers(tmp_path: Path) -> None:
    folder = tmp_path / "chat"
    tokenizer = AutoTokenizer.from_pretrained(locate("tiny-llama"))
    tokenizer.chat_template = (
        "{% for m in messages %}{{ 'is ' + m.content + '[SEP]' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'is ' }}{% endif %}"
    )
    model = AutoModelForCausalLM.from_pretrained(locate("tiny-llama")).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    roles = ("user", "assistant", "user", "assistant")
    contents = ("the film NUMBER", "good", "the cast", "bad and dull")
    chat = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
    lines = [json.dumps({"messages": chat}).replace("NUMBER", f"{n}") for n in range(20)]
    (tmp_path / "chat.jsonl").write_text("\n".join(lines))
    spec = spec_of(str(tmp_path / "chat.jsonl"), "smoke", model=str(folder), max_length=32)
    data = load_data(spec)
    # is the film N [SEP] is good [SEP] is the cast [SEP] is bad and dull [SEP]: N is unknown
    ids = tokenizer("is the film 1[SEP]is good[SEP]is the cast[SEP]is bad and dull[SEP]")["input_ids"]
    labels = torch.full((1, len(ids)), -100)
    for place in (6, 7, 13, 14, 15, 16):
        labels[0, place] = ids[place]
    with torch.no_grad():
        expected = float(model(input_ids=torch.tensor([ids]), labels=labels).loss)
    found = evaluate(model, data.batches_of(data.test), OBJECTIVES[spec.kind], "cpu")
    assert found.metrics["loss"] == pytest.approx(expected, rel=1e-5)
    assert [row["tokens"] for row in found.rows] == [6, 6]
