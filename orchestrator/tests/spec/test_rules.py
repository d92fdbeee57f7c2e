"""The arms with rules give the plans of the study, for every architecture."""

from __future__ import annotations

import json

import pytest
from bitrank.errors import UserError
from bitrank.spec.configs import CONFIGS, DEFAULT_CONFIGS, Config, find_config
from bitrank.spec.inits import INITS
from bitrank.spec.make_spec import make_spec
from bitrank.spec.named_rank_rules import RANK_RULES
from bitrank.spec.plan_file import save_plan, valid_plan
from bitrank.spec.profiles import PROFILES
from bitrank.spec.rule_interface import AttachOptions
from bitrank.spec.rules import GivenBits
from bitrank.spec.tiny_models import TINY
from bitrank_adapters import AdapterScale, adapted
from bitrank_quant import WeightMatrix, block_matrices, weight_matrices
from peft import PeftModel


@pytest.fixture(params=["tiny-bert", "tiny-llama", "tiny-gpt2"])
def matrices(request):
    model = TINY[request.param]()
    return [m for m in weight_matrices(model) if m.tied_to is None], block_matrices(model)


def test_baselines_and_joint_1(matrices) -> None:
    quantizable, blocks = matrices
    for name, format_ in (("B-FP", "bf16"), ("B-Ada", "bf16"), ("B-Q4", "nf4-dq"), ("Joint-1", "nf4-dq")):
        bits = CONFIGS[name].precision.assign_formats(quantizable)
        assert {bits[m.name] for m in blocks} == {format_}
        assert {bits[m.name] for m in quantizable if m.layer is None} <= {"bf16"}


def test_joint_2_keeps_embeddings_and_edge_blocks_in_8_bits(matrices) -> None:
    quantizable, blocks = matrices
    bits = CONFIGS["Joint-2"].precision.assign_formats(quantizable)
    assert {bits[m.name] for m in quantizable if m.role == "embedding"} == {"int8"}
    assert {(m.layer, bits[m.name]) for m in blocks} == {(0, "int8"), (1, "nf4-dq"), (2, "int8")}


def test_joint_2_keeps_the_last_block_of_a_shallow_decoder_in_8_bits() -> None:
    depths = {"encoder": 4, "decoder": 2}
    matrices = [
        WeightMatrix(f"model.{stack}.layers.{layer}.fc1", "ffn", layer, (8, 8))
        for stack, depth in depths.items()
        for layer in range(depth)
    ]
    formats = list(CONFIGS["Joint-2"].precision.assign_formats(matrices).values())
    assert formats == ["int8", "nf4-dq", "nf4-dq", "int8", "int8", "int8"]


def test_joint_3_assigns_formats_and_ranks_by_role(matrices) -> None:
    quantizable, blocks = matrices
    config = CONFIGS["Joint-3"]
    bits, ranks = config.precision.assign_formats(quantizable), config.rank.assign_ranks(blocks)
    assert {(m.role, bits[m.name], ranks[m.name]) for m in blocks} == {
        ("attention", "int8", 6),
        ("ffn", "nf4-dq", 10),
    }


def test_ranks_of_the_others(matrices) -> None:
    _, blocks = matrices
    for name, rank in (("B-FP", 8), ("B-Q4", 8), ("B-Ada", 12), ("Joint-1", 12), ("Joint-2", 12)):
        assert set(CONFIGS[name].rank.assign_ranks(blocks).values()) == {rank}


def test_every_free_matrix_has_a_format(matrices) -> None:
    quantizable, _ = matrices
    for config in (CONFIGS[name] for name in DEFAULT_CONFIGS if isinstance(CONFIGS[name], Config)):
        assert set(config.precision.assign_formats(quantizable)) == {m.name for m in quantizable}


@pytest.fixture(params=["tiny-t5", "tiny-bart"])
def two_stacks(request):
    """Matrices of an encoder-decoder that accept a format, and those in its blocks."""
    model = TINY[request.param]()
    return [m for m in weight_matrices(model) if m.tied_to is None], block_matrices(model)


def test_encoder_8_stores_the_encoder_in_8_bits_and_the_decoder_in_4(two_stacks) -> None:
    quantizable, blocks = two_stacks
    bits = CONFIGS["Encoder-8"].precision.assign_formats(quantizable)
    sides = {("encoder" in m.name.split("."), m.role == "cross-attention", bits[m.name]) for m in blocks}
    assert sides == {(True, False, "int8"), (False, False, "nf4-dq"), (False, True, "nf4-dq")}
    assert {bits[m.name] for m in quantizable if m.name not in {b.name for b in blocks}} == {"bf16"}


def test_cross_8_stores_only_cross_attention_in_8_bits(two_stacks) -> None:
    quantizable, blocks = two_stacks
    bits = CONFIGS["Cross-8"].precision.assign_formats(quantizable)
    crossed = [m for m in blocks if m.role == "cross-attention"]
    assert len(crossed) == 2 * 4 and {bits[m.name] for m in crossed} == {"int8"}
    assert {bits[m.name] for m in blocks if m not in crossed} == {"nf4-dq"}


