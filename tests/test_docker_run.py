"""The run script of the images, with an engine that records its arguments.

`make docker-verify` runs the image.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from docker_tools import call, confined, make_engine, recorded_arguments

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docker"


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    return make_engine(tmp_path)


def test_default_container_command(engine: Path) -> None:
    words = recorded_arguments(engine, "run", "Joint-3", "wiki_articles", "--max-steps", "10")
    command = ["run", "--config", "Joint-3", "--task", "wiki_articles", "--max-steps", "10"]
    assert words == ["docker", *confined(engine.parent), "bitrank:cpu", *command]
    assert (engine.parent / "runs").is_dir() and (engine.parent / "results").is_dir()


def test_root_makes_the_default_folders_for_the_user_of_the_image(engine: Path) -> None:
    (engine / "id").write_text("#!/bin/sh\necho 0\n")
    (engine / "chown").write_text(f'#!/bin/sh\necho "$@" >> "{engine.parent}/owned"\n')
    (engine / "chown").chmod(0o755)
    done = call(engine, "run-all")
    owned = (engine.parent / "owned").read_text().splitlines()
    assert owned == ["10001:10001 runs", "10001:10001 results", "10001:10001 .memory"]
    assert "user 10001 of the image cannot make files in" in done.stderr
    recorded = (engine.parent / "arguments").read_text()
    assert "source=bitrank-cache-10001,target=/cache" in recorded and "--user" not in recorded


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["run-all", "--seeds", "0,1"], ["bitrank:cpu", "matrix", "--seeds", "0,1"]),
        (["cpu", "run-all"], ["bitrank:cpu", "matrix"]),
        (["run-all", "--wandb"], ["bitrank:cpu", "matrix", "--wandb"]),
        (["bitrank", "report"], ["bitrank:cpu", "report"]),
        (["shell"], ["--interactive", "--entrypoint", "bash", "bitrank:cpu"]),
        (
            ["shell", "python", "-c", "print(1)"],
            ["--interactive", "--entrypoint", "python", "bitrank:cpu", "-c", "print(1)"],
        ),
        (
            ["ui"],
            ["--publish", "127.0.0.1:5000:5000", "bitrank:cpu", "ui", "--host", "0.0.0.0", "--port", "5000"],
        ),
    ],
)
def test_commands_of_the_run_script(engine: Path, words: list[str], command: list[str]) -> None:
    assert recorded_arguments(engine, *words) == ["docker", *confined(engine.parent), *command]


def test_ui_is_published_on_the_loopback_interface_only(engine: Path) -> None:
    words = recorded_arguments(engine, "ui", "--profile", "smoke", PORT="5055")
    assert words[words.index("--publish") + 1] == "127.0.0.1:5055:5055"
    assert words[-7:] == ["ui", "--host", "0.0.0.0", "--port", "5055", "--profile", "smoke"]


@pytest.mark.parametrize(
    ("words", "environment", "devices", "image"),
    [
        (["gpu"], {}, ["--gpus", "all"], "bitrank:cuda"),
        (["gpu"], {"BITRANK_ENGINE": "podman"}, ["--device", "nvidia.com/gpu=all"], "bitrank:cuda"),
        (
            ["rocm"],
            {},
            ["--device", "/dev/kfd", "--device", "/dev/dri", "--group-add", "video", "--group-add", "render"],
            "bitrank:rocm",
        ),
    ],
)
def test_accelerators_are_passed_to_the_container(
    engine: Path, words: list[str], environment: dict[str, str], devices: list[str], image: str
) -> None:
    got = recorded_arguments(engine, *words, "run-all", **environment)
    assert got[-2:] == [image, "matrix"]
    assert " ".join(devices) in " ".join(got)


def test_tokens_are_passed_by_name_and_not_by_value(engine: Path) -> None:
    given = {
        "WANDB_API_KEY": "k3y",
        "WANDB_MODE": "offline",
        "HF_TOKEN": "hf_s3cret",
        "MLFLOW_TRACKING_USERNAME": "us3cret",
        "MLFLOW_TRACKING_PASSWORD": "ps3cret",
        "MLFLOW_TRACKING_TOKEN": "ts3cret",
    }
    words = recorded_arguments(engine, "run-all", **given)
    assert [words[i + 1] for i, word in enumerate(words) if word == "--env"] == list(given)
    assert not any("k3y" in word or "s3cret" in word for word in words)
    assert "--env" not in recorded_arguments(engine, "run-all")


def test_podman_keeps_the_user_id(engine: Path) -> None:
    (engine / "docker").unlink()
    (engine / "dirname").symlink_to("/usr/bin/dirname")  # PATH must not lead to a real docker
    words = recorded_arguments(
        engine,
        "run-all",
        BITRANK_ENGINE="podman --root /store",
        BITRANK_MEMORY="4g",
        BITRANK_RUN_ARGS="--network none",
    )
    assert words[:4] == ["podman", "--root", "/store", "run"]
    assert "--user 1000:1001 --userns keep-id" in " ".join(words)
    assert "--memory 4g" in " ".join(words) and "--network none bitrank:cpu matrix" in " ".join(words)
    assert "--init" not in words  # needs catatonit, which is not everywhere


def test_build_commands(engine: Path) -> None:
    words = recorded_arguments(engine, "gpu", "build", "--build-arg", "TORCH_BACKEND=cu126")
    assert words[:3] == ["docker", "build", "--build-arg"] and words[3].startswith("COMMIT=")
    assert words[4:] == [
        "--file",
        f"{FOLDER}/cuda.Dockerfile",
        "--tag",
        "bitrank:cuda",
        "--build-arg",
        "TORCH_BACKEND=cu126",
        str(ROOT),
    ]
    assert recorded_arguments(engine, "build", BITRANK_ENGINE="podman")[:4] == [
        "podman",
        "build",
        "--format",
        "docker",
    ]


def test_folders_belong_to_the_calling_user(engine: Path) -> None:
    data = engine.parent / "models"
    data.mkdir()
    words = recorded_arguments(
        engine,
        "run-all",
        BITRANK_STORE=str(engine.parent / "elsewhere"),
        BITRANK_DATA=str(data),
        BITRANK_CACHE_VOLUME="other",
    )
    mounts = [words[i + 1] for i, word in enumerate(words) if word == "--mount"]
    assert mounts == [
        "type=volume,source=other,target=/cache",
        f"type=bind,source={engine.parent},target=/study",
        f"type=bind,source={engine.parent}/elsewhere,target=/study/runs",
        f"type=bind,source={engine.parent}/results,target=/study/results",
        f"type=bind,source={data},target=/data,readonly",
    ]


@pytest.mark.parametrize(
    ("words", "environment", "message"),
    [
        ([], {}, "expected a command: build, run, run-all, ui, shell or bitrank"),
        (["gpu"], {}, "expected a command"),
        (["train"], {}, "there is no command train; expected build"),
        (["run", "B-FP"], {}, "run needs CONFIG and TASK"),
        (["run", "B-FP", "none.csv"], {}, "there is no none.csv"),
        (["ui"], {"PORT": "http"}, "PORT must be a number, got http"),
        (["run-all"], {"BITRANK_DATA": "nowhere"}, "there is no nowhere"),
        (["run-all"], {"BITRANK_STORE": "a,b"}, "cannot mount a path with a comma"),
        (["run-all"], {"BITRANK_ENGINE": "nerdctl"}, "BITRANK_ENGINE names nerdctl, which was not found"),
    ],
)
def test_invalid_arguments_exit_with_2_and_a_remedy(
    engine: Path, words: list[str], environment: dict[str, str], message: str
) -> None:
    done = call(engine, *words, **environment)
    assert done.returncode == 2 and message in done.stderr
    assert not (engine.parent / "arguments").exists()


def test_missing_engine_is_reported(engine: Path) -> None:
    for name in ("docker", "podman"):
        (engine / name).unlink()
    for name in ("bash", "env", "dirname", "basename", "cat", "mkdir", "git"):
        if (found := shutil.which(name)) is not None:
            (engine / name).symlink_to(found)
    done = call(engine, "run-all", PATH=str(engine))
    assert done.returncode == 2 and "neither docker nor podman was found" in done.stderr


def test_help_lists_every_command_and_variable(engine: Path) -> None:
    done = call(engine, "--help")
    assert done.returncode == 0
    for word in (
        "build",
        "run CONFIG TASK",
        "run-all",
        "ui",
        "shell",
        "cpu|gpu|rocm",
        "WANDB_API_KEY",
        "HF_TOKEN",
        "BITRANK_STORE",
    ):
        assert word in done.stdout
