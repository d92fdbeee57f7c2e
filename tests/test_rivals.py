"""Arithmetic of ``benchmarks/rivals.py``: bytes, rules, exchanged files, intervals; no rival is installed."""

from __future__ import annotations

import importlib
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from bitrank.sensitivity.tables import Tables
from bitrank_quant import WeightMatrix, parse_format
from bitrank_quant.sensitivity import FormatErrors
from torch import zeros

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
ROLES = {
    "self_attn.q_proj": ("attention", (64, 64)),
    "self_attn.v_proj": ("attention", (32, 64)),
    "self_attn.o_proj": ("attention", (64, 64)),
    "mlp.up_proj": ("ffn", (192, 64)),
    "mlp.down_proj": ("ffn", (64, 192)),
}


def imported(name: str) -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        return importlib.import_module(name)


@pytest.fixture(scope="module")
def arms() -> ModuleType:
    return imported("rival_arms")


@pytest.fixture(scope="module")
def report() -> ModuleType:
    return imported("rival_report")


@pytest.fixture(scope="module")
def exchange() -> ModuleType:
    return imported("rival_scripts.exchange")


@pytest.fixture(scope="module")
def blocks() -> list[WeightMatrix]:
    return [
        WeightMatrix(f"model.layers.{layer}.{name}", role, layer, shape)
        for layer in range(6)
        for name, (role, shape) in ROLES.items()
    ]


@pytest.fixture(scope="module")
def tables(arms: ModuleType, blocks: list[WeightMatrix]) -> Tables:
    """Costs that fall by four with each bit; down projections cost ten times as much."""
    embedding = WeightMatrix("model.embed_tokens", "embedding", None, (100, 64))

    def errors(matrix: WeightMatrix, text: str) -> FormatErrors:
        fmt = parse_format(text)
        loss = (10.0 if "down" in matrix.name else 1.0) * 4.0**-fmt.bits if fmt.bits < 16 else 0.0
        return FormatErrors(fmt.nbytes(matrix.shape), loss, loss, 2 * loss, loss, zeros(1))

    matrices = [embedding, *blocks]
    return Tables(
        matrices, {}, {m.name: {text: errors(m, text) for text in arms.FORMATS} for m in matrices}, 1.0, 0, 0
    )


@pytest.mark.parametrize("bits", [3.5, 4.0, 4.25, 4.5, 5.0])
def test_the_hand_made_rule_fills_the_budget_and_prefers_sensitive_matrices(
    arms: ModuleType, blocks: list[WeightMatrix], bits: float
) -> None:
    budget = arms.budget_bytes(blocks, bits)
    chosen = arms.hand_made(blocks, budget)
    largest = max(m.shape[0] * m.shape[1] for m in blocks)
    assert budget - largest / 8 < arms.stored_bytes(blocks, chosen) <= budget
    steps = {m.name: arms.LADDER.index(chosen[m.name]) for m in blocks}
    sensitive = {name for name in steps if name.endswith(("v_proj", "o_proj", "down_proj"))}
    others = steps.keys() - sensitive
    assert max(steps.values()) <= min(steps.values()) + 1
    assert np.mean([steps[name] for name in sensitive]) >= np.mean([steps[name] for name in others])