@pytest.mark.parametrize("name", ["Encoder-8", "Cross-8"])
def test_arms_of_encoder_decoders_refuse_other_models(matrices, name: str) -> None:
    assert name not in DEFAULT_CONFIGS
    with pytest.raises(UserError, match="needs an encoder-decoder such as T5 or BART"):
        CONFIGS[name].precision.assign_formats(matrices[0])


def test_arms_of_the_matrix_cover_cross_attention(two_stacks) -> None:
    quantizable, blocks = two_stacks
    for config in (CONFIGS[name] for name in DEFAULT_CONFIGS if isinstance(CONFIGS[name], Config)):
        assert set(config.rank.assign_ranks(blocks)) == {m.name for m in blocks}
        assert set(config.precision.assign_formats(quantizable)) == {m.name for m in quantizable}
    joint_3 = CONFIGS["Joint-3"]
    bits, ranks = joint_3.precision.assign_formats(quantizable), joint_3.rank.assign_ranks(blocks)
    crossed = {(bits[m.name], ranks[m.name]) for m in blocks if m.role == "cross-attention"}
    assert crossed == {("int8", 6)}


def test_a_plan_file_is_a_config(tmp_path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"precision": {"a": "nf4"}, "ranks": {"a": 3}}))
    config = find_config("ignored", str(path))
    assert config.rank.assign_ranks([]) == {"a": 3}
    assert config.as_data()["precision"]["formats"] == {"a": "nf4"}


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"precision": {}}',
        '{"precision": {"a": 4}, "ranks": {}}',
        '{"precision": {}, "ranks": {"a": "8"}}',
    ],
)
def test_a_file_that_is_not_a_plan_is_rejected(tmp_path, content: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(content)
    with pytest.raises(UserError, match="is not a plan: expected JSON like"):
        find_config("x", str(path))
    with pytest.raises(UserError, match="cannot read the plan"):
        find_config("x", str(tmp_path / "none.json"))


def test_placement_rules_give_rank_to_one_part_of_every_block(matrices) -> None:
    _, blocks = matrices
    for name, part in (("attention-only", "attention"), ("ffn-only", "ffn")):
        ranks = RANK_RULES[name].make(8).assign_ranks(blocks)
        assert ranks == {m.name: 8 if m.role == part else 0 for m in blocks}
        assert set(ranks.values()) == {0, 8}


def test_a_part_that_the_model_lacks_is_an_error(matrices) -> None:
    _, blocks = matrices
    attention = [m for m in blocks if m.role == "attention"]
    with pytest.raises(UserError, match="no matrix of this model belongs to ffn; the roles are attention"):
        RANK_RULES["ffn-only"].make(8).assign_ranks(attention)


def test_a_plan_file_names_a_rank_rule(matrices, tmp_path) -> None:
    _, blocks = matrices
    path = tmp_path / "mine.json"
    rule = {"name": "attention-only", "rank": 4}
    path.write_text(json.dumps({"precision": {}, "ranks": {}, "rank_rule": rule}))
    config = find_config("ignored", str(path))
    assert {(m.role, config.rank.assign_ranks(blocks)[m.name]) for m in blocks} == {
        ("attention", 4),
        ("ffn", 0),
    }
    assert find_config("ignored", str(path), {"rank": 6}).rank.rank == 6


NAMED = {
    "uniform": {"rank": 4},
    "attention-only": {"rank": 4},
    "ffn-only": {"rank": 4},
    "train-then-reduce": {"rank": 4, "times": 2},
    "dora-weight": {"rank": 4},
    "dora-dynamic": {"init_r": 6, "target_r": 4},
    "qa-lora": {"rank": 4, "group": 32},
    "scales-only": {},
}


def test_every_named_rule_survives_saving_and_its_data_is_part_of_the_spec(tmp_path) -> None:
    assert NAMED.keys() == RANK_RULES.keys()
    for name, parameters in NAMED.items():
        path, rule = tmp_path / f"plan-{name}.json", {"name": name, **parameters}
        save_plan({"precision": {}, "ranks": {}, "rank_rule": rule}, path)
        assert valid_plan(path)["rank_rule"] == rule
        data = find_config("-", str(path)).as_data()["rank"]
        assert data == {
            "rule": data["rule"],
            **parameters,
            **({"part": data["part"]} if "part" in data else {}),
        }


FORMATS = ("bf16", "nf4-dq", "int4-g32", "int4-g64", "int8", "fp8", "noise16-int4-g32")
FITTING = {"qa-lora": {"int4-g32"}, "scales-only": {"int4-g32", "int4-g64", "int8"}}
TAKING_OUT_OR_ALLOCATING = {"pissa", "corda", "lora-ga", "eva", "gora"}
REFUSED_STARTS = {
    "train-then-reduce": TAKING_OUT_OR_ALLOCATING,
    "dora-dynamic": TAKING_OUT_OR_ALLOCATING,
    "qa-lora": set(INITS) - {"default"},
    "scales-only": set(INITS) - {"default"},
}


@pytest.mark.parametrize("name", NAMED)
def test_rules_of_plans_combine_with_formats_and_starts_or_are_refused(name: str, tmp_path) -> None:
    """The expected refusals are written apart from the code that decides them."""
    path = tmp_path / "mine.json"
    save_plan({"precision": {}, "ranks": {}, "rank_rule": {"name": name, **NAMED[name]}}, path)
    rule = find_config("-", str(path)).rank
    for text in FORMATS:
        if text in FITTING.get(name, FORMATS):
            rule.check_formats({"a": text}, {"a": 4})
        else:
            with pytest.raises(UserError, match=r"give|expected a format such as"):
                rule.check_formats({"a": text}, {"a": 4})
    for init in INITS:
        given = {"plan": str(path), "init": init}
        if init in REFUSED_STARTS.get(name, ()):
            with pytest.raises(UserError, match=f"mine does not combine with init={init}: .* give init="):
                make_spec(PROFILES["smoke"], "", "toy_articles", given)
        else:
            assert make_spec(PROFILES["smoke"], "", "toy_articles", given).init == init


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"name": "qa-lora", "rank": 8}, "group is missing: the rank rule qa-lora takes rank, group"),
        (
            {"name": "dora-weight", "rank": 8, "group": 32},
            "unknown key of rank_rule 'group'; dora-weight takes",
        ),
        ({"name": "scales-only", "rank": 8}, "scales-only takes no parameters"),
        ({"name": "dora-dynamic", "init_r": 4, "target_r": 8}, "1 ≤ target_r < init_r"),
        ({"name": "qa-lora", "rank": 8, "group": True}, "group must be a whole number, got True"),
        ({"name": "DoRA", "rank": 8}, "unknown name 'DoRA'"),
        ({"rank": 8}, "name is missing"),
        ({"name": ["uniform"], "rank": 8}, "unknown name"),
        ({"name": "uniform", "rank": 2**17}, "rank must be 65536 or less"),
    ],
)
def test_rank_rules_with_other_parameters_are_refused(tmp_path, rule, message: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"precision": {}, "ranks": {}, "rank_rule": rule}))
    for read in (valid_plan, lambda place: find_config("-", str(place))):
        with pytest.raises(UserError, match=message):
            read(path)


