"""Exports have the ends, the beginning, the template and the sampling settings that a run's texts need."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bpe_models
import pytest
from bitrank.export.finished_run import find_run
from bitrank.export.gguf.prepare import MODEL_FILE
from bitrank.export.gguf.tokenizer import vocabulary_of, with_texts
from bitrank.export.prepared import Options, write_export
from bitrank.export.rebuild import rebuild
from bitrank.export.registry import EXPORTS
from bitrank.export.run_texts import RunTexts, run_texts
from bitrank.models.load import load_tokenizer
from bitrank.run.data import load_data
from bitrank.spec.make_spec import make_spec
from bitrank.spec.profiles import find_profile
from finished_runs import execute_in
from gguf import GGUFReader
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

BOS, EOS, MARKER = "<|endoftext|>", 0, 1
SAMPLING = {"do_sample": True, "temperature": 0.7, "eos_token_id": [2, 0]}
CHATML = "{% for m in messages %}{{ m['content'] + '<|im_end|>' }}{% endfor %}"
FOLDERS = ("merged", "quantized", "mlx", "compressed-tensors", "peft")


def base(folder: Path, template: str | None = CHATML, adds_bos: bool = False) -> Path:
    """A Llama whose tokenizer ends texts with ``<|endoftext|>``, and answers by a token of the template."""
    bpe_models.write(folder, "llama", eos_token_id=EOS, max_position_embeddings=512)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token, tokenizer.chat_template = BOS, template
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    if adds_bos:
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, 0)]
        )
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps(SAMPLING))
    return folder


def chats(folder: Path) -> Path:
    rows = []
    for number in range(40):
        turns = [("user", f"film {number}"), ("assistant", f"lovely {number}")]
        rows.append({"messages": [{"role": role, "content": content} for role, content in turns]})
    path = folder / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def spec_of(model: Path, task: str, **given: Any) -> Any:
    options = {"model": str(model), "device": "cpu", "dtype": "fp32", "max_length": 320, **given}
    return make_spec(find_profile("smoke"), "B-FP", task, options)


def texts_of(model: Path, task: str) -> tuple[RunTexts, Any]:
    """The texts of a run of ``model``, which need no trained weights, and its tokenizer."""
    spec, tokenizer = spec_of(model, task), load_tokenizer(str(model))
    inner = AutoModelForCausalLM.from_pretrained(model)
    found: Any = SimpleNamespace(spec=spec, data=load_data(spec), inner=inner, tokenizer=tokenizer)
    return run_texts(found), tokenizer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chats")
    names = [f"model.layers.{layer}.mlp.{part}_proj" for layer in range(2) for part in ("up", "gate")]
    plan = folder / "plan.json"
    plan.write_text(json.dumps({"precision": dict.fromkeys(names, "int4-g32"), "ranks": {names[0]: 2}}))
    options = {"model": str(base(folder / "model")), "device": "cpu", "dtype": "fp32", "plan": str(plan)}
    spec = make_spec(find_profile("smoke"), "-", str(chats(folder)), {**options, "steps": 1})
    return execute_in(folder / "run", spec)


@pytest.mark.parametrize("target", FOLDERS)
def test_folders_keep_the_sampling_settings_and_end_at_the_marker_of_training(
    run: Path, tmp_path: Path, target: str
) -> None:
    prepared = EXPORTS[target].prepare(rebuild(find_run(run)), Options(target, False, "rtn"))
    write_export(prepared, tmp_path / "out")
    written = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert written == {**SAMPLING, "eos_token_id": [2, 0, MARKER], "pad_token_id": 0}
    if target == "merged":
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").generation_config
        assert (loaded.eos_token_id, loaded.temperature, loaded.do_sample) == ([2, 0, MARKER], 0.7, True)


def test_a_gguf_file_names_the_end_of_a_turn(run: Path, tmp_path: Path) -> None:
    prepared = EXPORTS["gguf"].prepare(rebuild(find_run(run)), Options("gguf", False, "rtn"))
    write_export(prepared, tmp_path / "out")
    fields = GGUFReader(tmp_path / "out" / MODEL_FILE).fields
    ends = [fields[f"tokenizer.ggml.{name}_token_id"].contents() for name in ("eos", "eot")]
    assert ends == [EOS, MARKER]


def test_a_base_without_a_file_ends_at_its_own_token_and_the_marker(tmp_path: Path) -> None:
    model = base(tmp_path / "model")
    (model / "generation_config.json").unlink()
    generation = texts_of(model, str(chats(tmp_path)))[0].generation
    assert generation is not None and generation["eos_token_id"] == [EOS, MARKER]


def test_articles_have_the_ends_of_the_base(tmp_path: Path) -> None:
    texts, _ = texts_of(base(tmp_path / "model"), "toy_articles")
    assert (texts.marker, texts.template) == (None, None)
    assert texts.generation == SAMPLING


@pytest.mark.parametrize(
    ("template", "adds_bos", "expected"),
    [
        (CHATML, True, False),  # the tokenizer adds BOS, and no sequence of training had it
        (f"{{{{ bos_token }}}}{CHATML}", True, True),  # llama.cpp removes the template's, and adds its own
        (f"{{{{ bos_token }}}}{CHATML}", False, False),  # the template's stays
        (None, True, True),
        (None, False, False),
    ],
)
def test_gguf_adds_bos_where_the_tokenizer_does_and_training_had_it(
    tmp_path: Path, template: str | None, adds_bos: bool, expected: bool
) -> None:
    texts, tokenizer = texts_of(base(tmp_path / "model", template, adds_bos), str(chats(tmp_path)))
    vocabulary = with_texts(vocabulary_of(tokenizer, bpe_models.ROWS), texts)
    assert vocabulary.adds == {"bos": expected, "eos": False}
    if template is None:
        # Training had BOS once, and so has the text of the template.
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": "a"}], chat_template=vocabulary.chat_template, tokenize=False
        )
        assert text.count(BOS) == expected and "### Instruction:\na" in text


def test_an_export_has_the_wording_of_a_run_without_a_chat_template(tmp_path: Path) -> None:
    model = base(tmp_path / "model", None, adds_bos=True)
    texts, tokenizer = texts_of(model, str(chats(tmp_path)))
    texts.write(tokenizer, tmp_path / "out")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "out")
    split = load_data(spec_of(model, str(chats(tmp_path)))).validation
    number = loaded.decode(split.sequence(0)).split("film ")[1].split("\n")[0]
    turns = [("user", f"film {number}"), ("assistant", f"lovely {number}")]
    messages = [{"role": role, "content": content} for role, content in turns]
    encoded = loaded.apply_chat_template(messages, return_dict=True)
    assert encoded["input_ids"] == split.sequence(0).tolist()
    assert len(texts.notes) == 1
