"""Figures of one task's evidence.

Each figure is a pure function from frames to a :class:`Figure`; :data:`FIGURES` maps name to function.
"""

from collections.abc import Callable

from bitrank_analysis.errors import AnalysisError
from bitrank_analysis.evidence import Evidence
from bitrank_analysis.figures.bits import bits_map
from bitrank_analysis.figures.budget_curve import budget_curve
from bitrank_analysis.figures.forest import forest
from bitrank_analysis.figures.frontier import budget_frontier
from bitrank_analysis.figures.loss import loss_curves
from bitrank_analysis.figures.memory import memory
from bitrank_analysis.figures.parameters import parameters
from bitrank_analysis.figures.part_bytes import part_bytes
from bitrank_analysis.figures.quality_bytes import quality_bytes, quality_memory
from bitrank_analysis.figures.ranks import rank_layers, rank_map, rank_time
from bitrank_analysis.figures.recovery import recovery
from bitrank_analysis.figures.run_maps import map_figures, run_maps
from bitrank_analysis.figures.save import bare_spec, pdf, save, spec
from bitrank_analysis.figures.theme import PAGE, Figure, config, style
from bitrank_analysis.files import name_of

FIGURES: dict[str, Callable[[Evidence], Figure]] = {
    "forest": forest,
    "quality-bytes": quality_bytes,
    "quality-memory": quality_memory,
    "recovery": recovery,
    "memory": memory,
    "loss": loss_curves,
    "parameters": parameters,
    "rank-layers": rank_layers,
    "bits-map": bits_map,
    "rank-map": rank_map,
    "rank-time": rank_time,
}


def draw_all(evidence: Evidence) -> tuple[list[Figure], dict[str, str]]:
    """Draw every figure that ``evidence`` allows.

    Returns the figures, named after figure and task, and the reason for each figure that cannot be drawn.
    """
    drawn, refused = [], {}
    for name, draw in FIGURES.items():
        try:
            figure = draw(evidence)
        except AnalysisError as error:
            refused[name] = str(error)
        else:
            drawn.append(
                Figure(
                    name_of(figure.name, evidence.task),
                    figure.title,
                    figure.chart,
                    figure.note,
                    figure.wide,
                )
            )
    return drawn, refused


__all__ = [
    "FIGURES",
    "PAGE",
    "Figure",
    "bare_spec",
    "budget_curve",
    "budget_frontier",
    "config",
    "draw_all",
    "map_figures",
    "part_bytes",
    "pdf",
    "run_maps",
    "save",
    "spec",
    "style",
]
