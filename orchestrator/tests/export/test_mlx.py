"""Exports for MLX: codes of the run in mlx-lm's files, in the planned bytes, with equal logits and tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from bitrank.cli.main import main
from bitrank.errors import UserError
from bitrank.export.finished_run import FinishedRun, find_run
from bitrank.export.mlx import ADAPTERS, mlx_config, pack_mlx
from bitrank.export.mlx_families import MODEL_TYPES
from bitrank.export.packed import WEIGHTS
from bitrank.export.prepared import Options, write_export
from bitrank.export.rebuild import rebuild
from bitrank.export.registry import EXPORTS
from bitrank.export.runtime_formats import nearest
from bitrank.export.tensors import file_tensors, round_to_state
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import find_profile
from bitrank_quant import QuantWeight, apply_precision, block_matrices, parse_format
from finished_runs import execute_in, llama_plan, train
from safetensors.torch import load_file, save_file
from small_models import WORDS, write

FORMATS = ("int2-g32", "int3-g32", "int4-g32", "int5-g32", "int6-g32", "int8-g32", "bf16")
IDS = [2, 4, 5, 7, 6, 11, 4, 12]
SIZES: dict[str, Any] = {
    "vocab_size": len(WORDS),
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    folder = tmp_path_factory.mktemp("mlx")
    model = write(folder / "model", "llama_tied", rope_theta=700.0)
    plan = llama_plan(lambda n: FORMATS[n % 7], "int4-g32", lambda n: (0, 2, 4)[n % 3])
    return find_run(train(folder, model, plan))


def exported(run: FinishedRun, out: Path, adapter_apart: bool = False) -> Any:
    rebuilt = rebuild(run)
    prepared = EXPORTS["mlx"].prepare(rebuilt, Options("mlx", adapter_apart, "gptq"))
    write_export(prepared, out)
    return rebuilt, prepared


def mlx_logits(folder: Path, adapter: Path | None = None) -> np.ndarray[Any, Any]:
    mx = pytest.importorskip("mlx.core", reason="needs the packages mlx[cpu] and mlx-lm")
    utils = pytest.importorskip("mlx_lm.utils", reason="needs the packages mlx[cpu] and mlx-lm")
    model, _ = utils.load_model(folder)
    if adapter is not None:
        model = utils.load_adapters(model, str(adapter))
        model.eval()
    # Weights and scales are bf16 in the file; products in fp32 show that their values are equal.
    model.set_dtype(mx.float32)
    return np.array(model(mx.array([IDS])))[0]


def test_words_are_those_of_mlx_and_decode_to_the_same_values() -> None:
    mx = pytest.importorskip("mlx.core", reason="needs the package mlx[cpu]")
    weight_OI = torch.randn(8, 128, generator=torch.Generator().manual_seed(0))
    for text in ("int2-g64", "int3-g32", "int4-g128", "int5-g64", "int6-g32", "int8-g64"):
        fmt = parse_format(text)
        parts = pack_mlx(QuantWeight(weight_OI, fmt, torch.float32))
        assert sum(tensor.nbytes for tensor in parts.values()) == fmt.nbytes((8, 128))
        words, scales, biases = (
            mx.array(tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy())
            for tensor in parts.values()
        )
        decoded = mx.dequantize(words, scales, biases, group_size=fmt.block, bits=fmt.bits)
        expected_OI = fmt.decode(fmt.encode(weight_OI), (8, 128), torch.float32)
        assert np.array_equal(np.array(decoded), expected_OI.numpy()), text


def test_exported_model_has_the_logits_of_the_merged_one(run: FinishedRun, tmp_path: Path) -> None:
    _, prepared = exported(run, tmp_path / "out")
    rebuilt = rebuild(run)
    expected = EXPORTS["mlx"].prepare(rebuilt, Options("mlx", False, "gptq"))
    assert prepared.audit.after == pytest.approx(expected.audit.after)
    with torch.no_grad():
        logits = rebuilt.inner(input_ids=torch.tensor([IDS])).logits[0].numpy()
    np.testing.assert_allclose(mlx_logits(tmp_path / "out"), logits, rtol=1e-3, atol=1e-4)


def test_planned_bytes_of_matrices_are_those_of_the_file(run: FinishedRun, tmp_path: Path) -> None:
    rebuilt, prepared = exported(run, tmp_path / "out")
    planned = {
        name: parse_format(text).nbytes(tuple(rebuilt.stored_and_adapted(name)[0].shape))
        for name, text in (run.precision or {}).items()
    }
    tensors = load_file(tmp_path / "out" / WEIGHTS)
    stored = dict.fromkeys(planned, 0)
    for name, tensor in tensors.items():
        owner, _, leaf = name.rpartition(".")
        if owner in stored and leaf != "bias":
            stored[owner] += tensor.nbytes
    assert stored == planned
    assert prepared.audit.weight_bytes == sum(tensor.nbytes for tensor in tensors.values())
    assert f"{sum(planned.values()):,} bytes in matrices" in prepared.notes[0]
    assert not prepared.audit.replaced()


def test_minima_that_qa_lora_moved_are_written_in_16_bits(tmp_path: Path) -> None:
    model = write(tmp_path / "model", "llama", hidden_size=64, intermediate_size=128)
    given = {"model": str(model), "device": "cpu", "dtype": "fp32", "steps": 4, "learning_rate": 1e-2}
    run = find_run(
        execute_in(tmp_path / "run", make_spec(find_profile("smoke"), "QA-LoRA-Q4", "toy_articles", given))
    )
    rebuilt, prepared = exported(run, tmp_path / "out")
    assert set(prepared.audit.replaced()) == set() and run.ranks
    tensors = load_file(tmp_path / "out" / WEIGHTS)
    for name in run.ranks:
        shape = rebuilt.stored_and_adapted(name)[0].shape
        planned = parse_format((run.precision or {})[name]).nbytes((shape[0], shape[1]))
        assert sum(t.nbytes for key, t in tensors.items() if key.startswith(f"{name}.")) == planned, name
    assert {str(t.dtype) for key, t in tensors.items() if key.endswith("biases")} == {"torch.bfloat16"}


def test_an_adapter_apart_leaves_the_base_as_trained(run: FinishedRun, tmp_path: Path) -> None:
    _, prepared = exported(run, tmp_path / "out", adapter_apart=True)
    assert prepared.audit.after["loss"] == pytest.approx(prepared.audit.before["loss"], abs=2e-3)
    config = json.loads((tmp_path / "out" / ADAPTERS / "adapter_config.json").read_text())
    tensors = load_file(tmp_path / "out" / ADAPTERS / "adapters.safetensors")
    for name, rank in run.ranks.items():
        if rank:
            used_R = tensors[f"{name}.lora_a"].abs().sum(0) > 0
            assert used_R.tolist() == [True] * rank + [False] * (4 - rank), "filled up to the largest rank"
    assert set(config["lora_parameters"]["keys"]) == {name for name, rank in run.ranks.items() if rank}
    assert "zeros: mlx-lm has one rank (4) for all" in prepared.notes[1]
    quantized = [name for name, text in (run.precision or {}).items() if text != "bf16"]
    rows = prepared.audit.matrices
    assert set(rows) == {*quantized, *(name for name, rank in run.ranks.items() if rank)}
    assert all(row.kept and row.stored == row.format and row.after < 1e-6 for row in rows.values())
    of_adapter = sum(tensor.nbytes for tensor in tensors.values())
    base_file = load_file(tmp_path / "out" / WEIGHTS).values()
    assert prepared.audit.adapter_bytes == of_adapter
    assert prepared.audit.base_bytes == sum(tensor.nbytes for tensor in base_file)
    base, adapted = mlx_logits(tmp_path / "out"), mlx_logits(tmp_path / "out", tmp_path / "out" / ADAPTERS)
    again = rebuild(run)
    round_to_state(again.model)
    with torch.no_grad():
        expected = again.model(input_ids=torch.tensor([IDS])).logits[0].numpy()
    np.testing.assert_allclose(adapted, expected, rtol=1e-3, atol=1e-4)
    assert np.abs(base - adapted).max() > 1e-3


def test_generated_tokens_are_those_of_our_own_evaluation(run: FinishedRun, tmp_path: Path) -> None:
    mlx_lm = pytest.importorskip("mlx_lm", reason="needs the packages mlx[cpu] and mlx-lm")
    rebuilt, _ = exported(run, tmp_path / "out")
    model, tokenizer = mlx_lm.load(str(tmp_path / "out"))
    made = [response.token for response in mlx_lm.stream_generate(model, tokenizer, prompt=IDS, max_tokens=8)]
    ids = torch.tensor([IDS])
    with torch.no_grad():
        for token in made:
            logits = rebuilt.inner(input_ids=ids).logits[0, -1]
            # mlx-lm computes in bf16, so nearly equal logits may change places.
            assert float(logits.max() - logits[token]) < 0.02
            ids = torch.cat([ids, torch.tensor([[token]])], dim=1)


@pytest.mark.parametrize("family", MODEL_TYPES)
def test_architectures_have_the_names_and_layouts_of_mlx_lm(family: str, tmp_path: Path) -> None:
    config = transformers.AutoConfig.for_model(family, **SIZES)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.1)
    plan = {matrix.name: FORMATS[n % 6] for n, matrix in enumerate(block_matrices(model))}
    apply_precision(model, plan, compute_dtype=torch.float32)
    round_to_state(model)
    found = file_tensors(model, pack_mlx)
    save_file(found.tensors, tmp_path / WEIGHTS)
    (tmp_path / "config.json").write_text(json.dumps(mlx_config(model, found)))
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([IDS])).logits[0].numpy()
    np.testing.assert_allclose(mlx_logits(tmp_path), expected, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize(
    ("planned", "shape", "stored"),
    [
        ("int4-g64", (8, 128), "int4-g64"),
        ("nf4-dq", (8, 128), "int4-g64"),
        ("int4-g64-dq", (8, 128), "int4-g64"),
        ("int7-g64", (8, 128), "int8-g64"),
        ("int8", (8, 256), "int8-g128"),
        ("nf3", (8, 96), "int3-g32"),
        ("sym4-g32", (8, 128), "int4-g32"),
        ("nf4", (8, 40), "bf16"),
        ("fp16", (8, 128), "bf16"),
    ],
)
def test_other_formats_become_the_nearest_one_of_mlx(
    planned: str, shape: tuple[int, int], stored: str
) -> None:
    assert nearest(planned, shape, "mlx") == stored


def test_a_plan_for_another_runtime_is_converted_and_counted(tmp_path: Path) -> None:
    model = write(tmp_path / "model", "llama_tied")
    run = find_run(train(tmp_path, model, llama_plan(lambda n: ("nf4", "int8")[n % 2], "bf16", lambda n: 2)))
    _, prepared = exported(run, tmp_path / "out")
    replaced = prepared.audit.replaced()
    # The down projections have 64 columns, the others 32.
    assert replaced == {
        ("nf4", "int4-g32"): 6,
        ("nf4", "int4-g64"): 1,
        ("int8", "int8-g32"): 6,
        ("int8", "int8-g64"): 1,
    }


def test_unknown_architectures_and_classifiers_are_rejected(tmp_path: Path) -> None:
    def rejected(name: str, task: str) -> str:
        given = {"model": str(write(tmp_path / name, name))}
        spec = make_spec(find_profile("smoke"), "B-FP", task, given)
        with pytest.raises(UserError) as error:
            EXPORTS["mlx"].check(FinishedRun(spec, tmp_path, None, {}))
        return str(error.value)

    assert "the architecture bloom cannot be exported for mlx-lm" in rejected("bloom", "toy_articles")
    assert "this run is a classification model; export it with --to merged" in rejected(
        "llama", "toy_sentences"
    )


def test_a_plan_for_mlx_takes_its_bytes_in_the_file(tmp_path: Path) -> None:
    """From ``bitrank plan --for mlx`` to the export: planned base, bytes of matrices, and the stated rest."""
    model = write(tmp_path / "model", "llama_tied", hidden_size=64, intermediate_size=128)
    saved, config = tmp_path / "saved.json", str(model / "config.json")
    options = ("--budget", "7bits", "--ranks", "2,4", "--for", "mlx", "--save", str(saved))
    assert main(["plan", "--model", config, *options]) == 0
    plan = json.loads(saved.read_text())
    assert len(set(plan["precision"].values())) > 1
    rebuilt, prepared = exported(find_run(train(tmp_path, model, plan)), tmp_path / "out")
    assert not prepared.audit.replaced()
    tensors = load_file(tmp_path / "out" / WEIGHTS)
    matrices = sum(
        parse_format(plan["precision"][name]).nbytes(tuple(shape)) for name, shape in plan["shapes"].items()
    )
    owners = tuple(f"{name}." for name in plan["precision"])
    in_file = sum(t.nbytes for name, t in tensors.items() if name.startswith(owners) and name[-4:] != "bias")
    assert in_file == matrices
    file_size = (tmp_path / "out" / WEIGHTS).stat().st_size
    assert 0 < file_size - prepared.audit.weight_bytes < 200 * len(tensors), "the header"
    # The other planned bytes: norms and biases of runs in fp32, and buffers that are in no file.
    rest = prepared.audit.weight_bytes - in_file
    buffers = sum(buffer.nbytes for buffer in rebuilt.inner.buffers() if buffer.dtype == torch.float32)
    assert prepared.audit.planned_bytes - matrices == 2 * rest + buffers
