"""Forecasts equal the allocations of real training; prior costs and predicted durations."""

from __future__ import annotations

import json
import math
import sqlite3
from contextlib import closing
from itertools import islice
from pathlib import Path

import pytest
import torch
from bitrank.forecast.dry_run import Pass, Stage, dry_run, unplanned_model
from bitrank.forecast.forecast import Forecast, forecast
from bitrank.forecast.import_memory import ImportMemory
from bitrank.forecast.live_bytes import LiveBytes
from bitrank.forecast.model_shapes import model_shapes
from bitrank.forecast.stored_size import Storage, stored_size
from bitrank.forecast.training_time import training_time
from bitrank.forecast.workload import heaviest, workload
from bitrank.models.load import open_model
from bitrank.models.locate import locate
from bitrank.planning.from_config import outlined_problem, training_memory
from bitrank.planning.prior import LEVEL, prior_costs, prior_errors
from bitrank.process.compute import Compute
from bitrank.process.hardware import hardware
from bitrank.run.adapter_init import choose_init
from bitrank.run.data import load_data
from bitrank.run.plans import make_plans, store_base
from bitrank.spec.configs import find_config
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import find_profile
from bitrank.spec.rule_interface import AttachOptions
from bitrank.spec.run_spec import RunSpec
from bitrank_adapters import AdapterScale, adapter_memory, fuse
from bitrank_planner import exact
from bitrank_quant import WeightMatrix, decoder, weight_matrices
from bitrank_trainer import DTYPES, OBJECTIVES, Task, TrainSettings, choose_dtype, train, trainable
from bitrank_trainer.optimizer import named_adamw
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig

IN_FP32 = Compute("cpu", "fp32", threads=None)
TASKS = ("toy_sentences", "toy_articles")
LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}


def spec_of(task: str, config: str = "B-FP", **given: object) -> RunSpec:
    return make_spec(find_profile("smoke"), config, task, {"dtype": "fp32", **given})


def forecast_of(spec: RunSpec, monkeypatch: pytest.MonkeyPatch) -> Forecast:
    """Return the forecast of ``spec`` without the import memory, which takes seconds to measure."""
    monkeypatch.setattr("bitrank.forecast.forecast.import_memory", lambda spec: ImportMemory(0, 0))
    model = unplanned_model(spec, 2, IN_FP32).model
    matrices = [m for m in weight_matrices(model) if m.tied_to is None and "classifier" not in m.name]
    config = find_config(spec.config)
    blocks = [m for m in matrices if m.layer is not None and m.role != "embedding"]
    return forecast(
        spec, config.precision.assign_formats(matrices), config.rank.assign_ranks(blocks), "no store"
    )


