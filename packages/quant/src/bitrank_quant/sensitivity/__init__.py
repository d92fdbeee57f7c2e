"""Sensitivity of each weight matrix to quantization, and the ranks that can repair or learn something in it.

Three steps, each streamed block by block. Memory holds the model, the block outputs of the calibration
batches (one hidden state per position and block), and the work space of one block:

    replay = Replay(model, batches, forward)                     records the output of every block once
    moments = measure_moments(replay, matrices)                  second moments and spectra per matrix
    errors = measure_errors(replay, matrices, formats, moments)  errors per matrix and format

Nothing is trained, and the model is unchanged afterwards.
"""

from bitrank_quant.sensitivity.format_errors import FormatErrors, Modules, measure_errors, modules_of
from bitrank_quant.sensitivity.inputs import input_moments
from bitrank_quant.sensitivity.moments import Moments, compute_dtype, measure_moments, weight_of
from bitrank_quant.sensitivity.replay import Forward, Replay

__all__ = [
    "FormatErrors",
    "Forward",
    "Modules",
    "Moments",
    "Replay",
    "compute_dtype",
    "input_moments",
    "measure_errors",
    "measure_moments",
    "modules_of",
    "weight_of",
]
