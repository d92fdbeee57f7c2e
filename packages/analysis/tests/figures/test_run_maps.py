"""Maps of one run are drawn if bits or ranks differ between matrices, else left out."""

from __future__ import annotations

from bitrank_analysis.figures.run_maps import map_figures, run_maps

MATRICES = [f"model.layers.{layer}.self_attn.{part}_proj" for layer in range(3) for part in "qkvo"]


def test_maps_are_drawn_only_of_values_that_differ() -> None:
    mixed = {name: ("nf4" if index % 2 else "int8") for index, name in enumerate(MATRICES)}
    equal = dict.fromkeys(MATRICES, 8)
    drawn = run_maps("Joint-3", mixed, equal)
    assert list(drawn) == ["bits.png"] and drawn["bits.png"].startswith(b"\x89PNG")
    assert list(run_maps("Joint-3", mixed, {**equal, MATRICES[0]: 2})) == ["bits.png", "rank.png"]


def test_matrices_outside_numbered_layers_give_no_map() -> None:
    assert run_maps("own", {"head": "nf4", "stem": "int8"}, {"head": 4, "stem": 8}) == {}


def test_layers_of_a_decoder_follow_those_of_its_encoder_and_nothing_is_averaged() -> None:
    layers = {"encoder": 3, "decoder": 2}
    formats = {
        f"{stack}.block.{layer}.layer.{place}.{part}": "int8" if stack == "encoder" else "nf4"
        for stack, depth in layers.items()
        for layer in range(depth)
        for place, part in enumerate(("SelfAttention.q", "EncDecAttention.q", "DenseReluDense.wo"))
        if stack == "decoder" or part != "EncDecAttention.q"
    }
    figure = next(figure for figure in map_figures("T5", formats, {}) if figure.name == "bits")
    (cells,) = figure.chart.to_dict()["datasets"].values()
    found = {(cell["layer"], cell["module"]): cell["bits"] for cell in cells}
    assert {layer for layer, module in found if module == "cross q"} == {3, 4}
    assert {layer: bits for (layer, module), bits in found.items() if module == "q"} == {
        0: 8, 1: 8, 2: 8, 3: 4, 4: 4,
    }  # fmt: skip


def test_ranks_of_a_decoder_alone_are_in_the_layers_of_the_map_of_bits() -> None:
    formats = {f"{stack}.block.0.fc": "int8" for stack in ("encoder", "decoder")}
    figures = {figure.name: figure for figure in map_figures("T5", formats, {"decoder.block.0.fc": 4})}
    (cells,) = figures["rank"].chart.to_dict()["datasets"].values()
    assert [cell["layer"] for cell in cells] == [1]
