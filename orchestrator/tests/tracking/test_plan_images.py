"""Formats and ranks that the images of a run show."""

from __future__ import annotations

import json
from pathlib import Path

from bitrank.tracking.plan_images import formats_and_ranks, plan_images

FORMATS = {"embed": "int8", "layers.0.q_proj": "nf4", "layers.0.v_proj": "nf4"}
PLACES = {"embed": None, "layers.0.q_proj": 0, "layers.0.v_proj": 0}


def finished(folder: Path, ranks: dict[str, int], formats: dict[str, str]) -> Path:
    matrices = [{"name": name, "layer": layer} for name, layer in PLACES.items()]
    (folder / "plan.json").write_text(json.dumps({"precision": formats, "matrices": matrices}))
    (folder / "ranks.json").write_text(json.dumps({"final": ranks}))
    return folder


def test_a_matrix_of_a_layer_without_an_adapter_has_rank_0(tmp_path: Path) -> None:
    folder = finished(tmp_path, {"layers.0.q_proj": 8}, FORMATS)
    assert formats_and_ranks(folder) == (FORMATS, {"layers.0.q_proj": 8, "layers.0.v_proj": 0})


def test_the_image_of_ranks_is_drawn_if_some_matrix_has_no_adapter(tmp_path: Path) -> None:
    folder = finished(tmp_path, {"layers.0.q_proj": 8}, dict.fromkeys(FORMATS, "nf4"))
    assert list(plan_images(folder, "Plan")) == ["rank.png"]


def test_a_run_whose_matrices_are_equal_has_no_image(tmp_path: Path) -> None:
    equal = {"layers.0.q_proj": 8, "layers.0.v_proj": 8}
    assert plan_images(finished(tmp_path, equal, dict.fromkeys(FORMATS, "nf4")), "LoRA") == {}
