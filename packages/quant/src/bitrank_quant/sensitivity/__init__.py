"""How much each weight matrix minds being stored in fewer bits, what rank can repair of it, and what rank can
learn.

Three steps, each streamed block by block so that the model as it is held and one block's work space are all
that is in memory, beside what blocks gave (a hidden state for each position and block):

    replay = Replay(model, batches, judged)                    what every block gives, kept once
    moments = measure_moments(replay, matrices)                second moments of inputs and output gradients, spectra of the task gradient
    tables = measure_errors(replay, matrices, formats, moments)  by matrix and format: weight errors, tails, added loss, divergence

Nothing is trained, and the model is left as it was.
"""

from bitrank_quant.sensitivity.format_errors import FormatErrors, Modules, measure_errors, modules_of
from bitrank_quant.sensitivity.moments import Moments, compute_dtype, measure_moments, weight_of
from bitrank_quant.sensitivity.replay import Forward, Replay

__all__ = [
    "FormatErrors",
    "Forward",
    "Modules",
    "Moments",
    "Replay",
    "compute_dtype",
    "measure_errors",
    "measure_moments",
    "modules_of",
    "weight_of",
]
