"""The block matrices as GPTQModel stores them, decoded: its own GPTQ on the calibration windows."""

from __future__ import annotations

import os

import torch
from exchange import GROUP, given_folder, read_request, write_weights

# Read at import. On two cores GPTQModel 7.7 gives its pool one worker, and its loader asks for two.
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
from gptqmodel import GPTQModel, QuantizeConfig


def main() -> None:
    """Write the decoded matrices."""
    folder = given_folder()
    request = read_request(folder)
    config = QuantizeConfig(
        bits=request.width,
        group_size=GROUP,
        sym=False,
        desc_act=False,
        offload_to_disk=False,
        format="gptq_v2",
    )
    model = GPTQModel.load(request.model, config, device="cpu", dtype=torch.float32)
    windows = [{"input_ids": window, "attention_mask": [1] * len(window)} for window in request.windows]
    model.quantize(windows, batch_size=1)
    modules = dict(model.model.named_modules())
    weights = {name: modules[name].dequantize_weight().T for name in request.shapes}
    settings = f"asymmetric, columns in order, {len(windows)} windows"
    write_weights(folder, ["GPTQModel", "torch"], settings, weights)


if __name__ == "__main__":
    main()
