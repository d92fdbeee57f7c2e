"""Tables: full values in CSV, formatted text with the same rows, and escaping for LaTeX."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from bitrank_analysis import AnalysisError, load_study, open_store, phrasing
from bitrank_analysis.evidence import gather
from bitrank_analysis.files import name_of
from bitrank_analysis.matrix_names import module_order, nominal_bits, place
from bitrank_analysis.tables import Table, latex_escape, tables
from hypothesis import given
from hypothesis import strategies as st
from studies import add_study


@pytest.fixture
def made(maker: Any, tmp_path: Path) -> dict[str, Table]:
    add_study(maker, tasks=("movies",), seeds=2)
    return {table.name: table for table in tables(gather(load_study(open_store(str(tmp_path))), "movies"))}


def test_all_tables_are_made_and_csv_keeps_full_values(made: dict[str, Table]) -> None:
    assert list(made) == [
        f"{name}-movies"
        for name in (
            "arms",
            "comparisons",
            "further",
            "pareto",
            "factorial",
            "plans",
            "ranks",
            "hypotheses",
            "published",
        )
    ]
    for table in made.values():
        back = pd.read_csv(io.StringIO(table.csv()))
        assert list(back.columns) == list(table.frame.columns)
        assert len(back) == len(table.shown) == len(table.frame)
    back = pd.read_csv(io.StringIO(made["arms-movies"].csv()))
    assert back["quality"].to_list() == pytest.approx(made["arms-movies"].frame["quality"].to_list(), abs=0)


def test_rows_follow_the_order_of_the_study(made: dict[str, Table]) -> None:
    assert made["arms-movies"].shown["Arm"].to_list() == [
        "B-FP",
        "B-Q4",
        "B-Ada",
        "Joint-1",
        "Joint-2",
        "Joint-3",
    ]
    against = made["comparisons-movies"].shown["Against"].to_list()
    assert against == ["B-FP"] * 5 + ["B-Q4"] * 4


def test_further_metrics_are_compared_each_as_a_family(made: dict[str, Table]) -> None:
    table = made["further-movies"]
    assert table.shown["Metric"].to_list() == ["Macro-F1"] * 9 + ["Matthews' correlation"] * 9
    assert table.shown["Against"].to_list() == (["B-FP"] * 5 + ["B-Q4"] * 4) * 2
    main, further = made["comparisons-movies"].frame, table.frame[table.frame["metric"] == "macro_f1"]
    # With two balanced classes macro-F1 follows the accuracy closely.
    assert further["difference"].to_list() == pytest.approx(main["difference"].to_list(), abs=0.01)
    assert (further["p_holm"] >= further["p"]).all()


def test_plans_and_ranks_are_listed_by_layer(made: dict[str, Table]) -> None:
    plans = made["plans-movies"].shown.set_index("Layer")
    assert plans.loc["layer 0"].to_dict() == {
        "B-FP": "bf16",
        "B-Q4": "nf4-dq",
        "B-Ada": "bf16",
        "Joint-1": "nf4-dq",
        "Joint-2": "int8",
        "Joint-3": "int8",
    }
    assert plans.loc["word_embeddings", "B-Q4"] == "bf16"
    ranks = made["ranks-movies"].shown.set_index("Layer")
    assert ranks.loc["0", "B-FP"] == "8.0"
    assert ranks.loc["3", "Joint-1"] == "4.0 (1–8)"


def test_latex_and_markdown_of_a_table() -> None:
    frame = pd.DataFrame({"arm": ["a_b", "c|d"], "share": ["10 %", "−1"]})
    table = Table("t", "caption", frame, frame.rename(columns={"arm": "Arm & more", "share": "Share"}))
    assert table.latex() == (
        "\\begin{tabular}{lr}\n\\toprule\nArm \\& more & Share \\\\\n\\midrule\n"
        "a\\_b & 10 \\% \\\\\nc|d & $-$1 \\\\\n\\bottomrule\n\\end{tabular}\n"
    )
    assert table.markdown() == "| Arm & more | Share |\n| --- | ---: |\n| a_b | 10 % |\n| c\\|d | −1 |\n"


def test_text_of_data_stays_in_its_cell_of_a_markdown_table() -> None:
    frame = pd.DataFrame({"text": ["a\\|b", "c\r\n\v\f\x85\u2028\u2029d\te", "\x1b[31m\x9b \\n"]})
    rows = Table("t", "caption", frame, frame).markdown().split("\n")
    assert rows == ["| text |", "| --- |", r"| a\\\|b |", "| c       d e |", r"| \x1b[31m\x9b \n |", ""]


def test_a_name_too_long_for_a_file_is_cut_and_has_a_hash() -> None:
    assert name_of("arms", "movies") == "arms-movies"
    names = {name_of(kind, "文" * 83 + end) for kind in ("arms", "rank-map") for end in "ab"}
    assert len(names) == 4 and all(227 < len(name.encode()) <= 230 for name in names)


@given(st.text(alphabet="ab&%$#_{}~^\\<>", max_size=12))
def test_latex_escape_leaves_no_special_character(text: str) -> None:
    escaped = latex_escape(text)
    rest = re.sub(
        r"\\textbackslash\{\}|\\textasciitilde\{\}|\\textasciicircum\{\}|\$[<>]\$|\\[&%$#_{}]", "", escaped
    )
    assert set(rest) <= set("ab")


def test_layer_and_module_of_matrix_names() -> None:
    assert place("bert.encoder.layer.3.attention.self.query") == (3, "q")
    assert place("model.layers.12.mlp.down_proj") == (12, "down")
    assert place("model.embed_tokens") == (None, "embed_tokens")
    assert place("model.layers.0.mixer.in_proj") == (0, "in_proj")
    assert module_order(pd.Series(["down", "zeta", "q", "alpha", "q"])) == ["q", "down", "alpha", "zeta"]


@pytest.mark.parametrize(
    ("text", "bits"), [("nf4-dq", 4), ("int3-g64", 3), ("bf16", 16), ("fp32", 32), ("int8", 8)]
)
def test_bits_of_a_format(text: str, bits: int) -> None:
    assert nominal_bits(text) == bits


def test_format_without_bits_raises() -> None:
    with pytest.raises(
        AnalysisError, match=r"expected a number format with its bits in its name.*got 'ternary'"
    ):
        nominal_bits("ternary")


def test_numbers_are_formatted_as_text() -> None:
    assert phrasing.quality(0.8334, "acc") == "83.3 %"
    assert phrasing.quality(21.374, "ppl") == "21.37"
    assert [phrasing.signed(value) for value in (-0.71, 0.02, -0.02, 1.25)] == ["−0.7", "0.0", "0.0", "+1.2"]
    assert phrasing.change(0.0198026, "ppl") == pytest.approx(2.0, abs=1e-4)
    assert (phrasing.margin(0.01, "acc"), phrasing.margin(0.0198026, "ppl")) == (
        "1 point of accuracy",
        "2 % of perplexity",
    )
    assert phrasing.listed(["a"]) == "a" and phrasing.listed(["a", "b", "c"]) == "a, b and c"
    assert (phrasing.p_value(0.0004), phrasing.p_value(0.0341)) == ("< 0.001", "0.034")
    assert (phrasing.count(1, "seed"), phrasing.count(3, "seed")) == ("1 seed", "3 seeds")
