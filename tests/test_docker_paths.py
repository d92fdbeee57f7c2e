"""Files and folders of the host that the arguments of docker/run.sh name, and what is written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from docker_tools import call, confined, make_engine, recorded_arguments

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    return make_engine(tmp_path)


@pytest.mark.parametrize(
    "words",
    [
        ["notes", "rank"],
        ["paper"],
        ["report", "--out", "page"],
        ["plan", "--save", "plan.json"],
        ["export", "0123abcd", "--out=merged"],
        ["list", "--store", "/study/runs"],
        ["list", "--store", "http://mlflow:5000"],
        ["sql", "SELECT a = 'b',\tc"],
        [],
    ],
)
def test_arguments_below_the_working_folder_are_passed_as_they_are(engine: Path, words: list[str]) -> None:
    recorded = recorded_arguments(engine, "bitrank", *words)
    assert recorded == ["docker", *confined(engine.parent), "bitrank:cpu", *words]


def test_default_folders_lie_below_the_folder_of_the_host() -> None:
    """The image's /study is a volume that ends with the container; the working folder is bound there."""
    text = (ROOT / "docs" / "reference" / "cli.md").read_text()
    defaults = set(re.findall(r"\| `--(?:out|notes|results|store) \w+` \|.*\(default: ([^);]+)\)", text))
    assert defaults == {"runs", "results", ".memory", "results/report", "results/evidence", "paper/generated"}


@pytest.fixture
def work(engine: Path) -> Path:
    """A working folder beside other files of the host."""
    for folder in ("work/sub", "other/folder"):
        (engine.parent / folder).mkdir(parents=True)
    for name in ("X.CSV", "x.tsv", "x.json", "x.jsonl", "x.parquet", "x.arrow", "plan.json"):
        (engine.parent / "other" / name).touch()
    (engine.parent / "work/sub/x.tsv").touch()
    (engine.parent / "work/link.tsv").symlink_to("../other/x.tsv")
    return engine.parent / "work"


def after_mounts(engine: Path, work: Path, *words: str) -> list[str]:
    """The recorded arguments behind those of every run."""
    done = call(engine, *words, folder=work)
    assert done.returncode == 0, done.stderr
    recorded = (engine.parent / "arguments").read_text().splitlines()
    start = ["docker", *confined(work)]
    assert recorded[: len(start)] == start
    return recorded[len(start) :]


@pytest.mark.parametrize("name", ["X.CSV", "x.tsv", "x.json", "x.jsonl", "x.parquet", "x.arrow", "folder"])
def test_tasks_outside_the_working_folder_are_bound_read_only(engine: Path, work: Path, name: str) -> None:
    path = f"{work.parent}/other/{name}"
    bound = ["--mount", f"type=bind,source={path},target=/input{path},readonly", "bitrank:cpu"]
    for given in (path, f"../other/{name}"):
        words = ["run", "--config", "B-FP", "--task", f"/input{path}"]
        assert after_mounts(engine, work, "run", "B-FP", given) == [*bound, *words]


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        (["--test-file", "@/x.tsv"], ["--test-file", "/input@/x.tsv"]),
        (["--test-file=@/x.tsv"], ["--test-file=/input@/x.tsv"]),
        (["--plan", "@/x.tsv"], ["--plan", "/input@/x.tsv"]),
        (["--data", "@/folder"], ["--data", "/input@/folder"]),
        (["--model", "@/folder"], ["--model", "/input@/folder"]),
        (["--set", "model=@/folder"], ["--set", "model=/input@/folder"]),
        (["--tasks", "toy_sentences,@/x.tsv,"], ["--tasks", "toy_sentences,/input@/x.tsv,"]),
        (["--task", "link.tsv"], ["--task", "/input@/x.tsv"]),
    ],
)
def test_files_that_arguments_name_are_bound(
    engine: Path, work: Path, given: list[str], seen: list[str]
) -> None:
    other = f"{work.parent}/other"
    words = [word.replace("@", other) for word in given]
    path = other + ("/folder" if "folder" in " ".join(given) else "/x.tsv")
    bound = ["--mount", f"type=bind,source={path},target=/input{path},readonly", "bitrank:cpu"]
    expected = [*bound, "matrix", *(word.replace("@", other) for word in seen)]
    assert after_mounts(engine, work, "run-all", *words) == expected
    assert after_mounts(engine, work, "bitrank", "matrix", *words, *words)[:3] == bound  # once


def test_absolute_paths_of_the_working_folder_are_those_of_the_container(engine: Path, work: Path) -> None:
    words = ["--plan", f"{work}/sub/x.tsv", "--save", f"{work}/new/p.json", "--task", "sub/x.tsv"]
    seen = ["--plan", "/study/sub/x.tsv", "--save", "/study/new/p.json", "--task", "sub/x.tsv"]
    assert after_mounts(engine, work, "bitrank", "plan", *words) == ["bitrank:cpu", "plan", *seen]


