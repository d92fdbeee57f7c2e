"""The id of a run depends on the content of its inputs and not on their paths."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from bitrank.errors import UserError
from bitrank.spec import digests, inputs
from bitrank.spec.inputs import check_inputs, check_plan, data_digest, resolve_hub_digests, source_of
from bitrank.spec.make_spec import make_spec
from bitrank.spec.matrix import matrix
from bitrank.spec.profiles import PROFILES
from bitrank.spec.run_spec import RunSpec, read_spec, write_spec
from bitrank.tracking.mlflow_tracker import Tracker
from bitrank.tracking.run_state import state_of
from bitrank.tracking.store import open_store
from bitrank_data import DataError

SMOKE, PAPER = PROFILES["smoke"], PROFILES["paper"]
PLAN = {"precision": {"a": "nf4"}, "ranks": {"a": 8}}


def write_reviews(path: Path, word: str = "good") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [f"the film {number} is {word if number % 2 else 'bad'},{number % 2}" for number in range(20)]
    path.write_text("\n".join(["text,label", *rows]) + "\n")
    return path


def write_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "vocab.txt", "README.md"):
        (folder / name).write_text(f"{name} 1")
    return folder


def spec_of(task: Path | str, **given: object) -> RunSpec:
    return make_spec(SMOKE, "B-FP", str(task), given)


def test_the_same_data_at_another_path_is_the_same_run(tmp_path: Path) -> None:
    first, second = write_reviews(tmp_path / "a" / "reviews.csv"), write_reviews(tmp_path / "b" / "copy.csv")
    assert spec_of(first).spec_id == spec_of(second).spec_id
    assert spec_of(first).task == str(first) and spec_of(second).task_name == "copy"


def test_other_data_at_the_same_path_is_another_run_even_with_the_same_size_and_times(tmp_path: Path) -> None:
    path = write_reviews(tmp_path / "reviews.csv")
    before, old = path.stat(), spec_of(path)
    write_reviews(path, "fine")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert spec_of(path).spec_id != old.spec_id
    write_reviews(path)
    assert spec_of(path).spec_id == old.spec_id


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "vocab.txt"])
def test_every_file_that_a_model_loads_is_part_of_the_id(name: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    old = spec_of("toy_sentences", model=str(folder))
    (folder / name).write_text(f"{name} 2")
    assert spec_of("toy_sentences", model=str(folder)).spec_id != old.spec_id


def test_moved_models_and_other_notes_give_the_same_id(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    old = spec_of("toy_sentences", model=str(folder))
    (folder / "README.md").write_text("read me again")
    moved = shutil.move(folder, tmp_path / "elsewhere")
    assert spec_of("toy_sentences", model=str(moved)).spec_id == old.spec_id


@pytest.mark.parametrize("name", [".m", "model"])
def test_models_in_hidden_folders_are_told_apart_by_content(tmp_path: Path, name: str) -> None:
    folder = write_model(tmp_path / name)
    old = spec_of("toy_sentences", model=str(folder))
    (folder / "model.safetensors").write_text("other weights")
    assert spec_of("toy_sentences", model=str(folder)).spec_id != old.spec_id


def test_files_that_a_task_folder_does_not_read_are_not_part_of_the_id(tmp_path: Path) -> None:
    """Such as the store of the run itself, if it is in the folder."""
    for split in ("train", "test"):
        write_reviews(tmp_path / "data" / f"{split}.csv")
    old = spec_of(tmp_path / "data")
    (tmp_path / "data/runs").mkdir()
    (tmp_path / "data/runs/train.csv").write_text("a result")
    (tmp_path / "data/README.md").write_text("read me")
    check_inputs(old)
    assert spec_of(tmp_path / "data").spec_id == old.spec_id
    write_reviews(tmp_path / "data/test.csv", "fine")
    assert spec_of(tmp_path / "data").spec_id != old.spec_id


def test_a_local_copy_of_a_hub_task_is_identified_by_content(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_reviews(tmp_path / name / "train.csv", "fine" if name == "c" else "good")
    ids = [
        make_spec(SMOKE, "B-FP", "sst2", {"data": str(tmp_path / name)}).spec_id for name in ("a", "b", "c")
    ]
    assert ids[0] == ids[1] != ids[2]


def test_a_plan_is_identified_by_content_and_name(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.json").write_text(json.dumps(PLAN))
    first, second = (spec_of("toy_sentences", plan=str(tmp_path / name / "mine.json")) for name in ("a", "b"))
    assert first.spec_id == second.spec_id
    (tmp_path / "a" / "mine.json").write_text(json.dumps({**PLAN, "ranks": {"a": 4}}))
    assert spec_of("toy_sentences", plan=str(tmp_path / "a" / "mine.json")).spec_id != first.spec_id
    with pytest.raises(UserError, match=r"mine\.json changed after this run was requested"):
        check_plan(first)
    check_plan(second)


def test_relative_paths_are_resolved(place: Path) -> None:
    write_reviews(place / "reviews.csv")
    write_model(place / "model")
    spec = spec_of("./reviews.csv", model="model")
    assert (spec.task, spec.model) == (str(place / "reviews.csv"), str(place / "model"))
    assert (spec.task_name, spec.run_name) == ("reviews", "B-FP reviews s0")


def test_embedded_names_come_before_folders_of_the_same_name(place: Path) -> None:
    for name in ("minilm", "tiny-bert", "wikipedia"):
        write_model(place / name)
    embedded = [spec_of("toy_sentences", model=name).model for name in ("minilm", "tiny-bert")]
    assert embedded == ["minilm", "tiny-bert"]
    own = spec_of("toy_sentences", model="wikipedia")
    assert own.model == str(place / "wikipedia") and str(own.model_digest).startswith("content:")
    with pytest.raises(DataError, match="unknown task 'wikipedia'"):
        spec_of("wikipedia")


def test_embedded_tasks_and_models_are_known_by_their_pins_and_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITRANK_CACHE", str(tmp_path / "cache"))
    spec = make_spec(PROFILES["laptop"], "B-FP", "movie_sentences")
    assert spec.data_digest == "pinned:5dce530a78315563f8b3cd01033bbdd3bf4985fabf359ca68d4167728081c803"
    assert spec.model_digest == "pinned:b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
    assert not (tmp_path / "cache").exists()


def test_inputs_are_accepted_as_long_as_their_content_is_the_same(tmp_path: Path) -> None:
    path, folder = write_reviews(tmp_path / "reviews.csv"), write_model(tmp_path / "model")
    spec = spec_of(path, model=str(folder))
    path.touch()
    (folder / "README.md").unlink()
    check_inputs(spec)
    write_reviews(path, "fine")
    with pytest.raises(
        UserError,
        match=r"reviews\.csv changed .* expected content:\w{12}, got content:\w{12}",
    ):
        check_inputs(spec)
    path.unlink()
    with pytest.raises(UserError, match=r"the data of .* changed .* it no longer exists"):
        check_inputs(spec)
    write_reviews(path)
    (folder / "model.safetensors").write_text("other weights")
    with pytest.raises(UserError, match=r"the model .* changed after this run was requested"):
        check_inputs(spec)


def test_an_interrupted_run_is_not_continued_on_edited_data(place: Path) -> None:
    path = write_reviews(place / "reviews.csv")
    cut = spec_of(path)
    tracker = Tracker(open_store("runs"), "runs", "smoke")
    tracker.client.set_terminated(tracker.open(cut, None).run_id, "KILLED")
    assert state_of(cut, tracker.runs()).name == "interrupted"
    write_reviews(path, "fine")
    assert state_of(spec_of(path), tracker.runs()).name == "new"
    write_reviews(path)
    assert state_of(spec_of(path), tracker.runs()).name == "interrupted"


def test_an_old_spec_without_digests_keeps_its_id_and_is_not_checked(tmp_path: Path) -> None:
    spec = replace(spec_of("toy_sentences"), data_digest=None, model_digest=None)
    write_spec(spec, tmp_path / "spec.json")
    old = json.loads((tmp_path / "spec.json").read_text())
    for field in (
        "data_digest",
        "model_digest",
        "text_column",
        "label_column",
        "test_file",
        "adapter_dropout",
        "tested",
    ):
        del old[field]  # of later versions
    (tmp_path / "spec.json").write_text(json.dumps(old))
    read = read_spec(tmp_path / "spec.json")
    assert read.spec_id == hashlib.sha256(json.dumps(old, sort_keys=True).encode()).hexdigest()[:12]
    check_inputs(replace(read, task=str(tmp_path / "gone.csv"), model="./gone"))


def test_a_spec_keeps_its_digests_in_its_file(tmp_path: Path) -> None:
    spec = spec_of(write_reviews(tmp_path / "reviews.csv"))
    write_spec(spec, tmp_path / "spec.json")
    assert asdict(read_spec(tmp_path / "spec.json")) == asdict(spec)


def test_the_matrix_has_no_duplicates(tmp_path: Path) -> None:
    first, second = write_reviews(tmp_path / "a.csv"), write_reviews(tmp_path / "b.csv")
    assert len(matrix(SMOKE, ["B-FP"], [str(first), str(second)], [0, 1, 0], {})) == 2


def test_the_matrix_refuses_two_files_of_one_name(tmp_path: Path) -> None:
    first, second = (write_reviews(tmp_path / name / "reviews.csv") for name in ("a", "b"))
    with pytest.raises(UserError, match=r"a/reviews\.csv and .*b/reviews\.csv are both called reviews"):
        matrix(SMOKE, ["B-FP"], [str(first), str(second)], [0], {})
    assert len(matrix(SMOKE, ["B-FP", "B-Q4"], [str(first), str(first)], [0], {})) == 2


def test_unchanged_files_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "_TICK", -1.0)  # as if the files were old
    folder = write_model(tmp_path / "model")
    first = digests.content_digest(folder)
    monkeypatch.setattr(digests, "_file_digest", None)
    assert digests.content_digest(folder) == first
    (folder / "vocab.txt").write_text("other")
    with pytest.raises(TypeError):
        digests.content_digest(folder)


def test_the_digest_of_a_recently_written_file_is_not_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second write within one tick of the clock has the same times."""
    path = write_reviews(tmp_path / "reviews.csv")
    digests.content_digest(path)
    monkeypatch.setattr(digests, "_file_digest", None)
    with pytest.raises(TypeError):
        digests.content_digest(path)


