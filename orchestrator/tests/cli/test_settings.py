"""What ``--set`` may not set: fields that another option decides are refused with the option to give."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bitrank.cli.main import _parser, main
from bitrank.cli.plan_output import _run_command
from bitrank.cli.plan_request import config_spec, measured_spec, plan_request
from bitrank.cli.settings import parsed_settings
from bitrank.planning.make_plan import match_pins

RUN = ("run", "--profile", "smoke", "--task", "toy_sentences", "--config", "B-FP")
MATRIX = ("matrix", "--profile", "smoke", "--configs", "B-FP,B-Q4", "--tasks", "toy_sentences")
PLAN = ("plan", "--profile", "smoke", "--task", "toy_sentences", "--budget", "9bits")
STUDY = ("study", "eight-bits", "--profile", "smoke", "--tasks", "toy_sentences")
LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 1000,
}


def rejection(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 2
    return capsys.readouterr().err.strip()


@pytest.mark.parametrize(
    ("command", "setting", "reason"),
    [
        (RUN, "plan=my.json", "give --plan FILE in place of --config"),
        (RUN, "seed=3", "give --seed"),
        (MATRIX, "plan=my.json", "it would replace every config; train it with `bitrank run --plan FILE`"),
        (MATRIX, "seed=3", "give --seeds"),
        (("list", *MATRIX[1:]), "seed=3", "give --seeds"),
        (PLAN, "plan=my.json", "this command makes a plan; leave it out"),
        (PLAN, "seed=3", "give --seed"),
        (PLAN, "init=default", "costs are those of --init; give --init"),
        (PLAN, "rank=4", "the planner chooses the ranks; restrict them with --ranks, --max-rank or --pin"),
        (STUDY, "seed=3", "give --seeds"),
        (STUDY, "init=default", "each arm of a study has its own; choose arms with --arms"),
    ],
)
def test_a_setting_that_an_option_decides_is_refused_with_the_option(
    capsys: pytest.CaptureFixture[str], place: Path, command: tuple[str, ...], setting: str, reason: str
) -> None:
    key = setting.partition("=")[0]
    assert rejection(capsys, *command, "--set", setting) == f"bitrank: {key} is no setting here: {reason}"
    assert not list(place.iterdir())


@pytest.mark.parametrize("command", [RUN, PLAN])
def test_two_values_of_one_field_are_refused(
    capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    error = rejection(capsys, *command, "--model", "tiny-bert", "--set", "model=tiny-llama")
    assert "model has two values, 'tiny-bert' by its option and 'tiny-llama' by --set; give one" in error


def test_help_and_errors_offer_no_setting_that_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["matrix", "--help"])
    offered = capsys.readouterr().out.split("any of model,")[1].replace("\n", " ").split(",")
    assert not {"plan", "seed"} & {name.strip() for name in offered}


def test_the_seed_of_a_plan_is_that_of_its_search_and_of_the_printed_run(
    capsys: pytest.CaptureFixture[str], place: Path
) -> None:
    assert measured_spec(_parser().parse_args([*PLAN, "--seed", "3"])).seed == 3
    assert main([*PLAN, "--seed", "3", "--set", "max_length=16", "--save", "my.json"]) == 0
    command = "bitrank run --plan my.json --task toy_sentences --profile smoke --seed 3 --set max_length=16"
    assert f"train: {command}\n" in capsys.readouterr().out


def test_the_printed_run_has_the_kind_and_folder_of_the_task() -> None:
    options = ["--task", "x.jsonl", "--kind", "instruction-following", "--set", "max_length=16"]
    given = _parser().parse_args(["plan", "--save", "p.json", *options, "--budget", "9bits"])
    expected = "--task x.jsonl --kind instruction-following --set max_length=16"
    assert _run_command(given) == f"bitrank run --plan p.json {expected}"
    given = _parser().parse_args(
        ["plan", "--save", "p.json", "--task", "sst2", "--data", "d", "--budget", "1"]
    )
    assert _run_command(given) == "bitrank run --plan p.json --task sst2 --data d"
    given.model, given.data = "-my model", "-d"
    assert _run_command(given) == "bitrank run --plan p.json --task sst2 '--model=-my model' --data=-d"


def test_a_plan_from_a_config_refuses_an_unknown_profile(
    capsys: pytest.CaptureFixture[str], place: Path
) -> None:
    (place / "config.json").write_text(json.dumps(LLAMA))
    plan = ("plan", "--model", "config.json", "--budget", "9bits", "--profile", "lapto")
    assert rejection(capsys, *plan).startswith("bitrank: unknown profile 'lapto'; nearest: laptop")


def test_a_plan_from_a_config_refuses_what_it_does_not_read(
    capsys: pytest.CaptureFixture[str], place: Path
) -> None:
    (place / "config.json").write_text(json.dumps(LLAMA))
    plan = ("plan", "--model", "config.json", "--budget", "9bits")
    assert "kind is no setting here: without a task" in rejection(
        capsys, *plan, "--set", "kind=classification"
    )
    assert "model is no setting here: it is the config.json" in rejection(capsys, *plan, "--set", "model=x")
    assert "text_column is no setting here: a plan from a config.json reads no data" in rejection(
        capsys, *plan, "--text-column", "review"
    )


def test_a_plan_from_a_config_takes_epochs_and_prints_a_run_to_complete(
    capsys: pytest.CaptureFixture[str], place: Path
) -> None:
    (place / "config.json").write_text(json.dumps(LLAMA))
    plan = ["plan", "--model", "config.json", "--budget", "12bits", "--set", "epochs=3", "--save", "my.json"]
    spec = config_spec(_parser().parse_args(plan))
    assert (spec.epochs, spec.steps) == (3, None)
    assert main(plan) == 0
    shown = capsys.readouterr().out
    assert "train: bitrank run --plan my.json --task TASK --model FOLDER --set epochs=3 (TASK: " in shown
    assert "None" not in shown


@pytest.mark.parametrize("order", [("query=int8", "query=:4"), ("query=:4", "query=int8")])
def test_pins_of_one_name_are_joined(capsys: pytest.CaptureFixture[str], order: tuple[str, str]) -> None:
    pins = [word for pin in order for word in ("--pin", pin)]
    assert main([*PLAN[:-1], "12bits", *pins, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    chosen = {(plan["precision"][name], plan["ranks"][name]) for name in plan["precision"] if "query" in name}
    assert chosen == {("int8", 4)}


def test_the_place_of_a_repeated_pin_is_its_own() -> None:
    """``:16`` comes after ``:4`` and replaces it; ``int8`` of the first pin stays."""
    pins = ["down_proj=int8", "layers.0=:4", "down_proj=:16"]
    arguments = _parser().parse_args([*PLAN, *[word for pin in pins for word in ("--pin", pin)]])
    given = plan_request(arguments, "9bits").pins
    assert match_pins(given, ["layers.0.down_proj", "layers.0.up_proj", "layers.1.down_proj"]) == {
        "layers.0.down_proj": ("int8", 16),
        "layers.0.up_proj": (None, 4),
        "layers.1.down_proj": ("int8", 16),
    }
    between = _parser().parse_args([*PLAN, "--pin", "q=int8", "--pin", "layers.0=nf4", "--pin", "q=:16"])
    assert match_pins(plan_request(between, "9bits").pins, ["layers.0.q"]) == {"layers.0.q": ("nf4", 16)}


@pytest.mark.parametrize(
    ("pins", "message"),
    [
        (
            ("query=int8", "query=int4-g64"),
            "the pins of 'query' disagree: int8 and int4-g64; give one of them",
        ),
        (("query=:4", "query=int8:8"), "the pins of 'query' disagree: 4 and 8; give one of them"),
        ((f"query=:{'9' * 5000}",), "expected a pin like down_proj=int4-g64-dq:16"),
    ],
)
def test_pins_of_one_name_that_disagree_are_refused(
    capsys: pytest.CaptureFixture[str], pins: tuple[str, ...], message: str
) -> None:
    assert message in rejection(capsys, *PLAN, *[word for pin in pins for word in ("--pin", pin)])


def test_the_last_of_two_values_of_one_setting_counts() -> None:
    assert parsed_settings(["steps=2", "steps=3"], {}) == {"steps": 3}


def test_home_folder_is_expanded_where_a_shell_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    from bitrank.cli.arguments import location

    monkeypatch.setenv("HOME", "/home/me")
    assert location("~/runs") == "/home/me/runs" and location("http://host/~runs") == "http://host/~runs"


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        (["--task", "toy_facts", "--kind", "masked-probing"], ["kind=masked-probing"]),
        (["--task", "sst2", "--data", "folder"], ["data=folder"]),
    ],
)
def test_plan_takes_kind_and_data_as_options_and_as_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], settings: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    common = ["plan", "--profile", "smoke", "--budget", "9bits", "--model", "tiny-bert"]
    by_option = _parser().parse_args([*common, *options])
    by_setting = _parser().parse_args([*common, *options[:2], *(f"--set={text}" for text in settings)])
    assert measured_spec(by_option) == measured_spec(by_setting)


def test_plan_from_a_config_alone_refuses_kind_and_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    words = ("plan", "--model", str(tmp_path / "config.json"), "--budget", "9bits")
    assert "kind is no setting here: without a task" in rejection(capsys, *words, "--kind", "masked-probing")
    assert "data is no setting here: a plan from a config.json" in rejection(capsys, *words, "--data", "x")


@pytest.mark.parametrize("words", [PLAN, RUN, ("doctor",), ("sql", "SELECT 1")])
def test_error_for_an_unknown_option_names_the_help_of_the_command(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*words, "--no-such-option", "x"])
    assert stop.value.code == 2
    message = (
        f"bitrank {words[0]}: unrecognized arguments: --no-such-option x (options: bitrank {words[0]} --help)"
    )
    assert capsys.readouterr().err.strip() == message