@pytest.mark.parametrize("config", ["B-FP", "B-Ada", "Joint-2", "Joint-3", "Scales-Q4"])
@pytest.mark.parametrize("task", TASKS)
def test_adapter_gradient_and_optimizer_bytes_equal_those_that_training_allocates(
    task: str, config: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Compared after real steps of the training loop."""
    spec = spec_of(task, config)
    parts, data = forecast_of(spec, monkeypatch), load_data(spec)
    loaded = open_model(spec, 2, "cpu", torch.float32)
    arm = find_config(config)
    plans = make_plans(arm, loaded)
    store_base(spec, loaded, plans.formats, choose_init(spec, plans.ranks), "cpu", torch.float32)
    scale = AdapterScale(2.0, "constant")
    options = AttachOptions(scale, loaded.trained_modules, seed=0, total_steps=20)
    model, hook = arm.rank.attach(loaded.model, plans.ranks, options)
    fuse(model, decoder)
    optimizers: list[torch.optim.Optimizer] = []
    gradients: list[int] = []
    objective = OBJECTIVES[spec.kind]

    def recorded_adamw(model: nn.Module, *options: float) -> torch.optim.Optimizer:
        made = named_adamw(model, *options)
        made.register_step_pre_hook(
            lambda *_: gradients.append(
                sum(p.grad.nbytes for p in trainable(model).values() if p.grad is not None)
            )
        )
        optimizers.append(made)
        return made

    monkeypatch.setattr("bitrank_trainer.loop.named_adamw", recorded_adamw)
    settings = TrainSettings(steps=2, learning_rate=1e-3, eval_every=2, checkpoint_every=2)
    train(
        model,
        Task(objective, data.train_batches, lambda: {"loss": 1.0, objective.metric: 1.0}),
        hook,
        settings,
        tmp_path,
        lambda _: None,
    )
    moments = sum(
        value.nbytes for state in optimizers[0].state.values() for value in state.values() if value.ndim
    )
    averages = hook.state()[0].values() if config in {"B-Ada", "Joint-2"} else ()
    assert parts.adapters == adapter_memory(model)
    assert parts.gradients == gradients[0] == gradients[1]
    assert parts.trainable == sum(p.numel() for p in trainable(model).values())
    # AdaLoRA's state has two averages per parameter; the last importance, of the same size, is not saved in
    # checkpoints.
    assert parts.optimizer == moments + sum(average.nbytes for average in averages) * 3 // 2
    assert parts.peak >= parts.stored + parts.adapters + parts.gradients + parts.optimizer + parts.activations


def test_live_bytes_equal_the_hand_count_of_a_short_chain() -> None:
    """x W (4,000 bytes), its ReLU (4,000), their sum (4).

    Freed tensors do not count, and parameters never do.
    """
    x_NI, weight_IO = torch.empty(100, 20, device="meta"), torch.empty(20, 10, device="meta")
    with LiveBytes() as live:
        made = (x_NI @ weight_IO).relu()
        assert (live.now, live.peak) == (4000, 8000)
        made = made.sum()
        assert (live.now, live.peak) == (4, 8000)
    assert len(live.products) == 1


@pytest.mark.parametrize("config", ["B-FP", "Joint-2"])
@pytest.mark.parametrize("task", TASKS)
def test_cached_layouts_give_the_same_peaks_as_uncached_ones(
    task: str, config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(task, config)
    found = []
    for uncached in (False, True):
        if uncached:
            monkeypatch.setattr("bitrank.forecast.live_bytes._kind", lambda func: "")
        unplanned = unplanned_model(spec, 2, IN_FP32)
        trained = unplanned.trained_modules
        every = weight_matrices(unplanned.model)
        matrices = [m for m in every if m.tied_to is None and m.name not in trained]
        arm = find_config(config)
        ranks = arm.rank.assign_ranks([m for m in matrices if m.layer is not None and m.role != "embedding"])
        stage = dry_run(spec, IN_FP32, unplanned, arm.precision.assign_formats(matrices), ranks, 10)
        found.append((stage.step((4, 17)), stage.step((4, 30)), stage.evaluate((5, 30))))
    assert found[0] == found[1]
    assert found[0][1].peak > found[0][0].peak > 0


def stage_of(spec: RunSpec) -> Stage:
    """The model of ``spec`` in 16 bits, with adapters, without data."""
    unplanned = unplanned_model(spec, 2, IN_FP32)
    matrices = [m for m in weight_matrices(unplanned.model) if m.tied_to is None]
    arm = find_config("B-FP")
    ranks = arm.rank.assign_ranks([m for m in matrices if m.layer is not None and m.role != "embedding"])
    return dry_run(spec, IN_FP32, unplanned, arm.precision.assign_formats(matrices), ranks, 10)


def test_generation_counts_the_keys_and_values_of_prompt_and_text() -> None:
    """Of a decoder exactly: two tensors (B, heads, T, head width) per layer, and one position's logits."""
    stage = stage_of(spec_of("toy_instructions"))
    config, rows, width, per_number = stage.model.config, 5, 30, 4
    heads, head_width = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
    cached = 2 * config.num_hidden_layers * heads * width * head_width * rows * per_number
    logits = rows * config.vocab_size * per_number
    prompt, doubled = stage.generate((rows, width), 0), stage.generate((rows, width), width)
    assert doubled.peak - prompt.peak == cached + logits
    assert prompt.peak > cached + logits and prompt.products > 0


def test_generation_of_a_model_that_computes_all_logits_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """As models with code of their own: their forward has no keyword for the positions of logits."""
    stage = stage_of(spec_of("toy_instructions"))
    last = stage.generate((5, 30), 30)
    base = stage.model.get_base_model()
    whole = type(base).forward

    def forward(self, input_ids=None, attention_mask=None, use_cache=None, **rest):
        return whole(self, input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache, **rest)

    monkeypatch.setattr(type(base), "forward", forward)
    other_positions = 5 * 29 * stage.model.config.vocab_size * 4
    assert stage.generate((5, 30), 30).peak == last.peak + other_positions


@pytest.mark.parametrize("task", ["toy_instructions", "toy_summaries"])
def test_a_forecast_covers_the_generation_of_texts(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of(task)
    work = workload(spec, "cpu")
    assert work.prompts and work.new_tokens > 0
    assert workload(spec_of("toy_articles"), "cpu").prompts == frozenset()
    largest = Pass(peak=10**9, products=1)
    monkeypatch.setattr(Stage, "generate", lambda stage, shape, new_tokens: largest)
    assert forecast_of(spec, monkeypatch).activations == largest.peak


def test_heaviest_shapes_have_the_most_tokens_or_the_longest_sequence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert heaviest([(32, 20), (8, 60), (4, 60), (32, 10)]) == {(32, 20), (8, 60)}
    assert heaviest([(32, 20), (32, 10)]) == {(32, 20)}
    assert heaviest([]) == set()
    work = workload(spec_of("toy_sentences"), "cpu")
    assert heaviest(work.train) <= work.train


@pytest.mark.parametrize(
    ("task", "dtype"), [("toy_sentences", "fp32"), ("toy_sentences", "bf16"), ("toy_articles", "bf16")]
)
def test_workload_equals_that_of_the_real_batches(task: str, dtype: str) -> None:
    spec = spec_of(task, dtype=dtype, batch_size=2, device="cpu")
    work, data = workload(spec, "cpu"), load_data(spec)
    shapes = [batch["input_ids"].shape for batch in islice(data.train_batches(0), work.steps)]
    assert work.train == set(shapes) and work.train_tokens == sum(rows * width for rows, width in shapes)


def test_few_long_sequences_need_more_memory_than_many_short_ones() -> None:
    """Attention scores grow with the square of the length, so the batch with fewer tokens needs more."""
    spec = spec_of("toy_sentences")
    unplanned = unplanned_model(spec, 2, IN_FP32)
    blocks = [m for m in weight_matrices(unplanned.model) if m.layer is not None and m.role != "embedding"]
    stage = dry_run(spec, IN_FP32, unplanned, {}, {m.name: 2 for m in blocks}, 10)
    assert stage.step((4, 64)).peak > stage.step((33, 8)).peak


def matrices() -> list[WeightMatrix]:
    blocks = [
        WeightMatrix(f"model.layers.{n}.mlp.{part}", "ffn", n, (96, 64))
        for n in range(16)
        for part in ("up_proj", "down_proj")
    ]
    return [
        WeightMatrix("model.embed_tokens", "embedding", None, (1000, 64)),
        *blocks,
        WeightMatrix("lm_head", "head", None, (1000, 64)),
    ]


def test_prior_costs_decrease_with_bits_and_rank_and_are_deterministic() -> None:
    formats, ranks = ("int2-g64", "int3-g64", "int4-g64", "int8", "bf16"), (2, 8, 32)
    torch.manual_seed(1)
    first = prior_costs(matrices(), formats, ranks)
    torch.manual_seed(2)
    assert prior_costs(matrices(), formats, ranks) == first
    for name, costs in first.items():
        by_bits = [costs[text, 0] for text in formats]
        assert by_bits == sorted(by_bits, reverse=True) and by_bits[-1] == 0
        if name != "model.embed_tokens":
            by_rank = [costs["int4-g64", rank] for rank in (0, *ranks)]
            assert by_rank == sorted(by_rank, reverse=True) and min(by_rank) >= 0
    assert math.fsum(
        by_format["nf4"] for by_format in prior_errors(matrices(), ["nf4"]).values()
    ) == pytest.approx(LEVEL)
    down, up = (first[f"model.layers.8.mlp.{part}"]["int4-g64", 0] for part in ("down_proj", "up_proj"))
    assert down == pytest.approx(2 * up) and first["model.layers.0.mlp.up_proj"][
        "int4-g64", 0
    ] == pytest.approx(2 * up)


def test_a_table_that_a_head_shares_costs_as_much_as_a_head() -> None:
    blocks = [matrix for matrix in matrices() if matrix.role != "head"]
    table, up = "model.embed_tokens", "model.layers.8.mlp.up_proj"
    alone, shared = (prior_errors(blocks, ["nf4"], heads) for heads in ((), (table,)))
    ratios = [errors[table]["nf4"] / errors[up]["nf4"] for errors in (alone, shared)]
    assert ratios[1] == pytest.approx(2 * ratios[0])


@pytest.mark.parametrize("tied", [True, False])
def test_the_plan_of_a_config_knows_which_table_a_head_shares(tmp_path: Path, tied: bool) -> None:
    config = AutoConfig.from_pretrained(locate("tiny-llama"))
    config.tie_word_embeddings = tied
    config.save_pretrained(tmp_path)
    heads = model_shapes(str(tmp_path), "language-modelling").heads
    assert heads == ({"model.embed_tokens"} if tied else set())


class LargestTensor(TorchDispatchMode):
    """Record the bytes of the largest real tensor that is created inside the block."""

    nbytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and not tensor.is_meta:
                self.nbytes = max(self.nbytes, tensor.untyped_storage().nbytes())
        return made


def test_planning_70_billion_parameters_allocates_only_small_tensors(tmp_path: Path) -> None:
    """Covers sizes, plan and dry run.

    The largest real tensor is one on which formats are compared, a thousandth of one matrix of the model.
    """
    from bitrank.planning.costs import Choices

    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    options = {"batch_size": 1, "max_length": 64, "steps": 1, "kind": "language-modelling"}
    spec = RunSpec(config="B-FP", task="", model=str(tmp_path / "config.json"), **options)
    with LargestTensor() as largest:
        problem, sizes = outlined_problem(spec, "40GB", Choices())
        plan = exact(problem)
        parts = training_memory(spec, plan)
    assert sizes.parameters == 70_553_706_496
    stored_adapters = parts.adapters // 2  # bf16 in the file, fp32 in training
    assert parts.weights + stored_adapters == plan.nbytes <= 40_000_000_000
    assert parts.optimizer == 2 * parts.gradients == 2 * parts.adapters
    assert 0 < largest.nbytes <= 2**25 < sizes.matrices["model.layers.0.mlp.up_proj"].shape[0] * 8192 / 4
    storage = Storage("auto", "cpu", torch.bfloat16)
    assert plan.nbytes == sizes.fixed + sum(
        stored_size(sizes.matrices[name], plan.precision[name], storage)
        + 2 * plan.ranks.get(name, 0) * sum(sizes.matrices[name].shape)
        for name in sizes.matrices
    )


def write_store(path: Path, runs: list[tuple[dict[str, str], dict[str, float]]]) -> str:
    """Write a store with finished runs of these tags and figures: the tables of MLflow that are read."""
    path.mkdir()
    with closing(sqlite3.connect(path / "mlflow.db")) as database, database:
        database.executescript("""
            CREATE TABLE experiments (experiment_id INTEGER PRIMARY KEY, name TEXT);
            CREATE TABLE runs (
                run_uuid TEXT, experiment_id INTEGER, status TEXT, lifecycle_stage TEXT, start_time INTEGER
            );
            CREATE TABLE tags (run_uuid TEXT, key TEXT, value TEXT);
            CREATE TABLE metrics (run_uuid TEXT, key TEXT, value REAL);
            CREATE TABLE latest_metrics (run_uuid TEXT, key TEXT, value REAL, is_nan BOOLEAN);
            CREATE TABLE alembic_version (version_num TEXT);
            INSERT INTO alembic_version VALUES ('any');
            INSERT INTO experiments VALUES (1, 'bitrank-smoke')""")
        for number, (tags, figures) in enumerate(runs):
            database.execute("INSERT INTO runs VALUES (?, 1, 'FINISHED', 'active', ?)", (str(number), number))
            database.executemany(
                "INSERT INTO tags VALUES (?, ?, ?)",
                [(str(number), *tag) for tag in {**tags, "spec_id": str(number)}.items()],
            )
            database.executemany(
                "INSERT INTO latest_metrics VALUES (?, ?, ?, 0)",
                [(str(number), *figure) for figure in figures.items()],
            )
    return str(path)


def figures(speed: float) -> dict[str, float]:
    return {"speed/train_tok_s": speed, "speed/eval_tok_s": 2 * speed, "time/setup_s": 3.0}


def test_duration_is_predicted_from_similar_runs_only(tmp_path: Path) -> None:
    spec = spec_of("toy_sentences", "Joint-2")
    work = workload(spec, "cpu")
    model = unplanned_model(spec, 2, IN_FP32).model
    similar = {
        "config": "Joint-2",
        "model": spec.model,
        "task": spec.task_name,
        "device": "cpu",
        "dtype": "float32",
        "threads": "1",
        "hardware": hardware("cpu"),
    }
    others = [
        {"device": "cuda"},
        {"dtype": "bfloat16"},
        {"threads": "2"},
        {"hardware": "another"},
        {"model": "minilm"},
        {"task": "sst2"},
    ]
    dissimilar = [({**similar, **other}, figures(1e9)) for other in others]

    def predicted(runs: list[tuple[dict[str, str], dict[str, float]]]) -> tuple[float, str]:
        found = training_time(
            spec, work, model, "cpu", torch.float32, write_store(tmp_path / str(len(runs)), runs)
        )
        return found.seconds, found.basis

    expected = 3 + work.train_tokens / 100 + work.evaluation_tokens / 200
    assert "work per token" in predicted(dissimilar)[1]
    seconds, basis = predicted([*dissimilar, ({**similar, "config": "B-FP"}, figures(100.0))])
    assert seconds == pytest.approx(expected) and basis.startswith(
        "the speed of 1 finished run of other configs"
    )
    seconds, basis = predicted(
        [*dissimilar, ({**similar, "config": "B-FP"}, figures(1e6)), (similar, figures(100.0))]
    )
    assert seconds == pytest.approx(expected) and basis.startswith("the speed of 1 finished run of Joint-2")
    generated = {**figures(100.0), "speed/infer_tok_s": 1.0, "time/generate_s": 7.0}
    runs = [*dissimilar, (similar, generated), (similar, generated), (similar, generated)]
    assert predicted(runs)[0] == pytest.approx(expected + 7.0)


def test_timing_products_keeps_the_random_state_and_the_thread_count() -> None:
    spec = spec_of("toy_sentences", threads=1, dtype="auto")
    model = unplanned_model(spec, 2, IN_FP32).model
    work = workload(spec, "cpu")
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    duration = training_time(spec, work, model, "cpu", DTYPES[choose_dtype("cpu")], "no store")
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads
    assert duration.seconds > 0 and str(DTYPES[choose_dtype("cpu")]).removeprefix("torch.") in duration.basis
