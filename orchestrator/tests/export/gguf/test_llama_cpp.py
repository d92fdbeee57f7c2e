"""llama.cpp computes from exported files what transformers computes from the exported weights.

The client is the npm package node-llama-cpp (tested with 3.21.1): ``npm install node-llama-cpp@3.21.1`` in a
folder, and NODE_LLAMA_CPP=that folder.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import bpe_models
import pytest
import torch
from bitrank.export.finished_run import find_run
from bitrank.export.gguf.prepare import ADAPTER_FILE, MODEL_FILE, exported_weights, prepare_gguf
from bitrank.export.prepared import Options, write_export
from bitrank.export.rebuild import Rebuilt, rebuild
from bitrank_quant import block_matrices, weight_matrices
from transformers import AutoModelForCausalLM

PACKAGE = Path(os.environ.get("NODE_LLAMA_CPP", ".")).resolve() / "node_modules/node-llama-cpp"
CLIENT = Path(__file__).with_name("client.mjs")
FORMATS = ("int4-g32", "int5-g32", "int8", "bf16", "nf4", "int6-g32")
COUNT = 16
TEXTS = [
    "the film is lovely, 1990 films .",
    "  two  spaces\n\n\ttab café 日本 don't",
    "the end<|im_end|> a",
]

needs_client = pytest.mark.skipif(
    not PACKAGE.is_dir() or shutil.which("node") is None,
    reason="no llama.cpp: set NODE_LLAMA_CPP to the folder of npm install node-llama-cpp@3.21.1",
)
pytestmark = [pytest.mark.slow, needs_client]


def ask(**request: Any) -> dict[str, Any]:
    """The answer of the client to ``request``."""
    done = subprocess.run(
        ["node", str(CLIENT)],
        input=json.dumps({"package": str(PACKAGE), **request}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.fixture(scope="module", params=["llama_tied", "gpt2", "qwen2", "qwen3"])
def rebuilt(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Rebuilt:
    folder = tmp_path_factory.mktemp(request.param)
    values = {"use_sliding_window": False} if request.param == "qwen2" else {}
    model = bpe_models.write(folder / "model", request.param, **values)
    empty = AutoModelForCausalLM.from_pretrained(model)
    names = [matrix.name for matrix in weight_matrices(empty) if matrix.tied_to is None]
    precision = {matrix: FORMATS[number % len(FORMATS)] for number, matrix in enumerate(names)}
    ranks = {matrix.name: 1 + number % 4 for number, matrix in enumerate(block_matrices(empty))}
    return rebuild(find_run(bpe_models.write_run(folder / "run", model, precision, ranks)))


def greedy(model: Any, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    with torch.no_grad():
        for _ in range(COUNT):
            ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
    found: list[int] = ids[0, len(prompt) :].tolist()
    return found


def losses(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, :-1].float()
    return torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")


@pytest.mark.parametrize("apart", [False, True])
def test_llama_cpp_gives_the_tokens_and_losses_of_the_exported_weights(
    rebuilt: Rebuilt, tmp_path: Path, apart: bool
) -> None:
    out, draw = tmp_path / "out", torch.Generator().manual_seed(1)
    write_export(prepare_gguf(rebuilt, Options("gguf", apart, "rtn")), out)
    prompts = [torch.randint(2, 290, (7,), generator=draw).tolist() for _ in range(6)]
    sequences = [torch.randint(2, 290, (40,), generator=draw).tolist() for _ in range(3)]
    answer = ask(
        model=str(out / MODEL_FILE),
        lora=str(out / ADAPTER_FILE) if apart else None,
        texts=TEXTS,
        prompts=prompts,
        count=COUNT,
        sequences=sequences,
    )
    assert answer["tokens"] == [rebuilt.tokenizer(text)["input_ids"] for text in TEXTS]
    reference = rebuilt.plain_model(exported_weights(rebuilt, apart)).eval()
    assert answer["greedy"] == [greedy(reference, prompt) for prompt in prompts]
    base = rebuilt.plain_model(
        {name: rebuilt.stored_and_adapted(name)[0] for name in rebuilt.layers()}
    ).eval()
    for ids, found in zip(sequences, answer["losses"], strict=True):
        expected = losses(reference, ids)
        # llama.cpp rounds activations to 8 bits in products with quantized matrices.
        distance = (torch.tensor(found) - expected).norm()
        assert distance < 0.2 * (losses(base, ids) - expected).norm(), "the adapter's effect is not there"
        assert sum(found) / len(found) == pytest.approx(float(expected.mean()), abs=0.01)


def test_llama_cpp_reads_the_codes_that_a_quantizer_chose(rebuilt: Rebuilt, tmp_path: Path) -> None:
    out, draw = tmp_path / "out", torch.Generator().manual_seed(1)
    # The export changes the model in place, and other tests use the fixture.
    prepared = prepare_gguf(rebuild(rebuilt.run), Options("gguf", quantizer="gptq"))
    write_export(prepared, out)
    assert prepared.audit.rounded
    prompts = [torch.randint(2, 290, (7,), generator=draw).tolist() for _ in range(6)]
    answer = ask(model=str(out / MODEL_FILE), texts=[], prompts=prompts, count=COUNT, sequences=[])
    config = rebuilt.inner.config
    reference = AutoModelForCausalLM.from_pretrained(out, gguf_file=MODEL_FILE, config=config).eval()
    assert answer["greedy"] == [greedy(reference, prompt) for prompt in prompts]