@pytest.mark.parametrize("name", ["tiny-bert", "tiny-llama", "tiny-gpt2", "tiny-t5", "tiny-bart"])
def test_placement_trains_and_loads_in_stock_peft(tmp_path, name: str) -> None:
    model = TINY[name]()
    blocks = block_matrices(model)
    rule = RANK_RULES["ffn-only"].make(4)
    heads = ["classifier"] if name == "tiny-bert" else []
    ranks = rule.assign_ranks(blocks)
    _, hook = rule.attach(model, ranks, AttachOptions(AdapterScale(), heads, seed=0, total_steps=1))
    assert hook.ranks() == {m.name: 4 for m in blocks if m.role == "ffn"}
    hook.save(tmp_path)
    stock = PeftModel.from_pretrained(TINY[name](), tmp_path)
    assert {matrix for matrix, _ in adapted(stock)} == {m.name for m in blocks if m.role == "ffn"}


def test_rank_rule_trains_high_and_saves_the_numbers_of_its_rank(tmp_path) -> None:
    model, rule = TINY["tiny-llama"](), RANK_RULES["train-then-reduce"].make(4)
    ranks = rule.assign_ranks(block_matrices(model))
    assert set(ranks.values()) == {16}
    _, hook = rule.attach(model, ranks, AttachOptions(AdapterScale(), [], seed=0, total_steps=3))
    for layer in model.modules():  # B starts at zero, and a product of zero has no directions
        if hasattr(layer, "lora_B"):
            layer.lora_B["default"].weight.data.normal_(0, 0.1)
    hook.after_step(3)
    sizes = {m.name: sum(m.shape) for m in block_matrices(TINY["tiny-llama"]())}
    used = sum(hook.ranks()[name] * size for name, size in sizes.items())
    assert 4 * sum(sizes.values()) - max(sizes.values()) < used <= 4 * sum(sizes.values())
    hook.save(tmp_path)
    stock = PeftModel.from_pretrained(TINY["tiny-llama"](), tmp_path)
    assert {name for name, _ in adapted(stock)} == {name for name, rank in hook.ranks().items() if rank}


def test_plan_for_a_model_of_fewer_blocks_is_refused() -> None:
    deep = [WeightMatrix(f"model.layers.{layer}.fc1", "ffn", layer, (8, 8)) for layer in range(3)]
    shapes = {matrix.name: matrix.shape for matrix in deep[:2]}
    formats = dict.fromkeys(shapes, "nf4")
    with pytest.raises(UserError, match=r"fewer blocks: model\.layers\.2\.fc1 is not in it"):
        GivenBits(formats, shapes).assign_formats(deep)
    assert GivenBits(formats, shapes).assign_formats(deep[:2]) == formats
    assert GivenBits(formats).assign_formats(deep)["model.layers.2.fc1"] == "bf16"
