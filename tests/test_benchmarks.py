"""Arithmetic of the benchmark harness: ratios by round, alternation, sections of the results; no timing."""

from __future__ import annotations

import importlib.util
import json
import os
import sqlite3
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


def load(name: str) -> ModuleType:
    """Import a benchmark script under a unique module name."""
    found = importlib.util.spec_from_file_location(f"benchmarks_{name}", FOLDER / f"{name}.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module
    found.loader.exec_module(module)
    return module


@cache
def script(name: str) -> ModuleType:
    """Import a script that imports its neighbours by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        return load(name)


harness = script("harness")


def test_ratios_are_computed_per_round() -> None:
    assert harness.paired_ratio([10, 30, 20], [5, 10, 20]) == harness.Spread(2.0, 1.0, 3.0)
    assert harness.Spread(2.0, 1.0, 3.0).text() == "2.00 (1.00–3.00)"
    assert harness.paired_ratio([3], [2]).text(1) == "1.5"


@given(st.lists(st.floats(0.1, 1e6), min_size=1, max_size=9), st.floats(0.1, 100))
def test_slow_rounds_do_not_change_the_ratio(speeds: list[float], factor: float) -> None:
    found = harness.paired_ratio([speed * factor for speed in speeds], speeds)
    assert found.low == pytest.approx(factor) and found.high == pytest.approx(factor)


def test_unequal_numbers_of_rounds_raise() -> None:
    with pytest.raises(ValueError, match="got 1 and 2"):
        harness.paired_ratio([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="--rounds"):
        harness.spread([])


def test_sides_alternate_and_failures_are_reported() -> None:
    order: list[str] = []

    def side(name: str) -> dict[str, float]:
        order.append(name)
        if name == "c":
            raise harness.SideFailed("no memory")
        return {"tok_s": float(len(order))}

    found = harness.alternate({name: (lambda name=name: side(name)) for name in "abc"}, 2)
    assert order == ["a", "b", "c", "c", "b", "a"]
    assert [figures["tok_s"] for figures in found["a"]] == [1.0, 6.0]
    assert harness.ratio_cell(found["a"], found["c"], "tok_s") == "failed: no memory"
    assert harness.report_failures(found) == 1 and harness.report_failures({"a": found["a"]}) == 0


def test_only_the_time_of_a_sides_own_step_is_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two batches a step, three steps; the clock advances by 1 per batch, 10 per pass, 1000 per wait."""
    turns, clock, trained = script("turns"), [0.0], list[int]()

    def waited() -> str:
        clock[0] += 1000
        return lines.pop(0)

    def made() -> Iterator[dict[str, np.ndarray]]:
        for number in range(100):
            clock[0] += 1
            yield {"attention_mask": np.ones((1, number))}

    lines = ["\n", "\n", "\n", ""]
    monkeypatch.setattr(turns.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(turns.sys, "stdin", SimpleNamespace(readline=waited))
    monkeypatch.setattr(turns, "_memory", lambda: {"peak_mib": 3.0})
    with pytest.raises(turns.InputEnded):
        for batch in turns.each_in_turn(made(), accumulation=2):
            clock[0] += 10
            trained.append(batch["attention_mask"].size)
    output = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    steps = [{"seconds": 22.0, "tokens": tokens, "peak_mib": 3.0} for tokens in (0 + 1, 2 + 3, 4 + 5)]
    assert output == [{"ready": True}, *steps] and trained == list(range(6))


_SIDE = """
import sys
print("not a figure")
print('{"ready": true}', flush=True)
for number, _ in enumerate(sys.stdin):
    with open(sys.argv[1], "a") as order:
        print(sys.argv[2], file=order)
    if sys.argv[2] == "bad" and number == 1:
        sys.exit("out of luck")
    print('{"seconds": %d}' % number, flush=True)
"""


def test_sides_alternate_by_step_and_by_first_position(tmp_path: Path) -> None:
    order = tmp_path / "order"
    found = script("turns").in_turns(
        [["-c", _SIDE, str(order), name] for name in ("a", "b")], 3, [os.environ] * 2
    )
    assert found == [[{"seconds": number} for number in range(3)]] * 2 and order.read_text().split() == [
        "a",
        "b",
        "b",
        "a",
        "a",
        "b",
    ]


def test_side_that_ends_early_is_reported_with_the_reason(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    turns = script("turns")
    with pytest.raises(turns.SideFailed, match="ended with code 1"):
        turns.in_turns(
            [["-c", _SIDE, str(tmp_path / "order"), name] for name in ("a", "bad")], 3, [os.environ] * 2
        )
    assert "out of luck" in capfd.readouterr().err


@settings(deadline=None)
@given(st.lists(st.floats(0.01, 10), min_size=2, max_size=20), st.floats(0.1, 10))
def test_format_slower_by_a_constant_factor_has_that_ratio(seconds: list[float], factor: float) -> None:
    found = script("formats").figures(seconds, [factor * second for second in seconds])
    assert (
        found["low"] == pytest.approx(factor)
        and found["ratio"] == pytest.approx(factor)
        and found["high"] == pytest.approx(factor)
    )


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 999), st.floats(0.01, 10)), min_size=2, max_size=20), st.floats(0.1, 10)
)
def test_side_faster_by_a_constant_factor_has_that_ratio(
    steps: list[tuple[int, float]], factor: float
) -> None:
    theirs = [{"tokens": tokens, "seconds": seconds} for tokens, seconds in steps]
    ours = [{**step, "seconds": step["seconds"] / factor} for step in theirs]
    found = script("paired").figures(ours, theirs)
    assert all(found[name] == pytest.approx(factor) for name in ("ratio", "low", "high"))
    assert found["tok_s"] == pytest.approx(factor * found["tuned_tok_s"])


