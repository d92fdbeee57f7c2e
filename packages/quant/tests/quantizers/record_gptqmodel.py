"""Record the result of GPTQModel that test_quantizers.py compares with.

python record_gptqmodel.py gptqmodel-7.7.0.safetensors      in an environment with gptqmodel==7.7.0
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from safetensors.torch import save_file


def main() -> None:
    """Quantize a random layer with correlated inputs; write weight, moments, scales and decoded matrix."""
    import importlib

    settings: Any = importlib.import_module("gptqmodel.quantization")
    library: Any = importlib.import_module("gptqmodel.quantization.gptq")
    rows, columns, group = 8, 160, 32
    generator = torch.Generator().manual_seed(0)
    weight_OI = torch.randn(rows, columns, generator=generator)
    shared_NI = torch.randn(600, 8, generator=generator) @ torch.randn(8, columns, generator=generator)
    own_NI = torch.randn(600, columns, generator=generator) * torch.rand(columns, generator=generator)
    inputs_NI = 0.3 * shared_NI + own_NI
    linear = torch.nn.Linear(columns, rows, bias=False)
    linear.weight.data = weight_OI.clone()
    config = settings.QuantizeConfig(
        bits=3, group_size=group, desc_act=False, act_group_aware=False, sym=False, damp_percent=0.01
    )
    oracle = library.GPTQ(linear, qcfg=config)
    oracle.quantizer.configure(perchannel=True)
    oracle.add_batch(inputs_NI[None], linear(inputs_NI[None]))
    decoded_OI, scale_OG, zero_OG = oracle.quantize(blocksize=128)[:3]
    tensors = {
        "weight": weight_OI,
        "moments": inputs_NI.T @ inputs_NI / len(inputs_NI),
        "decoded": decoded_OI,
        "scale": scale_OG,
        "zero": zero_OG,
    }
    save_file({name: one.detach().float().contiguous() for name, one in tensors.items()}, sys.argv[1])


if __name__ == "__main__":
    main()
