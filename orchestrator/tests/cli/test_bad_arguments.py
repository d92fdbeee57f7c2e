"""Arbitrary command lines: exit code 2 with one sentence and no traceback; output in any encoding."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from bitrank.cli.encoding import show_every_character
from bitrank.cli.main import main
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

RUN = ("run", "--profile", "smoke", "--config", "B-FP", "--task", "toy_sentences")
LONG = "a" * 5000
QUERY = "bert.encoder.layer.0.attention.self.query"


def rejection(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run, expect exit code 2, and return the printed text."""
    try:
        code = main(list(arguments))
    except SystemExit as stop:  # argparse
        code = int(stop.code or 0)
    printed = capsys.readouterr()
    assert code == 2, printed
    assert "Traceback" not in printed.err + printed.out
    assert not printed.out and len(printed.err.splitlines()) == 1
    return printed.err.strip()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "--config", "B-FP", "--task", LONG), "task must be text of at most 4096 characters"),
        (("run", "--config", "B-FP", "--task", f"{'a' * 300}/x.csv"), "File name too long"),
        (("run", "--config", "B-FP", "--task", "~no-such-user/x.csv"), "cannot read"),
        ((*RUN, "--model", LONG), "model must be text of at most 4096 characters"),
        ((*RUN, "--model", ""), "model must be text of at least one character"),
        ((*RUN, "--results", LONG), "expected a path that the operating system accepts"),
        ((*RUN, "--store", ""), "expected a path, got an empty text"),
        ((*RUN, "--memory-limit", "9" * 400), "expected an amount of memory"),
        ((*RUN, "--seed", "1e23"), "seed must be a whole number"),
        ((*RUN, "--seed", "9" * 400), "seed must be at most 4294967295"),
        ((*RUN, "--seed", "9" * 5000), "seed must be a whole number"),
        ((*RUN, "--set", f"threads={10**23}"), "threads must be at most 1024"),
        ((*RUN, "--set", f"max_length={10**23}"), "max_length must be at most"),
        ((*RUN, "--set", "learning_rate=nan"), "learning_rate must be a finite number"),
        ((*RUN, "--set", "learning_rate=1e30"), "learning_rate must be at most 1"),
        ((*RUN, "--set", "data=folder"), "is not used by these tasks"),
        ((*RUN, "--set", "model=\ud800"), "is not valid Unicode"),
        ((*RUN, "--plan", "\udcff.json"), "is not valid Unicode"),
        (("run", "--task", "toy_sentences", "--plan", "/dev/zero"), "it is not a regular file"),
        (("list", "--configs", ""), "expected names separated by commas"),
        (("list", "--tasks", " , "), "expected names separated by commas"),
        (("list", "--seeds", ""), "expected whole numbers like 0,1,2"),
        (("list", "--seeds", "0,-1"), "must be 0 or more, got -1"),
        (("list", "--store", "/etc/passwd"), "it is a file; expected a folder"),
        (("study", "allocators", "--seeds", "-1"), "must be 0 or more, got -1"),
        (("study", "allocators", "--budgets", ""), "expected names separated by commas"),
        (
            ("plan", "--task", "toy_sentences", "--budget", "1MB", "--time-limit", "nan"),
            "must be a finite number above 0",
        ),
        (
            ("plan", "--task", "toy_sentences", "--budget", "1MB", "--ranks", ""),
            "expected whole numbers like 4,8,16",
        ),
        (("export", LONG, "--out", "x"), "expected a path that the operating system accepts"),
        (("matrix", "--jobs", "9" * 30), "must be at most"),
    ],
)
def test_a_wrong_argument_is_rejected_with_one_sentence(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    output = rejection(capsys, *arguments)
    assert message in output and len(output) < 600


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(
        ["--configs", "--tasks", "--seeds", "--memory-limit", "--processes", "--data", "--store", "--set"]
    ),
    st.one_of(st.text(st.characters(), max_size=40), st.integers().map(str), st.floats().map(str)),
)
def test_any_text_behind_an_option_lists_runs_or_is_rejected(
    capsys: pytest.CaptureFixture[str], option: str, text: str
) -> None:
    if option == "--store" and "://" in text:
        return  # a request to a server may take long
    try:
        code = main(["list", "--profile", "smoke", "--json", f"{option}={text}"])
    except SystemExit as stop:
        code = int(stop.code or 0)
    printed = capsys.readouterr()
    assert code in {0, 2} and "Traceback" not in printed.err
    if code == 0:
        assert json.loads(printed.out)


