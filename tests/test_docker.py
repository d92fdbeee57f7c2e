"""Dockerfiles, run script and Compose file, checked without an engine.

`make docker-verify` builds and runs the CPU image.
"""

from __future__ import annotations

import http.server
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from dockerfile_parse import DockerfileParser

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docker"
HARDWARE = ("cpu", "cuda", "rocm")
RUN = FOLDER / "run.sh"


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=HARDWARE)
def parsed(request: pytest.FixtureRequest, tmp_path: Path) -> DockerfileParser:
    shutil.copy(FOLDER / f"{request.param}.Dockerfile", tmp_path / "Dockerfile")
    parser = DockerfileParser(str(tmp_path), build_args={})
    parser.hardware = request.param
    return parser


def stages(parser: DockerfileParser) -> list[list[dict]]:
    """The instructions of each stage, without those before the first."""
    found: list[list[dict]] = []
    for entry in parser.structure:
        if entry["instruction"] == "FROM":
            found.append([])
        if found and entry["instruction"] != "COMMENT":
            found[-1].append(entry)
    return found


def values(stage: list[dict], instruction: str) -> list[str]:
    return [entry["value"] for entry in stage if entry["instruction"] == instruction]


# ---- the Dockerfiles


def test_base_image_is_the_first_build_argument(parsed: DockerfileParser) -> None:
    instructions = [entry for entry in parsed.structure if entry["instruction"] != "COMMENT"]
    assert instructions[0]["content"].strip() == "ARG BASE=python:3.11-slim-bookworm"
    assert [stage[0]["value"] for stage in stages(parsed)] == ["${BASE} AS build", "${BASE}"]


def test_checkout_is_installed_with_pinned_versions(parsed: DockerfileParser) -> None:
    build, _ = stages(parsed)
    runs = " ".join(values(build, "RUN"))
    assert {"packages packages", "orchestrator orchestrator"} <= set(values(build, "COPY"))
    assert "./packages/*/ ./orchestrator" in runs
    assert f"-c constraints.txt -c constraints/torch-{parsed.hardware}.txt" in runs
    assert f"TORCH={parsed.hardware} bash tools/install-torch.sh" in runs
    assert (ROOT / "constraints" / f"torch-{parsed.hardware}.txt").is_file()
    for install in re.findall(r"pip install[^&]*", runs):
        assert "-c constraints.txt" in install


def test_build_stops_at_another_torch_version(parsed: DockerfileParser) -> None:
    expected = {
        "cpu": "v.cuda is None and v.hip is None",
        "cuda": "v.cuda is not None",
        "rocm": "v.hip is not None",
    }
    assert f"assert {expected[parsed.hardware]}" in " ".join(values(stages(parsed)[0], "RUN"))


def test_final_stage_is_unprivileged_without_build_tools(parsed: DockerfileParser) -> None:
    final = stages(parsed)[1]
    assert values(final, "USER") == ["10001:10001"]
    order = [entry["instruction"] for entry in final]
    assert max(i for i, name in enumerate(order) if name in {"RUN", "COPY"}) < order.index("USER")
    assert not {"pip", "gcc", "git"} & set(re.findall(r"[\w-]+", " ".join(values(final, "RUN"))))
    installed = " ".join(values(final, "RUN"))
    assert "rm -rf /var/lib/apt/lists/*" in installed and " libtcmalloc-minimal4 " in installed


def test_only_cache_and_store_are_writable_volumes(parsed: DockerfileParser) -> None:
    final = stages(parsed)[1]
    assert values(final, "VOLUME") == ['["/cache", "/study"]']
    environment = " ".join(values(final, "ENV"))
    for name, place in {
        "BITRANK_CACHE": "/cache/bitrank",
        "HF_HOME": "/cache/huggingface",
        "HOME": "/cache",
    }.items():
        assert re.search(rf"(^| ){name}={place}( |$)", environment)
    assert values(final, "WORKDIR") == ["/study"]