@pytest.mark.parametrize("option", ["--save", "--out", "--notes", "--results", "--store"])
def test_results_outside_go_into_folders_that_exist_and_are_else_refused(
    engine: Path, work: Path, option: str
) -> None:
    folder = f"{work.parent}/other/folder"
    bound = ["--mount", f"type=bind,source={folder},target=/output{folder}", "bitrank:cpu"]
    words = after_mounts(engine, work, "bitrank", "plan", option, "../other/folder")
    assert words == [*bound, "plan", option, f"/output{folder}"]
    (engine.parent / "arguments").unlink()
    for value in ("../new", f"{folder}/new", "/tmp/bitrank-new/deep"):
        for given in ([option, value], [f"{option}={value}"]):
            done = call(engine, "bitrank", "plan", *given, folder=work)
            assert done.returncode == 2 and f"{value} lies outside the current folder" in done.stderr
    assert not (engine.parent / "arguments").exists()


def test_a_path_through_a_link_is_that_of_its_target(engine: Path, work: Path) -> None:
    """The host's name of the current folder, which an absolute link has, does not exist in the container."""
    (work / "inner").symlink_to(work / "sub")
    (work / "outer").symlink_to(work.parent / "other")
    other = f"{work.parent}/other"
    assert after_mounts(engine, work, "run", "B-FP", "inner/x.tsv") == [
        *("bitrank:cpu", "run", "--config", "B-FP", "--task", "/study/sub/x.tsv")
    ]
    assert after_mounts(engine, work, "bitrank", "plan", "--save", "inner/new/p.json") == [
        *("bitrank:cpu", "plan", "--save", "/study/sub/new/p.json")
    ]
    assert after_mounts(engine, work, "run", "B-FP", "outer/x.tsv") == [
        *("--mount", f"type=bind,source={other}/x.tsv,target=/input{other}/x.tsv,readonly"),
        *("bitrank:cpu", "run", "--config", "B-FP", "--task", f"/input{other}/x.tsv"),
    ]


def test_the_name_of_a_command_is_no_path(engine: Path, work: Path) -> None:
    (work / "paper").symlink_to("../other")
    assert after_mounts(engine, work, "bitrank", "paper") == ["bitrank:cpu", "paper"]


def hub_snapshot(cache: Path) -> Path:
    """A model as a hub's cache has it: its files are links to ``blobs``."""
    snapshot = cache / "models--x" / "snapshots" / "abc"
    for folder in (snapshot, cache / "models--x" / "blobs"):
        folder.mkdir(parents=True)
    (cache / "models--x/blobs/123").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/123")
    (snapshot / "own.txt").touch()
    (snapshot / "again.txt").symlink_to("own.txt")
    (snapshot / "gone.txt").symlink_to("../../blobs/456")
    return snapshot


def test_links_of_a_folder_outside_lead_to_their_targets(engine: Path, work: Path) -> None:
    cache = work.parent / "hub"
    snapshot = hub_snapshot(cache)
    blob = f"{cache}/models--x/blobs/123"
    assert after_mounts(engine, work, "bitrank", "plan", "--model", str(snapshot)) == [
        *("--mount", f"type=bind,source={snapshot},target=/input{snapshot},readonly"),
        *("--mount", f"type=bind,source={blob},target=/input{blob},readonly"),
        *("bitrank:cpu", "plan", "--model", f"/input{snapshot}"),
    ]


def test_links_that_stay_in_the_working_folder_need_no_bind(engine: Path, work: Path) -> None:
    snapshot = hub_snapshot(work / "hub").relative_to(work)
    words = ["plan", "--model", str(snapshot)]
    assert after_mounts(engine, work, "bitrank", *words) == ["bitrank:cpu", *words]


@pytest.mark.parametrize("absolute", [False, True])
def test_links_of_a_folder_inside_that_lead_out_are_bound(engine: Path, work: Path, absolute: bool) -> None:
    """A relative link leads to the same place below /input, and an absolute one to the host's name."""
    other = f"{work.parent}/other"
    (work / "sub/y.tsv").symlink_to(f"{other}/x.tsv" if absolute else "../../other/x.tsv")
    assert after_mounts(engine, work, "run", "B-FP", "sub") == [
        *("--mount", f"type=bind,source={work}/sub,target=/input{work}/sub,readonly"),
        *(
            "--mount",
            f"type=bind,source={other}/x.tsv,target={'' if absolute else '/input'}{other}/x.tsv,readonly",
        ),
        *("bitrank:cpu", "run", "--config", "B-FP", "--task", f"/input{work}/sub"),
    ]
