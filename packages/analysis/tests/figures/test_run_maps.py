"""Maps of one run are drawn if bits or ranks differ between matrices, else left out."""

from __future__ import annotations

from bitrank_analysis.figures.run_maps import run_maps

MATRICES = [f"model.layers.{layer}.self_attn.{part}_proj" for layer in range(3) for part in "qkvo"]


def test_maps_are_drawn_only_of_values_that_differ() -> None:
    mixed = {name: ("nf4" if index % 2 else "int8") for index, name in enumerate(MATRICES)}
    equal = dict.fromkeys(MATRICES, 8)
    drawn = run_maps("Joint-3", mixed, equal)
    assert list(drawn) == ["bits.png"] and drawn["bits.png"].startswith(b"\x89PNG")
    assert list(run_maps("Joint-3", mixed, {**equal, MATRICES[0]: 2})) == ["bits.png", "rank.png"]


def test_matrices_outside_numbered_layers_give_no_map() -> None:
    assert run_maps("own", {"head": "nf4", "stem": "int8"}, {"head": 4, "stem": 8}) == {}
