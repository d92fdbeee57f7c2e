"""The arithmetic of the benchmarks' harness: ratios by round, turns, sections of the results. Never a second
of time.
"""

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
    """A script of the benchmarks, under a name that clashes with nothing."""
    found = importlib.util.spec_from_file_location(f"benchmarks_{name}", FOLDER / f"{name}.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module
    found.loader.exec_module(module)
    return module


@cache
def script(name: str) -> ModuleType:
    """One of the scripts that import their neighbours by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        return load(name)


harness = script("harness")


def test_ratios_are_taken_round_by_round() -> None:
    assert harness.paired_ratio([10, 30, 20], [5, 10, 20]) == harness.Spread(2.0, 1.0, 3.0)
    assert harness.Spread(2.0, 1.0, 3.0).text() == "2.00 (1.00–3.00)"
    assert harness.paired_ratio([3], [2]).text(1) == "1.5"


@given(st.lists(st.floats(0.1, 1e6), min_size=1, max_size=9), st.floats(0.1, 100))
def test_a_machine_slow_in_some_rounds_leaves_the_ratio(speeds: list[float], factor: float) -> None:
    found = harness.paired_ratio([speed * factor for speed in speeds], speeds)
    assert found.low == pytest.approx(factor) and found.high == pytest.approx(factor)


def test_rounds_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match="got 1 and 2"):
        harness.paired_ratio([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="--rounds"):
        harness.spread([])


def test_sides_take_turns_and_a_failure_stays_visible() -> None:
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


def test_a_side_waits_before_every_step_and_counts_its_own_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two batches a step, three steps asked for; the clock goes on by 1 for a batch made, 10 for one trained
    on, 1000 while waiting.
    """
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
    with pytest.raises(turns.InputEnded):
        for batch in turns.each_in_turn(made(), accumulation=2):
            clock[0] += 10
            trained.append(batch["attention_mask"].size)
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    steps = [{"seconds": 22.0, "tokens": tokens} for tokens in (0 + 1, 2 + 3, 4 + 5)]
    assert said == [{"ready": True}, *steps] and trained == list(range(6))


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


def test_sides_take_turns_step_by_step_and_begin_every_other(tmp_path: Path) -> None:
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


def test_a_side_that_ends_early_says_why(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    turns = script("turns")
    with pytest.raises(turns.SideFailed, match="ended with code 1"):
        turns.in_turns(
            [["-c", _SIDE, str(tmp_path / "order"), name] for name in ("a", "bad")], 3, [os.environ] * 2
        )
    assert "out of luck" in capfd.readouterr().err


@settings(deadline=None)
@given(st.lists(st.floats(0.01, 10), min_size=2, max_size=20), st.floats(0.1, 10))
def test_a_format_slower_by_one_factor_at_every_step_has_that_ratio(
    seconds: list[float], factor: float
) -> None:
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
def test_a_side_faster_by_one_factor_at_every_step_has_that_ratio(
    steps: list[tuple[int, float]], factor: float
) -> None:
    theirs = [{"tokens": tokens, "seconds": seconds} for tokens, seconds in steps]
    ours = [{**step, "seconds": step["seconds"] / factor} for step in theirs]
    found = script("paired").figures(ours, theirs)
    assert all(found[name] == pytest.approx(factor) for name in ("ratio", "low", "high"))
    assert found["tok_s"] == pytest.approx(factor * found["tuned_tok_s"])


def test_a_peer_waits_before_each_of_its_steps(
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
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line.get("tokens") for line in said] == [None, 7, 5] and said[0] == {"ready": True}


def test_processes_at_the_same_time_add_up() -> None:
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


def test_a_fresh_process_gives_its_last_json_line(tmp_path: Path) -> None:
    good = tmp_path / "good.py"
    good.write_text(
        "import sys\nprint('{\"x\": 1}')\nprint('talk')\nprint('{\"x\": 2, \"word\": \"' + sys.argv[1] + '\"}')\n"
    )
    bad = tmp_path / "bad.py"
    bad.write_text("raise SystemExit('out of luck')\n")
    assert harness.run_scripts([str(good), "a"], [str(good), "b"]) == [
        {"x": 2, "word": "a"},
        {"x": 2, "word": "b"},
    ]
    with pytest.raises(harness.SideFailed, match=r"bad\.py ended with code 1: out of luck"):
        harness.run_scripts([str(bad)])


def test_a_section_is_replaced_and_others_stay(tmp_path: Path) -> None:
    path = tmp_path / "RESULTS.md"
    for name, text in (("training", "1.00 then"), ("memory", "2.00 kept"), ("training", "3.00 now")):
        harness.write_section(name, text, path)
    document = path.read_text()
    assert "1.00 then" not in document and document.count("<!-- training: begin -->") == 1
    assert document.index("3.00 now") < document.index("2.00 kept")
    assert harness.replace_section(document, "memory", "2.00 kept") == document


def test_half_a_section_is_refused() -> None:
    with pytest.raises(ValueError, match="found one alone"):
        harness.replace_section("text <!-- training: begin --> text", "training", "new")


def test_a_table_is_markdown() -> None:
    assert harness.table(("a", "b"), [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_the_readme_states_every_run_of_the_study(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    study = load("study")
    stated = study.readme_rows((FOLDER.parent / "README.md").read_text())
    assert {config for task, config in stated if task == "movie_sentences"} == {
        "B-FP",
        "B-Q4",
        "B-Ada",
        "Joint-1",
        "Joint-2",
        "Joint-3",
    }
    row = "| `wiki_articles` | `B-FP` | 26.47 | ppl **22.32** [19.87, 25.38] | 256.6 | 16.00 | 1.82 | 1680 | 1,457 |"
    assert study.readme_rows(row) == {("wiki_articles", "B-FP"): 22.32}


@settings(deadline=None)  # the first loads the plotting libraries
@given(
    fixed=st.floats(0.1, 1e3),
    each=st.floats(1e-6, 10),
    sizes=st.lists(st.integers(1, 10**5), min_size=2, max_size=5, unique=True),
)
def test_a_line_through_points_on_a_line_is_that_line(fixed: float, each: float, sizes: list[int]) -> None:
    line = script("growing").fit({runs: fixed + each * runs for runs in sizes})
    assert line.at(100_000) == pytest.approx(fixed + each * 100_000, rel=1e-6) and line.off < 1e-6


def test_a_line_says_how_far_it_misses() -> None:
    with pytest.raises(ValueError, match="two sizes"):
        script("growing").fit({100: 1.0})
    assert script("growing").fit({1: 1.0, 2: 1.0, 3: 9.0}).off > 0.2


def test_events_are_sent_together_that_fall_into_one_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    events = [{"time_ms": time} for time in (0, 300, 1000, 1001, 1900, 5000)]
    assert load("replay").batches(events, 1.0) == [events[:3], events[3:5], events[5:]]


def test_copied_runs_are_runs_of_their_own_with_the_same_points(tmp_path: Path) -> None:
    from bitrank.spec.profiles import find_profile
    from bitrank.spec.run_spec import make_spec
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


def test_a_step_is_written_down_by_kind() -> None:
    """A product with a decoded matrix, one with factors, attention's, a pass over rows; views and what is
    inside of a pass are not told.
    """
    import torch
    from torch import nn

    alone = script("alone")
    written, layer = alone.OperationRecorder(), nn.Linear(6, 4, bias=False).requires_grad_(False)
    decode, passes = written.decoder(layer), alone.RecordedRows(written)
    x, factor, heads = torch.ones(3, 6), torch.ones(6, 2), torch.ones(2, 3, 3)
    decode()  # before it is entered: known, not told
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


def test_a_measured_step_is_of_the_middling_batch() -> None:
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


def test_a_bound_is_the_speed_of_the_operations_alone() -> None:
    found = script("bound").speeds(
        {"tokens": 1000, "step_s": 0.2, "ordered_s": 0.16, "alone_s": 0.1}, tuned=2500.0, peak=1e-5
    )
    assert (found["now"], found["ordered"], found["most"]) == (2.0, 2.5, 4.0) and (
        found["used"],
        found["usable"],
    ) == pytest.approx((0.05, 0.1))
    assert script("bound").speeds({"failed": "no memory"}, 1.0, 1.0) == {"failed": "no memory"}