def test_health_check_queries_the_ui(parsed: DockerfileParser) -> None:
    (check,) = values(stages(parsed)[1], "HEALTHCHECK")
    assert check.endswith('CMD ["python", "/opt/bitrank/healthy.py"]')
    assert "docker/healthy.py /opt/bitrank/healthy.py" in values(stages(parsed)[1], "COPY")


def test_images_contain_no_secret_and_no_index_url(parsed: DockerfileParser) -> None:
    text = parsed.content
    assert not re.search(r"(?i)(token|password|secret|api_?key)\s*=", text)
    assert "://" not in text


def test_three_dockerfiles_differ_only_in_hardware_settings() -> None:
    """Apart from comments: torch, its constraints, one check, and environment variables of drivers."""

    def lines(name: str) -> set[str]:
        text = re.sub(r"^#.*\n", "", (FOLDER / f"{name}.Dockerfile").read_text(), flags=re.MULTILINE)
        text = re.sub(
            r"assert [^,]*,",
            "assert",
            text.replace(f"TORCH={name}", "TORCH=").replace(f"torch-{name}", "torch-"),
        )
        return set(text.replace(f"/opt/bitrank {name}", "/opt/bitrank").splitlines())

    assert lines("cuda") ^ lines("cpu") == {
        'ARG TORCH_BACKEND=""',
        "    MLFLOW_DISABLE_TELEMETRY=true",
        "    MLFLOW_DISABLE_TELEMETRY=true NVIDIA_VISIBLE_DEVICES=all "
        "NVIDIA_DRIVER_CAPABILITIES=compute,utility",
    }
    assert lines("rocm") ^ lines("cpu") == {'ARG TORCH_BACKEND="rocm7.2"'}


def test_dockerignore_admits_every_copied_path() -> None:
    """.dockerignore excludes all other paths: each source of a COPY must be listed, and exist."""
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied: set[str] = set()
    for name in HARDWARE:
        for words in re.findall(
            r"^COPY (?!--from)(.*)$", (FOLDER / f"{name}.Dockerfile").read_text(), re.MULTILINE
        ):
            copied |= set(words.split()[:-1])
    assert copied == allowed
    assert all((ROOT / path).exists() for path in copied)


# ---- the health check


@pytest.fixture(scope="module")
def healthy() -> ModuleType:
    return load(FOLDER / "healthy.py")


@pytest.mark.parametrize(
    ("words", "port"),
    [
        ("python /opt/bitrank/bin/bitrank ui --host 0.0.0.0", 5000),
        (
            "/sbin/docker-init -- /opt/bitrank/bin/python /opt/bitrank/bin/bitrank ui --host 0.0.0.0 "
            "--port 5001",
            5001,
        ),
        ("python /opt/bitrank/bin/mlflow server --host=0.0.0.0 --port=5002", 5002),
        ("python /opt/bitrank/bin/bitrank matrix --store runs", None),
        ("bash", None),
    ],
)
def test_port_is_read_from_the_command_line(healthy: ModuleType, words: str, port: int | None) -> None:
    assert healthy.port_served(words.split()) == port