def test_a_mistyped_quant_backend_is_rejected_with_the_names_of_the_registry(capsys, monkeypatch) -> None:
    from bitrank_quant import OVERRIDES

    monkeypatch.setitem(OVERRIDES, "my-backend", OVERRIDES["none"])
    monkeypatch.setattr("bitrank_quant.override_for", None)  # nothing is tried or compiled
    for arguments in (("--quant-backend", "cpu-in8"), ("--set", "quant_backend=cpu-in8")):
        output = rejection(capsys, *RUN, *arguments)
        assert "unknown quant_backend 'cpu-in8'; nearest: cpu-int8" in output and "my-backend" in output
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    assert all(name in capsys.readouterr().out.replace("\n", " ") for name in ["my-backend"])


@pytest.mark.parametrize(
    "given",
    [
        ("--set", "dtype=fp32"),
        ("--set", "quant_backend=cpu-in8"),
        ("--set", "device=gpu"),
        ("--quant-backend", "cpu-in8"),
        ("--processes", "many"),
        ("--no-such-option",),
    ],
    ids=" ".join,
)
def test_a_rejected_command_does_not_import_torch(given: tuple[str, ...]) -> None:
    words = ["run", "--config", "B-FP", "--task", "none.csv", *given]
    code = (
        "import sys; from bitrank.cli.main import main\n"
        f"try: print(main({words}))\n"
        "except SystemExit as stop: print(stop.code)\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-2:] == ["2", "False"]


def test_a_run_process_does_not_load_pydantic_to_read_its_spec_and_plan(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(json.dumps({"precision": {"a": "nf4"}, "ranks": {"a": 2}}))
    code = (
        "import sys; from bitrank.spec.configs import find_config; "
        "from bitrank.spec.run_spec import read_spec; "
        "find_config('x', 'plan.json'); print('pydantic' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"precision": {"classifier": "nf4"}, "ranks": {QUERY: 2}}, "is in the head classifier"),
        ({"precision": {QUERY: "nf5"}, "ranks": {QUERY: 2}}, "unknown format 'nf5'"),
        (
            {"precision": {"bert.encoder.layer.0": "nf4"}, "ranks": {QUERY: 2}},
            "which this model lacks; nearest",
        ),
        ({"precision": {QUERY: "nf4"}, "ranks": {"query": 2}}, "names 'query', which this model lacks"),
        ({"precision": {QUERY: "nf4"}, "ranks": {QUERY: 4096}}, "rank 4096 does not fit"),
        (
            {"precision": {QUERY: "nf4"}, "ranks": {QUERY: 2}, "shapes": {QUERY: [1, 2]}},
            "made for another model",
        ),
    ],
)
def test_a_plan_that_does_not_fit_is_rejected_before_a_store_is_created(
    capsys, tmp_path: Path, plan: dict[str, object], message: str
) -> None:
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    arguments = ("run", "--profile", "smoke", "--task", "toy_sentences", "--plan", "plan.json")
    assert message in rejection(capsys, *arguments)
    assert not (tmp_path / "runs").exists()


def test_characters_that_an_encoding_lacks_are_written_plainly(monkeypatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii", errors="strict"))
    show_every_character()
    print("2³² ≤ x – é 中")
    sys.stdout.flush()
    assert written.getvalue() == b"2^32 <= x - e ?\n"


@pytest.mark.parametrize(
    "command", ["", "matrix", "plan", "study", "report", "sql", "export", "doctor", "ui"]
)
def test_help_is_printed_where_only_ascii_can_be(monkeypatch, command: str) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii", errors="strict"))
    with pytest.raises(SystemExit) as stop:
        main([*filter(None, [command]), "--help"])
    sys.stdout.flush()
    assert stop.value.code == 0 and b"usage: bitrank" in written.getvalue()


def test_tables_are_printed_where_only_ascii_can_be(monkeypatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii", errors="strict"))
    assert main(["list", "--profile", "smoke"]) == 0
    sys.stdout.flush()
    assert b"B-FP toy_sentences s0" in written.getvalue()


def test_names_of_devices_are_those_that_the_trainer_knows() -> None:
    from bitrank.spec.run_spec import DEVICE_NAMES
    from bitrank_trainer import DEVICES

    assert list(DEVICE_NAMES) == ["auto", *DEVICES]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("device=gpu", "unknown device 'gpu'; nearest: cpu; all: auto, cuda, mps, cpu"),
        ("device=mps", "no device 'mps' on this machine; it has "),
        ("quant_backend=cuda-4bit", "it needs device cuda, this run is on cpu"),
    ],
)
def test_a_device_that_is_not_here_is_rejected_before_a_store_is_made(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    setting: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    assert message in rejection(capsys, *RUN, "--set", setting)
    assert not list(tmp_path.iterdir())


def test_a_working_folder_that_was_deleted_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(["list", "--arms"]) == 2
    expected = "bitrank: the working folder was deleted; change to one that exists and repeat\n"
    assert capsys.readouterr().err == expected
