"""``bitrank plan --budgets``: table, files, and messages for budgets without a plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bitrank.cli.main import main

PLAN = ("plan", "--profile", "smoke", "--ranks", "2,4,8", "--task", "toy_sentences")


def test_every_budget_has_a_plan_file_and_the_curve_is_saved(
    capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*PLAN, "--budgets", "12bits,=B-Q4", "--save", "curve", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert json.loads(Path("curve/curve.json").read_text()) == data
    assert [point["budget"] for point in data["points"]] == ["=B-Q4", "12bits"]
    for point in data["points"]:
        plan = json.loads((Path("curve") / point["plan"]).read_text())
        assert (plan["bytes"], plan["budget"]) == (point["bytes"], point["budget_bytes"])
        assert plan["bytes"] <= plan["budget"]
    names = {path.name for path in Path("curve").iterdir()}
    assert names == {
        "curve.json",
        "curve.svg",
        "curve.png",
        "curve.html",
        "plan-12bits.json",
        "plan-B-Q4.json",
    }
    page = Path("curve/curve.html").read_text()
    assert page.count("<section>") == 2 and page.count("<svg") == 1 + 2 * 3
    assert Path("curve/curve.png").read_bytes().startswith(b"\x89PNG")
    assert "=B-Q4" in Path("curve/curve.svg").read_text()
    plan = ["--plan", "curve/plan-12bits.json", "--task", "toy_sentences"]
    assert main(["run", "--profile", "smoke", *plan, "--max-steps", "2"]) == 0
    capsys.readouterr()
    assert main(["report", "--curves", "."]) == 0
    page = Path("results/report/report.html").read_text()
    assert 'data-chart="frontier-toy_sentences"' in page and "Predicted added loss, nats" in page
    Path("none").mkdir()
    assert main(["report", "--curves", "none"]) == 2
    assert "none has no curve.json with a plan for a task" in capsys.readouterr().err


def test_a_budget_that_is_too_small_is_named_and_the_others_are_shown(
    capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*PLAN, "--budgets", "12bits,1kB", "--save", "curve"]) == 2
    shown = capsys.readouterr()
    assert "predicted loss by budget" in shown.out and "no plan: a budget of 1,000 bytes" in shown.out
    assert "1 of 2 budgets have no plan: 1kB: a budget of 1,000 bytes is too small" in shown.err
    assert Path("curve/plan-12bits.json").exists() and not Path("curve/plan-1kB.json").exists()


def test_one_budget_or_several_are_given_and_the_folder_can_be_made(
    capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in ((), ("--budget", "12bits", "--budgets", "12bits")):
        with pytest.raises(SystemExit) as exit_info:
            main([*PLAN, *arguments])
        assert exit_info.value.code == 2
    capsys.readouterr()
    Path("taken").write_text("")
    assert main([*PLAN, "--budgets", "12bits", "--save", "taken"]) == 2
    assert "--save takes a folder" in capsys.readouterr().err


def test_a_config_alone_gives_a_curve(capsys: Any, tmp_path: Path) -> None:
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 128,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = ["--model", str(tmp_path / "config.json")]
    assert main(["plan", *model, "--budgets", "5bits,9bits", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["sensitivities"] == "prior" and data["base_loss"] is None
    small, large = data["points"]
    assert small["bytes"] < large["bytes"] and small["predicted_added_loss"] > large["predicted_added_loss"]
    assert main(["plan", *model, "--budgets", "9bits", "--ranks", "0", "--json"]) != 0
    assert "nothing would be trained" in "".join(capsys.readouterr())
