"""Bits by auto-round's AutoScheme: first-order loss differences and its own search over layers."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from auto_round import AutoScheme
from auto_round.auto_scheme.gen_auto_scheme import GenScheme
from auto_round.schemes import QuantizationScheme
from exchange import BITS, GROUP, Request, given_folder, read_request, write_assignments
from transformers import AutoModelForCausalLM, AutoTokenizer

BATCH = 8


def main() -> None:
    """Write the assignment of every budget."""
    folder = given_folder()
    request = read_request(folder)
    dataset = folder / "texts.json"
    length = write_texts(request, dataset)
    assignments = chosen(request, dataset, length)
    settings = f"AutoScheme, {len(request.texts)} texts of {length} tokens, asymmetric integers"
    write_assignments(folder, ["auto-round", "torch"], settings, assignments)


def write_texts(request: Request, place: Path) -> int:
    """Write the texts as a data set of auto-round, and return the number of tokens that all of them have."""
    tokenizer = AutoTokenizer.from_pretrained(request.model)
    place.write_text(json.dumps([{"text": text} for text in request.texts]))
    return min(len(tokenizer(text)["input_ids"]) for text in request.texts)


def weights_in(bits: int) -> QuantizationScheme:
    """Weights in groups with ``bits``, activations in 16."""
    return QuantizationScheme(bits=bits, group_size=GROUP, sym=False, act_bits=16)


def chosen(request: Request, dataset: Path, length: int) -> dict[str, dict[str, int]]:
    """Bits by budget and matrix; scales are not counted, since they are the same at every width."""
    model = AutoModelForCausalLM.from_pretrained(request.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(request.model)
    averages = {budget: request.bits_of(budget) for budget in request.budgets}
    scheme = AutoScheme(
        avg_bits=list(averages.values()),
        options=[weights_in(bits) for bits in BITS],
        ignore_scale_zp_bits=True,
        nsamples=len(request.texts),
        seqlen=length,
        batch_size=BATCH,
        device_map="cpu",
        low_gpu_mem_usage=False,
        low_cpu_mem_usage=False,
    )
    maker = GenScheme(
        scheme, model, list(request.shapes), {}, dataset=str(dataset), device_map="cpu", tokenizer=tokenizer
    )
    targets = dict(zip(averages, scheme.avg_bits, strict=True))  # the scheme moves targets to its ends
    found = maker.get_layer_config()
    return {
        budget: {name: int(found[target][name]["bits"]) for name in request.shapes}
        for budget, target in targets.items()
    }


if __name__ == "__main__":
    main()