def test_digests_are_correct_without_a_writable_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_reviews(tmp_path / "reviews.csv")
    (tmp_path / "file").touch()
    monkeypatch.setenv("BITRANK_CACHE", str(tmp_path / "file" / "cache"))
    assert digests.content_digest(path) == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def cache_copy(hub_cache: Path, folder: str, commit: str) -> None:
    (hub_cache / folder / "refs").mkdir(parents=True, exist_ok=True)
    (hub_cache / folder / "snapshots" / commit).mkdir(parents=True)
    (hub_cache / folder / "refs" / "main").write_text(commit)


def test_hub_models_and_data_are_known_by_the_commit_of_the_cached_copy(hub_cache: Path) -> None:
    unknown = make_spec(PAPER, "B-FP", "sst2")
    assert (unknown.data_digest, unknown.model_digest) == (None, None)
    cache_copy(hub_cache, "models--bert-base-uncased", "86b5")
    cache_copy(hub_cache, "datasets--stanfordnlp--sst2", "8d51")
    known = make_spec(PAPER, "B-FP", "sst2")
    assert (known.data_digest, known.model_digest) == ("hub:8d51", "hub:86b5")
    check_inputs(unknown)
    cache_copy(hub_cache, "models--bert-base-uncased", "ffff")
    assert len({unknown.spec_id, known.spec_id, make_spec(PAPER, "B-FP", "sst2").spec_id}) == 3
    cache_copy(hub_cache, "datasets--stanfordnlp--sst2", "eeee")
    check_inputs(known)  # both are loaded by the commit in the spec
    assert known.model_source == "bert-base-uncased@86b5"
    assert source_of(known).fingerprint().endswith("@8d51")
    assert source_of(make_spec(PAPER, "B-FP", "sst2")).fingerprint().endswith("@eeee")


