"""Dockerfiles, Compose file and scripts, checked without an engine; test_docker_run.py has the run script.

`make docker-verify` builds and runs the CPU image.
"""

from __future__ import annotations

import http.server
import importlib.util
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
    assert " PYTHONSAFEPATH=1 " in environment  # modules of a folder mounted there do not come first


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
    # bitrank:cpu is also the image of docker/run.sh, which gives the commit.
    for name in ("mlflow", "runner"):
        assert services[name]["build"]["args"] == {"COMMIT": "${BITRANK_COMMIT:-}"}


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
