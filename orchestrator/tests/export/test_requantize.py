"""An adapter is merged into few bits with less loss than by rounding, and into the planned bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bitrank.errors import UserError
from bitrank.export.finished_run import FinishedRun, find_run
from bitrank.export.rebuild import Rebuilt, rebuild
from bitrank.export.registry import EXPORTS, find_quantizer_for
from bitrank.export.requantize import Requantized, requantize
from bitrank.run.record import Record
from bitrank.run.train_run import execute
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import find_profile
from bitrank.spec.run_spec import write_spec
from bitrank_quant import QUANTIZERS, QuantError
from bitrank_trainer import ALONE
from finished_runs import llama_plan, train
from small_models import write

FORMATS = ("int3-g32", "nf4", "int4-g32-dq", "sym4-g32", "int2-g32", "bf16", "int8")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    folder = tmp_path_factory.mktemp("requantize")
    model = write(folder / "model", "llama_tied", hidden_size=64, intermediate_size=128)
    plan = llama_plan(lambda n: FORMATS[n % 7], "int6-g32", lambda n: (0, 2, 4)[n % 3])
    return find_run(train(folder, model, plan))


def merged(run: FinishedRun, quantizer: str, **options: object) -> tuple[Rebuilt, Requantized]:
    rebuilt = rebuild(run)
    return rebuilt, requantize(rebuilt, quantizer, **options)  # type: ignore[arg-type]


def test_calibration_reduces_the_divergence_of_a_merge(run: FinishedRun) -> None:
    """Random weights have no loss to lose, so outputs are compared with those of the adapted model."""
    ids = torch.arange(4, 14)[None]
    distances = {}
    for quantizer in QUANTIZERS:
        rebuilt = rebuild(run)
        with torch.no_grad():
            expected = rebuilt.model(input_ids=ids).logits
            model = requantize(rebuilt, quantizer).model
            distances[quantizer] = float((model(input_ids=ids).logits - expected).norm() / expected.norm())
    assert distances["gptq"] < 0.8 * distances["rtn"]


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_every_matrix_keeps_its_format_and_bytes(run: FinishedRun, quantizer: str) -> None:
    rebuilt, found = merged(run, quantizer)
    with_adapter = {name for name, rank in run.ranks.items() if rank}
    assert set(found.matrices) >= with_adapter
    for name, row in found.matrices.items():
        weight = found.model.get_submodule(name).quantized
        assert row.format == row.stored == str(weight.fmt) == rebuilt.format(name)
        assert row.kept
        assert sum(one.nbytes for one in weight.tensors.values()) == weight.fmt.nbytes(weight.shape)
    untouched = found.matrices["model.embed_tokens"]
    assert untouched.kept and untouched.before == untouched.after == 0


def test_the_audit_has_the_metrics_of_rounding(run: FinishedRun) -> None:
    rounding, rounded = merged(run, "rtn")
    _, calibrated = merged(run, "gptq")
    assert rounded.rounded == {}
    assert calibrated.rounded == pytest.approx(rounding.evaluate(rounded.model), rel=1e-6)


def test_an_adapter_apart_leaves_codes_whose_format_stays(run: FinishedRun) -> None:
    before = {name: rebuild(run).stored_and_adapted(name)[0] for name in run.ranks}
    changed = "model.layers.0.self_attn.k_proj"
    assert run.precision is not None
    assert run.precision[changed] == "nf4"
    rebuilt, found = merged(run, "gptq", formats={changed: "int4-g32"}, adapter_apart=True)
    assert found.matrices[changed].stored == "int4-g32"
    assert not found.matrices[changed].kept
    for name, stored_OI in before.items():
        if name != changed:  # other libraries compute the values of the same codes with other rounding
            torch.testing.assert_close(rebuilt.stored_and_adapted(name)[0], stored_OI, rtol=1e-5, atol=1e-6)
    layer = rebuilt.inner.get_submodule(changed)
    assert hasattr(layer, "lora_A") == bool(run.ranks[changed])
    assert str(rebuilt.layer(changed).quantized.fmt) == "int4-g32"


def test_a_quantizer_is_rejected_where_it_is_unknown_or_unused() -> None:
    with pytest.raises(QuantError, match="unknown quantizer 'awq'"):
        find_quantizer_for("quantized", "awq")
    with pytest.raises(UserError, match="--to merged quantizes nothing by a quantizer; omit --quantizer"):
        find_quantizer_for("merged", "gptq")
    for name in EXPORTS:
        assert find_quantizer_for(name, None) in QUANTIZERS


def test_adapters_on_summed_inputs_merge_exactly_and_keep_their_format(tmp_path: Path) -> None:
    """QA-LoRA: logits agree at float tolerance, and no code and no scale changes."""
    model = write(tmp_path / "model", "llama", hidden_size=64, intermediate_size=128)
    folder = tmp_path / "run"
    folder.mkdir()
    given = {"model": str(model), "device": "cpu", "dtype": "fp32", "steps": 4, "learning_rate": 1e-2}
    spec = make_spec(find_profile("smoke"), "QA-LoRA-Q4", "toy_articles", given)
    write_spec(spec, folder / "spec.json")
    execute(spec, folder, Record(folder, ALONE), ALONE)
    finished = find_run(folder)
    ids = torch.arange(4, 14)[None]
    rebuilt = rebuild(finished)
    before = {name: rebuilt.layer(name).quantized.tensors for name in finished.ranks}
    with torch.no_grad():
        expected = rebuilt.model(input_ids=ids).logits
        without = rebuilt.model.base_model.disable_adapter_layers() or rebuilt.model(input_ids=ids).logits
        rebuilt.model.base_model.enable_adapter_layers()
        found = requantize(rebuilt, "rtn")
        logits = found.model(input_ids=ids).logits
    assert float((expected - without).abs().max()) > 1e-2
    assert float((logits - expected).abs().max()) < 1e-5
    for name, row in found.matrices.items():
        after = found.model.get_submodule(name).quantized
        assert row.kept and str(after.fmt) == row.stored == "int4-g32"
        assert all(torch.equal(after.tensors[key], before[name][key]) for key in ("codes", "scale"))