def test_peer_waits_before_each_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    peers, lines = script("peers"), ["\n", "\n", ""]
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(readline=lambda: lines.pop(0)))
    turns = peers.InTurns()
    turns.trainer = SimpleNamespace(tokens=0)
    turns.on_train_begin()
    turns.trainer.tokens = 7
    turns.on_step_end()
    turns.trainer.tokens = 12
    with pytest.raises(peers.InputEnded):
        turns.on_step_end()
    output = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line.get("tokens") for line in output] == [None, 7, 5] and output[0] == {"ready": True}


def test_throughput_of_concurrent_processes_is_summed() -> None:
    part = {
        "tokens": 10.0,
        "tok_s": 5.0,
        "wall_tok_s": 4.0,
        "peak_mib": 100.0,
        "device_mib": 0.0,
        "import_mib": 40.0,
        "seconds": 2.0,
    }
    both = harness.combined([part, {**part, "seconds": 3.0}])
    assert (both["tok_s"], both["wall_tok_s"], both["peak_mib"], both["seconds"], both["processes"]) == (
        10.0,
        8.0,
        200.0,
        3.0,
        2,
    )


def test_subprocess_result_is_its_last_json_line(tmp_path: Path) -> None:
    good = tmp_path / "good.py"
    good.write_text(
        "import sys\nprint('{\"x\": 1}')\nprint('text')\n"
        'print(\'{"x": 2, "word": "\' + sys.argv[1] + \'"}\')\n'
    )
    bad = tmp_path / "bad.py"
    bad.write_text("raise SystemExit('out of luck')\n")
    assert harness.run_scripts([str(good), "a"], [str(good), "b"]) == [
        {"x": 2, "word": "a"},
        {"x": 2, "word": "b"},
    ]
    with pytest.raises(harness.SideFailed, match=r"bad\.py ended with code 1: out of luck"):
        harness.run_scripts([str(bad)])


def test_section_is_replaced_and_others_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "RESULTS.md"
    for name, text in (("training", "1.00 then"), ("memory", "2.00 kept"), ("training", "3.00 now")):
        harness.write_section(name, text, path)
    document = path.read_text()
    assert "1.00 then" not in document and document.count("<!-- training: begin -->") == 1
    assert document.index("3.00 now") < document.index("2.00 kept")
    assert harness.replace_section(document, "memory", "2.00 kept") == document


def test_section_without_end_marker_raises() -> None:
    with pytest.raises(ValueError, match="found one alone"):
        harness.replace_section("text <!-- training: begin --> text", "training", "new")