def test_tables_are_measured_in_every_offered_format(
    arms: ModuleType, tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They differ from the formats that ``bitrank plan`` offers by default."""
    rivals, asked = imported("rivals"), set()

    def measured(spec: object, formats: tuple[str, ...] = ()) -> Tables:
        asked.update(formats)
        return tables

    monkeypatch.setattr(rivals, "measure", measured)
    monkeypatch.setattr(rivals, "load_data", lambda spec: None)
    monkeypatch.setattr(rivals, "PlanEvaluator", lambda *_, **__: None)
    monkeypatch.setattr(rivals, "arms", lambda *_: [])
    rivals.evaluate_all(4.5, "rtn")
    assert set(arms.FORMATS) <= asked


def test_a_budget_below_two_bits_is_refused(arms: ModuleType, blocks: list[WeightMatrix]) -> None:
    with pytest.raises(ValueError, match="no format fits"):
        arms.hand_made(blocks, arms.budget_bytes(blocks, 2.0))


@pytest.mark.parametrize("bits", [3.5, 4.0, 4.5])
def test_plans_of_scores_fit_and_give_costly_matrices_more(
    arms: ModuleType, tables: Tables, bits: float
) -> None:
    blocks = arms.blocks_of(tables)
    for choose in (arms.from_scores, arms.from_fisher):
        chosen = choose(None, tables, arms.budget_bytes(blocks, bits))
        assert set(chosen) == {m.name for m in blocks}
        assert bits - 0.1 < arms.average_bits(blocks, chosen) <= bits
        width = {name: parse_format(text).bits for name, text in chosen.items()}
        down = np.mean([width[name] for name in width if "down" in name])
        assert down > np.mean([width[name] for name in width if "up" in name])


def test_every_width_of_a_rival_has_a_format_of_its_bytes(arms: ModuleType, exchange: ModuleType) -> None:
    shapes = {"a": (48, 128), "b": (16, 64)}
    request = exchange.Request("model", [], [], shapes, {"4": 1})
    for bits in (*exchange.BITS, exchange.UNQUANTIZED):
        fmt = parse_format(arms.format_of(bits))
        assert fmt.bits == bits
        assert request.nbytes(dict.fromkeys(shapes, bits)) == sum(fmt.nbytes(s) for s in shapes.values())
    with pytest.raises(ValueError, match="a rival chose 7 bits"):
        arms.format_of(7)


def test_bits_for_codes_are_those_left_by_scales(exchange: ModuleType) -> None:
    shapes = {"a": (48, 128), "b": (16, 64)}
    uniform = parse_format("int4-g64")
    budget = sum(uniform.nbytes(shape) for shape in shapes.values())
    request = exchange.Request("model", [], [], shapes, {"4.5": budget})
    assert request.bits_of("4.5") == pytest.approx(4.0)


def test_a_request_is_read_as_written(exchange: ModuleType, tmp_path: Path) -> None:
    request = exchange.Request("model", [[1, 2], [3]], ["a b", "c"], {"m": (2, 4)}, {"4.0": 7})
    exchange.write_request(tmp_path, request)
    assert exchange.read_request(tmp_path) == request


def evaluation(report: ModuleType, arm: str, factor: float) -> object:
    generator = np.random.default_rng(0)
    tokens = generator.integers(100, 300, 30).astype(float)
    losses = tokens * (3 + 0.1 * generator.standard_normal(30)) + tokens * np.log(factor)
    names = [f"article {number}" for number in range(30)]
    return report.Evaluation(arm, "rtn", 4.5, 4.4, names, losses.tolist(), tokens.tolist())


def test_a_constant_factor_of_perplexity_is_the_difference(report: ModuleType) -> None:
    ours, other = evaluation(report, report.REFERENCE, 1.0), evaluation(report, "other", 1.03)
    found = report.log_ratio(other, ours)
    low, high = found.interval(0.05)
    assert found.value == pytest.approx(np.log(1.03))
    assert low <= found.value + 1e-12 and high >= found.value - 1e-12
    assert other.perplexity == pytest.approx(1.03 * ours.perplexity)


def test_arms_on_other_articles_are_not_compared(report: ModuleType) -> None:
    ours, other = evaluation(report, report.REFERENCE, 1.0), evaluation(report, "other", 1.03)
    other.documents[0] = "another"
    with pytest.raises(ValueError, match="different articles"):
        report.log_ratio(other, ours)


def test_only_other_allocations_than_those_of_bitrank_are_corrected_together(report: ModuleType) -> None:
    factors = {report.REFERENCE: 1.0, f"{report.REFERENCE}, scores": 1.01, "one": 1.03, "other": 1.2}
    found = [evaluation(report, arm, factor) for arm, factor in {"16 bits": 0.8, **factors}.items()]
    rows = report.comparisons(found).set_index("allocation")
    assert [*rows.index] == [*factors]
    assert rows["difference"].fillna(0.0).to_list() == pytest.approx(np.log([*factors.values()]))
    assert np.isnan(rows.loc[report.REFERENCE, "p"]) and rows.loc[f"{report.REFERENCE}, scores", "p"] < 0.01
    assert rows["p_holm"].isna().to_list() == [True, True, False, False]
    assert rows.loc["one", "p_holm"] == pytest.approx(2 * rows.loc["one", "p"])


def test_the_paper_reads_what_the_report_wrote(report: ModuleType, tmp_path: Path) -> None:
    from bitrank_analysis.paper.rivals import read_rivals

    for arm, factor in ((report.REFERENCE, 1.0), (f"{report.REFERENCE}, scores", 1.01), ("other", 1.1)):
        report.append(evaluation(report, arm, factor), tmp_path / "rivals")
    report.write_report(report.read_evaluations(tmp_path / "rivals"), {}, tmp_path / "rivals.md")
    assert [*read_rivals(tmp_path / "rivals")["allocation"]] == [report.REFERENCE, "other"]


def test_the_report_has_every_arm_best_first_and_names_rivals_without_result(
    report: ModuleType, tmp_path: Path
) -> None:
    folder = tmp_path / "rivals"
    for arm, factor in (("16 bits", 0.8), ("uniform", 1.2), (report.REFERENCE, 1.0), ("other", 1.1)):
        report.append(evaluation(report, arm, factor), folder)
    page = tmp_path / "rivals.md"
    page.write_text("# Title\n\nText by hand.\n")
    report.write_report(report.read_evaluations(folder), {"missing": "no wheel"}, page)
    text = page.read_text()
    assert text.startswith("# Title\n\nText by hand.\n")
    places = [text.index(f"| {arm} |") for arm in ("16 bits", report.REFERENCE, "other", "uniform")]
    assert places == sorted(places)
    assert "+20.0 %" in text and "missing" in text and "no wheel" in text
    assert (folder / "rivals.svg").stat().st_size > 0


def test_the_error_of_a_rival_is_its_exception_not_the_progress_after_it() -> None:
    environments = imported("rival_environments")
    text = "Traceback (most recent call last):\nTypeError: no bits\n\nLayers:  0%| | 0/96\n"
    assert environments.error_line(text) == "TypeError: no bits"
    assert environments.error_line("one\ntwo\n") == "two"
    assert environments.error_line("") == ""


def test_each_panel_of_the_figure_has_the_arms_of_its_budget_and_quantizer(report: ModuleType) -> None:
    found = []
    cases = ((4.0, "rtn", 1.5), (4.5, "rtn", 1.2), (4.0, "search", 1.1), (4.5, "search", 1.05))
    for bits, quantizer, factor in cases:
        for arm, times in ((report.REFERENCE, 1.0), ("other", factor)):
            made = asdict(evaluation(report, arm, times))
            found.append(report.Evaluation(**made | {"bits": bits, "quantizer": quantizer}))
    rows = report.comparisons(found)
    drawn = report.figure(rows[rows["difference"].notna()]).to_dict()
    shown = {
        panel["title"]: [row["value"] for row in drawn["datasets"][panel["data"]["name"]]]
        for line in drawn["vconcat"]
        for panel in line["hconcat"]
    }
    assert shown == {
        "4.0 bits, rtn": [pytest.approx(50.0)],
        "4.5 bits, rtn": [pytest.approx(20.0)],
        "4.0 bits, search": [pytest.approx(10.0)],
        "4.5 bits, search": [pytest.approx(5.0)],
    }
