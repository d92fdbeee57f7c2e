"""Sensitivity of each weight matrix to quantization, and the ranks that can repair or learn something in it.

Two steps, each streamed block by block. Memory holds the model, the block outputs of the calibration
batches (one hidden state per position and block), and the work space of one block with its inputs and
gradients:

    replay = Replay(model, batches, forward)                           records the output of every block once
    moments, errors = measure_sensitivities(replay, matrices, formats)  per matrix, and per matrix and format

Nothing is trained, and the model is unchanged afterwards.
"""

from bitrank_quant.sensitivity.blocks import block_name
from bitrank_quant.sensitivity.divergence import Divergence
from bitrank_quant.sensitivity.format_errors import FormatErrors, measure_sensitivities, stored_in
from bitrank_quant.sensitivity.inputs import input_moments
from bitrank_quant.sensitivity.moments import Moments, compute_dtype, measure_moments, weight_of
from bitrank_quant.sensitivity.replay import Forward, Replay
from bitrank_quant.sensitivity.samples import LayerSample
from bitrank_quant.sensitivity.sequential import LayerInputs, sequential_inputs
from bitrank_quant.sensitivity.side_by_side import side_by_side
from bitrank_quant.sensitivity.single_divergence import Modules, measure_divergences, modules_of

__all__ = [
    "Divergence",
    "FormatErrors",
    "Forward",
    "LayerInputs",
    "LayerSample",
    "Modules",
    "Moments",
    "Replay",
    "block_name",
    "compute_dtype",
    "input_moments",
    "measure_divergences",
    "measure_moments",
    "measure_sensitivities",
    "modules_of",
    "sequential_inputs",
    "side_by_side",
    "stored_in",
    "weight_of",
]
