"""Every figure of a real store: it draws, its title follows the data, and its files are complete."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vl_convert
from bitrank_analysis import AnalysisError, load_study, open_store
from bitrank_analysis.evidence import Evidence, gather
from bitrank_analysis.figures import FIGURES, Figure, draw_all, save, spec, style
from bitrank_analysis.figures.memory import memory_parts
from bitrank_analysis.figures.ranks import final_ranks
from bitrank_analysis.figures.save import svg
from bitrank_analysis.figures.theme import side_by_side
from bitrank_analysis.statistics.verdicts import DIFFERS
from bitrank_analysis.tables import tables
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from studies import add_study


@pytest.fixture(scope="module")
def evidence(new_maker: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Evidence]:
    """Six arms, two tasks, three seeds."""
    folder = tmp_path_factory.mktemp("study")
    add_study(new_maker(folder), seeds=3)
    study = load_study(open_store(str(folder)))
    return {task: gather(study, task) for task in ("movies", "wiki")}


@pytest.mark.parametrize("task", ["movies", "wiki"])
@pytest.mark.parametrize("name", list(FIGURES))
def test_figure_draws_with_its_title_and_no_undefined_text(
    evidence: dict[str, Evidence], task: str, name: str
) -> None:
    figure = FIGURES[name](evidence[task])
    svg = vl_convert.vegalite_to_svg(spec(figure))
    assert figure.title.split()[0] in svg
    assert figure.note.startswith(task)
    for undefined_text in ("NaN", "undefined", "null", ">nan"):
        assert undefined_text not in svg


def test_figures_are_named_after_figure_and_task(evidence: dict[str, Evidence]) -> None:
    drawn, refused = draw_all(evidence["wiki"])
    assert [figure.name for figure in drawn] == [f"{name}-wiki" for name in FIGURES]
    assert refused == {}


@pytest.mark.parametrize("name", ["quality-bytes", "quality-memory", "recovery"])
def test_axis_title_states_the_direction_of_better(evidence: dict[str, Evidence], name: str) -> None:
    assert "Perplexity (lower is better)" in json.dumps(spec(FIGURES[name](evidence["wiki"])))
    assert "Accuracy, % (higher is better)" in json.dumps(spec(FIGURES[name](evidence["movies"])))


def test_forest_title_follows_the_verdicts(evidence: dict[str, Evidence]) -> None:
    rows = evidence["movies"].comparisons
    none_resolved = replace(evidence["movies"], comparisons=rows.assign(verdict="unresolved"))
    assert (
        FIGURES["forest"](none_resolved).title
        == f"Nothing resolved: none of {len(rows)} differences can be distinguished from zero, "
        "and none is shown to be small"
    )
    verdicts = [
        "better" if row.candidate == "Joint-2" and row.baseline == "B-FP" else "unresolved"
        for row in rows.itertuples()
    ]
    one_better = replace(evidence["movies"], comparisons=rows.assign(verdict=verdicts))
    assert FIGURES["forest"](one_better).title == "Joint-2 better than B-FP; nothing resolved against B-Q4"
    one_seed = replace(
        evidence["movies"],
        comparisons=rows.assign(verdict=[word.replace("better", DIFFERS) for word in verdicts]),
    )
    assert FIGURES["forest"](one_seed).title == (
        "On these examples, with one seed: Joint-2 apart from B-FP; nothing resolved against B-Q4"
    )


def test_front_title_separates_members_from_unresolved(evidence: dict[str, Evidence]) -> None:
    front = evidence["movies"].memory_front
    names = list(front.sort_values("x")["config"])

    def title(*membership: str) -> str:
        membership_by_name = dict(zip(names, membership, strict=True))
        marked = front.assign(membership=front["config"].map(membership_by_name))
        return FIGURES["quality-memory"](replace(evidence["movies"], memory_front=marked)).title

    assert title("yes", "unresolved", *["no"] * 4) == (
        f"{names[0]} is on the front of peak memory and accuracy; unresolved for {names[1]}"
    )
    assert title("unresolved", "unresolved", *["no"] * 4).startswith(
        "No arm is surely on the front of peak memory and accuracy; unresolved"
    )
    assert "peak memory varies by" in FIGURES["quality-memory"](evidence["movies"]).note
    assert "varies by" not in FIGURES["quality-bytes"](evidence["movies"]).note


def test_memory_parts_sum_to_the_peak(evidence: dict[str, Evidence]) -> None:
    parts = memory_parts(evidence["movies"])
    peaks = evidence["movies"].runs.groupby("config")["peak_mib"].mean()
    assert parts.groupby("config")["mib"].sum().to_dict() == pytest.approx(peaks.to_dict())
    adapters = parts[parts["part"] == "adapters"].set_index("config")["mib"]
    optimizer = parts[parts["part"] == "optimizer state"].set_index("config")["mib"]
    assert (optimizer / adapters).to_list() == pytest.approx([2.0] * 6)
    assert adapters["B-FP"] == pytest.approx(4 * 768 * 48 * 4 / 2**20)


def test_memory_note_reports_parts_above_the_peak(evidence: dict[str, Evidence]) -> None:
    small_peaks = replace(evidence["movies"], runs=evidence["movies"].runs.assign(peak_mib=100.0))
    assert "the known parts exceed the measured peak" in FIGURES["memory"](small_peaks).note


def test_figure_without_its_data_raises_with_the_reason(evidence: dict[str, Evidence]) -> None:
    ranks = evidence["movies"].ranks
    fixed_ranks = replace(evidence["movies"], ranks=ranks[ranks["config"].isin(["B-FP", "Joint-3"])])
    with pytest.raises(
        AnalysisError,
        match="expected an arm whose ranks a planner chose or training moves, got none; run Plan-Q4",
    ):
        FIGURES["rank-map"](fixed_ranks)
    empty = replace(
        evidence["movies"],
        comparisons=evidence["movies"].comparisons.iloc[:0],
        curves=evidence["movies"].curves.iloc[:0],
    )
    _, refused = draw_all(empty)
    assert set(refused) == {"forest", "loss"}
    assert "expected train/loss in the store, got none" in refused["loss"]


def test_ranks_that_change_after_the_recorded_steps_are_drawn(evidence: dict[str, Evidence]) -> None:
    """As of an arm that reduces its ranks once, at the end of training."""
    ranks = evidence["movies"].ranks
    first = ranks.groupby("config")["step"].transform("min")
    late = (ranks["config"] == "B-Ada") & (ranks["step"] > first).fillna(False)
    reduced = replace(evidence["movies"], ranks=ranks[~late])
    figure = FIGURES["rank-time"](reduced)
    assert figure.title.startswith("Ranks last changed: B-Ada at the end, Joint-1 at step ")
    unnumbered = replace(evidence["movies"], ranks=ranks.assign(layer=np.nan))
    for name in ("rank-time", "rank-layers"):
        with pytest.raises(AnalysisError, match="expected ranks of matrices in numbered layers, got none"):
            FIGURES[name](unnumbered)


def test_matrices_planned_without_an_adapter_count_as_rank_zero(evidence: dict[str, Evidence]) -> None:
    """The attention outputs of a plan have rank 0, and its runs record the ranks of adapters only."""
    task, name = evidence["movies"], "Joint-3"
    plans, ranks = task.plans.copy(), task.ranks
    plans.loc[(plans["config"] == name) & (plans["module"] == "o"), "rank"] = 0
    recorded = ranks[~((ranks["config"] == name) & (ranks["module"] == "o"))]
    changed = replace(task, plans=plans, ranks=recorded)
    of_arm = final_ranks(changed).query("config == @name and layer == 0 and seed == 0")
    assert dict(zip(of_arm["module"], of_arm["rank"], strict=True)) == {
        "q": 6, "k": 6, "v": 6, "o": 0, "up": 10, "down": 10,
    }  # fmt: skip
    assert len(final_ranks(changed)) == len(final_ranks(task))
    table = next(table for table in tables(changed) if table.name == "ranks-movies")
    assert table.shown[name].tolist() == ["6.3 (0–10)"] * 4
    unread = replace(changed, ranks=recorded[recorded["config"] != name])
    assert name not in set(final_ranks(unread)["config"]), "ranks of a run without a record are not known"


def test_equal_plans_share_a_panel(evidence: dict[str, Evidence]) -> None:
    panels = {
        row["config"]
        for row in next(iter(spec(FIGURES["bits-map"](evidence["movies"]))["datasets"].values()))
    }
    assert panels == {"B-FP, B-Ada", "B-Q4, Joint-1", "Joint-2, Joint-3"}


def test_save_writes_every_file_with_fonts_and_title(evidence: dict[str, Evidence], tmp_path: Path) -> None:
    figure = FIGURES["forest"](evidence["movies"])
    assert [path.name for path in save(figure, tmp_path)] == [
        f"forest.{kind}" for kind in ("svg", "png", "pdf", "json")
    ]
    assert json.loads((tmp_path / "forest.json").read_text())["title"]["subtitle"]
    pdf = (tmp_path / "forest.pdf").read_bytes()
    assert pdf.startswith(b"%PDF") and b"/FontFile" in pdf, "the PDF carries no font"
    pixels = np.asarray(Image.open(io.BytesIO((tmp_path / "forest.png").read_bytes())).convert("L"))
    assert (pixels[:60] < 100).sum() > 300, "no title was drawn: is the font there?"


def test_untitled_spec_has_no_title() -> None:
    import altair as alt
    import pandas as pd

    figure = Figure("f", "A finding", alt.Chart(pd.DataFrame({"a": [1]})).mark_point().encode(x="a:Q"))
    assert "title" not in spec(figure, titled=False)
    assert spec(figure)["title"] == {"text": ["A finding"]}


def test_colours_and_shapes_are_fixed_and_distinct() -> None:
    six = style(["Joint-3", "B-FP", "Joint-1", "B-Q4", "Joint-2", "B-Ada"])
    assert list(six) == ["B-FP", "B-Q4", "B-Ada", "Joint-1", "Joint-2", "Joint-3"]
    assert len({hue for hue, _ in six.values()}) == len({form for _, form in six.values()}) == 6
    assert style(["B-Q4"])["B-Q4"] == six["B-Q4"]


@given(st.sets(st.text(min_size=1, max_size=6), min_size=1, max_size=24))
def test_unknown_arms_have_distinct_styles(names: set[str]) -> None:
    styles = style([*names, "B-FP"])
    assert set(styles) == names | {"B-FP"}
    assert len(set(styles.values())) == len(styles)


@given(st.dictionaries(st.text(min_size=1, max_size=3), st.integers(0, 50), min_size=1, max_size=8))
def test_arms_at_one_position_are_offset_symmetrically(places: dict[str, Any]) -> None:
    shifts = side_by_side({name: float(place) for name, place in places.items()})
    assert sum(shifts.values()) == pytest.approx(0)
    for a in places:
        for b in places:
            if a < b and places[a] == places[b]:
                assert abs(shifts[a] - shifts[b]) >= 11


def test_svg_of_a_map_is_the_same_each_time(evidence: dict[str, Evidence]) -> None:
    figure = FIGURES["rank-map"](evidence["movies"])
    first, second = svg(figure), svg(figure)
    assert first == second and b"url(#gradient_0)" in first


def test_rank_map_of_equal_ranks_names_no_most_and_least(evidence: dict[str, Evidence]) -> None:
    movies = evidence["movies"]
    equal = replace(
        movies,
        runs=movies.runs.assign(family="planned"),
        ranks=movies.ranks[movies.ranks["config"] == "B-FP"].assign(rank=4),
    )
    assert FIGURES["rank-map"](equal).title == "Every kind of matrix has a mean rank of 4.0 in B-FP"


def test_rank_map_has_planned_arms_whose_ranks_never_move(evidence: dict[str, Evidence]) -> None:
    movies = evidence["movies"]
    planned = movies.runs["family"].where(movies.runs["config"] != "Joint-3", "planned")
    with_plan = replace(movies, runs=movies.runs.assign(family=planned))
    assert "Joint-3" not in FIGURES["rank-map"](movies).title
    assert "and Joint-3 give most rank to" in FIGURES["rank-map"](with_plan).title


def test_the_eight_arms_of_a_study_of_planners_have_eight_colours() -> None:
    arms = [f"{name}-3.5bits" for name in "abcdefgh"]
    assert len({colour for colour, _ in style(arms).values()}) == 8