def test_table_is_markdown() -> None:
    assert harness.table(("a", "b"), [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_results_table_has_every_run_of_the_study(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    costs = {"time/total_s": 61.6, "speed/train_tok_s": 482.6, "mem/peak_mib": 1144.8}
    entries = [
        {"spec": {"task": task, "config": "B-FP"}, "results": {metric: value, **costs}}
        for task, metric, value in (("sst2", "eval/acc", 0.86), ("wikitext", "eval/ppl", 22.635))
    ]
    rows = load("study")._quality(entries).splitlines()[2:]
    assert rows == [
        "| `sst2` | B-FP | 0.860 | 62 | 483 | 1,145 |",
        "| `wikitext` | B-FP | 22.635 | 62 | 483 | 1,145 |",
    ]


@settings(deadline=None)  # the first loads the plotting libraries
@given(
    fixed=st.floats(0.1, 1e3),
    each=st.floats(1e-6, 10),
    sizes=st.lists(st.integers(1, 10**5), min_size=2, max_size=5, unique=True),
)
def test_fitted_line_is_exact_for_collinear_points(fixed: float, each: float, sizes: list[int]) -> None:
    line = script("growing").fit({runs: fixed + each * runs for runs in sizes})
    assert line.at(100_000) == pytest.approx(fixed + each * 100_000, rel=1e-6) and line.off < 1e-6


def test_fitted_line_reports_its_largest_error() -> None:
    with pytest.raises(ValueError, match="two sizes"):
        script("growing").fit({100: 1.0})
    assert script("growing").fit({1: 1.0, 2: 1.0, 3: 9.0}).off > 0.2


def test_events_within_one_second_are_sent_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    events = [{"time_ms": time} for time in (0, 300, 1000, 1001, 1900, 5000)]
    assert load("replay").batches(events, 1.0) == [events[:3], events[3:5], events[5:]]


def test_copied_runs_have_new_ids_and_equal_points(tmp_path: Path) -> None:
    from bitrank.spec.make_spec import make_spec
    from bitrank.spec.profiles import find_profile
    from bitrank.tracking.mlflow_tracker import Tracker
    from bitrank.tracking.run_state import read_runs
    from bitrank.tracking.store import open_store

    tracker = Tracker(open_store(str(tmp_path)), str(tmp_path), "smoke")
    for task in ("toy_sentences", "toy_articles"):
        log = tracker.open(make_spec(find_profile("smoke"), "B-FP", task), None)
        log.events(
            [{"time_ms": step, "step": step, "metrics": {"train/loss": 1 / step}} for step in (1, 2, 3)]
        )
    database = f"sqlite:///{tmp_path / 'mlflow.db'}"
    for runs in (2, 3, 7):
        script("growing").copy_runs(database, runs)
        found = read_runs(tmp_path / "mlflow.db", "bitrank-smoke")
        assert len(found) == runs == len(tracker.runs()) and {
            run.figures["train/loss"] for run in found.values()
        } == {1 / 3}
        with sqlite3.connect(tmp_path / "mlflow.db") as store:
            assert store.execute("SELECT count(*), count(DISTINCT run_uuid) FROM metrics").fetchone() == (
                3 * runs,
                runs,
            )
    with pytest.raises(ValueError, match="at most 3 runs"):
        script("growing").copy_runs(database, 3)


def test_operations_of_a_step_are_recorded_by_kind() -> None:
    """Recorded: matrix products by kind, attention and row kernels; not views or nested calls."""
    import torch
    from torch import nn

    alone = script("alone")
    written, layer = alone.OperationRecorder(), nn.Linear(6, 4, bias=False).requires_grad_(False)
    decode, passes = written.decoder(layer), alone.RecordedRows(written)
    x, factor, heads = torch.ones(3, 6), torch.ones(6, 2), torch.ones(2, 3, 3)
    decode()  # before recording starts: not recorded
    with written, torch.no_grad():
        weight = decode()
        made = x @ weight.T
        thin = x.view(3, 6) @ factor
        torch.bmm(heads, heads)
        passes.swiglu(made, made.neg())
    assert [kind for kind, _ in written.calls] == ["decoding", "base", "thin", "attention", "rest", "rows"]
    assert not torch.equal(thin, torch.zeros_like(thin))
    again = [call() for _, call in written.calls]
    assert torch.equal(again[1], made) and torch.equal(again[2], thin)
    spent = alone.alone(written.calls)
    assert (
        list(spent) == list(alone.KINDS)
        and all(seconds >= 0 for seconds in spent.values())
        and alone.in_order(written.calls) > 0
    )


def test_measured_step_uses_the_batch_of_median_size() -> None:
    alone, figures = script("alone"), dict[str, object]()
    widths = [8 * number for number in (3, 1, 2, 9, 4, 5, 6, 7, 8, 10, 15, 11, 12, 13, 14)]
    batches = (
        {"input_ids": np.ones((4, width)), "attention_mask": np.ones((4, width)), "labels": np.ones(4)}
        for width in widths
    )
    written, given = alone.OperationRecorder(), list[tuple[tuple[int, ...], bool]]()
    with pytest.raises(alone.InputEnded):
        for batch in alone.stages(batches, written, figures):
            given.append((batch["input_ids"].shape, written._recording))
    repeated = alone._WARM_UP + alone._STEPS
    assert given == [((4, 64), False)] * repeated + [((4, 64), True)] + [((1, 8), False)] * repeated
    assert (figures["rows"], figures["width"], figures["tokens"]) == (4, 64, 256) and {
        "step_s",
        "small_s",
    } <= figures.keys()


def test_bound_is_the_speed_of_the_operations_alone() -> None:
    found = script("bound").speeds(
        {"tokens": 1000, "step_s": 0.2, "ordered_s": 0.16, "alone_s": 0.1}, tuned=2500.0, peak=1e-5
    )
    assert (found["now"], found["ordered"], found["most"]) == (2.0, 2.5, 4.0) and (
        found["used"],
        found["usable"],
    ) == pytest.approx((0.05, 0.1))
    assert script("bound").speeds({"failed": "no memory"}, 1.0, 1.0) == {"failed": "no memory"}


def test_inference_has_a_client_for_every_export_of_another_program() -> None:
    from bitrank.export.registry import EXPORTS

    inference = script("inference")
    own = {"quantized"}  # read by this project alone, as the run itself
    assert set(inference.CLIENTS) - {inference.OURS} == set(EXPORTS) - own
    with pytest.raises(SystemExit):
        inference._parse(["run", "--targets", "nothing"])


def test_inference_counts_the_tokens_after_a_warm_up() -> None:
    inference, asked = script("inference"), []

    def generate(count: int) -> int:
        asked.append(count)
        return count

    assert inference._timed(generate, 32)["tokens"] == 32
    assert asked == [inference.WARM_UP, 32]


def test_inference_table_pairs_rounds_and_shows_failures() -> None:
    found = {
        "ours": [{"tok_s": 10.0, "peak_mib": 100.0}, {"tok_s": 20.0, "peak_mib": 110.0}],
        "gguf": [{"tok_s": 20.0, "peak_mib": 50.0}, {"tok_s": 40.0, "peak_mib": 50.0}],
        "mlx": [{"failed": "no mlx"}, {"failed": "no mlx"}],
    }
    text = script("inference").result_table(found, {"ours": 0, "gguf": 2 * 2**20, "mlx": 0})
    assert "| gguf | 30.0 (20.0–40.0) | 2.00 | 50 | 2 |" in text
    assert "| ours | 15.0 (10.0–20.0) | 1.00 | 105 (100–110) | – |" in text
    assert "| mlx | failed: no mlx | failed: no mlx | failed: no mlx | – |" in text


def test_masked_sentences_keep_the_words_outside_of_their_masks() -> None:
    module = load("encoder_decoders")
    words = [f"w{i}" for i in range(600)]
    parts = module.masked(" ".join(words), module.random.Random(3)).split()
    kept = [part for part in parts if part != "<mask>"]
    masks = len(parts) - len(kept)
    missing = len(words) - len(kept)
    assert kept == sorted(set(words) & set(kept), key=words.index)
    assert masks <= missing <= module.SPAN * masks
    assert 0.2 < missing / len(words) < 0.4


def test_batches_are_words_to_copy_at_first_and_masked_sentences_then() -> None:
    module = load("encoder_decoders")
    sentences = [f"the {n} men saw a boat of {n * n} tons" for n in range(300)]
    sources, targets = module.batch_of(sentences, module.random.Random(0), 0.01)
    assert sources == targets and len(targets) == module.BATCH
    assert max(len(text.split()) for text in targets) <= module.LONGEST
    sources, targets = module.batch_of(sentences, module.random.Random(0), 1.5)
    assert set(targets) <= set(sentences) and len(targets) == module.BATCH
    assert any("<mask>" in source for source in sources)