def test_commits_that_are_not_cached_are_requested_from_the_hub(
    hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hub:
        def model_info(self, name: str, timeout: float) -> Hub:
            self.sha = f"commit of {name}"
            return self

        def dataset_info(self, name: str, timeout: float) -> Hub:
            raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    inputs._hub_commit.cache_clear()
    spec = resolve_hub_digests(make_spec(PAPER, "B-FP", "sst2"))
    inputs._hub_commit.cache_clear()
    assert (spec.data_digest, spec.model_digest) == (None, "hub:commit of bert-base-uncased")
    check_inputs(spec)  # nothing is cached yet, so nothing differs
    assert resolve_hub_digests(spec_of("toy_sentences")) == spec_of("toy_sentences")


def test_a_missing_file_has_no_digest(tmp_path: Path) -> None:
    assert data_digest(str(tmp_path / "none.csv")) is None


def test_a_file_that_was_written_while_it_was_read_stops_the_run(tmp_path: Path) -> None:
    import torch
    from bitrank.models.load import open_model
    from bitrank.run.plans import make_plans, store_base
    from bitrank.spec.configs import find_config
    from bitrank_adapters import ResidualStart

    path = write_reviews(tmp_path / "reviews.csv")
    spec = spec_of(path)
    loaded = open_model(spec, 2, "cpu", torch.float32)
    plans = make_plans(find_config("B-FP"), loaded)
    write_reviews(path, "fine")
    with pytest.raises(UserError, match=r"reviews\.csv changed after this run was requested"):
        store_base(spec, loaded, plans.formats, ResidualStart({}), "cpu", torch.float32)