class _Mlflow(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" and self.server.well else 500)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[http.server.HTTPServer]:
    serving = http.server.HTTPServer(("127.0.0.1", 0), _Mlflow)
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    yield serving
    serving.shutdown()
    serving.server_close()


def test_server_is_healthy_if_it_answers_200(healthy: ModuleType, server: http.server.HTTPServer) -> None:
    server.well = True
    assert healthy.answers(server.server_port)
    server.well = False
    assert not healthy.answers(server.server_port)
    with http.server.HTTPServer(("127.0.0.1", 0), _Mlflow) as unused:
        free = unused.server_port
    assert not healthy.answers(free)


# ---- the run script, with an engine that records its arguments


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """A folder for PATH with docker and podman that record their arguments, and id for user 1000:1001."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("docker", "podman"):
        (programs / name).write_text(f'#!/bin/sh\nprintf "%s\\n" {name} "$@" > "{tmp_path}/arguments"\n')
    (programs / "id").write_text('#!/bin/sh\nif [ "$1" = -u ]; then echo 1000; else echo 1001; fi\n')
    for program in programs.iterdir():
        program.chmod(0o755)
    return programs


def call(engine: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {"PATH": f"{engine}:/usr/bin:/bin", "HOME": os.environ.get("HOME", "/")}
    return subprocess.run(
        [RUN, *words],
        cwd=engine.parent,
        env={**kept, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def recorded_arguments(engine: Path, *words: str, **environment: str) -> list[str]:
    done = call(engine, *words, **environment)
    assert done.returncode == 0, done.stderr
    return (engine.parent / "arguments").read_text().splitlines()


def confined(folder: Path) -> list[str]:
    """The engine arguments of every run, in order, up to the image."""
    return [
        *("run", "--rm", "--read-only"),
        *("--tmpfs", "/tmp"),
        *("--cap-drop", "ALL"),
        *("--security-opt", "no-new-privileges"),
        "--init",
        *("--user", "1000:1001"),
        *("--mount", "type=volume,source=bitrank-cache,target=/cache"),
        *("--mount", f"type=bind,source={folder}/runs,target=/study/runs"),
        *("--mount", f"type=bind,source={folder}/results,target=/study/results"),
    ]


def test_default_container_command(engine: Path) -> None:
    words = recorded_arguments(engine, "run", "Joint-3", "wiki_articles", "--max-steps", "10")
    command = ["run", "--config", "Joint-3", "--task", "wiki_articles", "--max-steps", "10"]
    assert words == ["docker", *confined(engine.parent), "bitrank:cpu", *command]
    assert (engine.parent / "runs").is_dir() and (engine.parent / "results").is_dir()


def test_task_file_is_mounted_read_only(engine: Path) -> None:
    (engine.parent / "my reviews.csv").write_text("text,label\n")
    words = recorded_arguments(engine, "run", "B-FP", "my reviews.csv")
    mounted = f"type=bind,source={engine.parent}/my reviews.csv,target=/input/my reviews.csv,readonly"
    assert words == ["docker", *confined(engine.parent), "--mount", mounted, "bitrank:cpu",
                     "run", "--config", "B-FP", "--task", "/input/my reviews.csv"]  # fmt: skip


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
    words = recorded_arguments(
        engine, "run-all", WANDB_API_KEY="k3y", WANDB_MODE="offline", HF_TOKEN="hf_s3cret"
    )
    assert [words[i + 1] for i, word in enumerate(words) if word == "--env"] == [
        "WANDB_API_KEY",
        "WANDB_MODE",
        "HF_TOKEN",
    ]
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


# ---- Compose


@pytest.fixture(scope="module")
def checker() -> ModuleType:
    return load(ROOT / "tools" / "check_compose.py")


def test_compose_file_passes_the_check(checker: ModuleType) -> None:
    assert checker.check((FOLDER / "compose.yaml").read_text(), FOLDER) == []


def test_compose_file_defines_the_documented_stack() -> None:
    services = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]
    assert set(services) == {"postgres", "mlflow", "runner"}
    assert "--allowed-hosts=mlflow:5000,localhost:*,127.0.0.1:*" in services["mlflow"]["command"]
    assert services["runner"]["command"][:3] == ["matrix", "--store", "http://mlflow:5000"]
    assert services["runner"]["depends_on"] == {"mlflow": {"condition": "service_healthy"}}
    assert [name for name, service in services.items() if "ports" in service] == ["mlflow"]
    assert "database" not in services["runner"]["networks"]


@pytest.mark.parametrize(
    ("good", "bad", "message"),
    [
        (
            "postgres:17-bookworm",
            "postgres:latest",
            "postgres: expected an image with a version, got 'postgres:latest'",
        ),
        ("postgres:17-bookworm", "postgres", "postgres: expected an image with a version, got 'postgres'"),
        (
            '"127.0.0.1:${PORT:-5000}:5000"',
            '"5000:5000"',
            "mlflow: the port 5000:5000 is not published on 127.0.0.1",
        ),
        ("docker/cpu.Dockerfile", "docker/none.Dockerfile", "none.Dockerfile"),
        (
            "${BITRANK_POSTGRES_PASSWORD:?export BITRANK_POSTGRES_PASSWORD first}",
            "hunter2",
            "PGPASSWORD has its value in the file",
        ),
        (
            "${BITRANK_POSTGRES_PASSWORD:?export BITRANK_POSTGRES_PASSWORD first}",
            "${PASSWORD:-hunter2}",
            "POSTGRES_PASSWORD has its",
        ),
        ("bitrank@postgres", "bitrank:hunter2@postgres", "a URI with a password in it"),
        (
            "[WANDB_API_KEY, HF_TOKEN]",
            "[WANDB_API_KEY=k3y]",
            "runner: WANDB_API_KEY has its value in the file",
        ),
        ("  artifacts:\n", "", "mlflow: the volume artifacts is not declared"),
        ("mlflow: {condition", "mlfow: {condition", "runner: it depends on mlfow, which is not a service"),
    ],
)
def test_compose_check_finds_each_fault(checker: ModuleType, good: str, bad: str, message: str) -> None:
    text = (FOLDER / "compose.yaml").read_text()
    assert good in text
    assert any(message in problem for problem in checker.check(text.replace(good, bad), FOLDER))


# ---- scripts


@pytest.mark.parametrize(
    "script", [*FOLDER.glob("*.sh"), ROOT / "tools" / "install-torch.sh"], ids=lambda path: path.name
)
def test_shell_scripts_parse(script: Path) -> None:
    parsed = subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=False)
    assert (parsed.returncode, parsed.stderr) == (0, "")


def test_hadolint_passes_dockerfiles_and_fails_a_bad_one(tmp_path: Path) -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    subprocess.run([hadolint, *(FOLDER / f"{name}.Dockerfile" for name in HARDWARE)], check=True)
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM python:latest\nRUN cd /tmp && pip install torch\n")
    assert subprocess.run([hadolint, bad], stdout=subprocess.DEVNULL, check=False).returncode == 1


def test_torch_is_installed_from_the_index_of_its_build(tmp_path: Path) -> None:
    """pip first for cpu and cuda; only uv for rocm or a named backend; only pip with index arguments."""
    installer_log = tmp_path / "installers.log"
    for name, code in (("pip", 1), ("python", 0)):
        (tmp_path / name).write_text(
            f'#!/bin/sh\necho {name} "$@" >> "{installer_log}"\n'
            f'case "$*" in *uv*) exit 0;; esac\nexit {code}\n'
        )
        (tmp_path / name).chmod(0o755)

    def lines(**given: str) -> list[str]:
        installer_log.write_text("")
        environment = {
            "PATH": os.environ["PATH"],
            "PIP": str(tmp_path / "pip"),
            "PY": str(tmp_path / "python"),
            **given,
        }
        subprocess.run(
            ["bash", "tools/install-torch.sh"], cwd=ROOT, env=environment, capture_output=True, check=False
        )
        return installer_log.read_text().splitlines()

    def pip(hardware: str, words: str = "") -> str:
        return f"pip install {words}-c constraints.txt -c constraints/torch-{hardware}.txt torch"

    def uv(backend: str) -> list[str]:
        return [
            "pip install uv",
            f"python -m uv pip install -q --python {tmp_path}/python --torch-backend {backend} torch==2.13.0",
        ]

    assert lines(TORCH="cpu") == [pip("cpu"), *uv("cpu")]
    assert lines(TORCH="cuda") == [pip("cuda")]
    assert lines(TORCH="cuda", TORCH_BACKEND="cu126") == uv("cu126")
    assert lines(TORCH="rocm") == uv("rocm7.2")
    assert lines(TORCH="cpu", TORCH_INDEX_ARGS="--find-links=/wheels") == [
        pip("cpu", "--find-links=/wheels ")
    ]
