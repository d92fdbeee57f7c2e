"""The doctor's report: results of trials, and an install command for each missing part."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from bitrank.cli.main import main
from bitrank.doctor import software
from bitrank.doctor.formats import try_formats
from bitrank.doctor.machine import devices, memory
from bitrank.doctor.speed import gflops
from bitrank_data import ASSETS, build_once


def test_report_has_every_section_as_json_and_as_a_table(capsys) -> None:
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    expected = {
        "machine",
        "memory",
        "threads",
        "devices",
        "chosen",
        "gflops",
        "runs_at_once",
        "kernels",
        "quant_backends",
        "formats",
        "libraries",
        "assets",
        "cache",
        "programs",
        "to_install",
    }
    assert set(report) == expected
    nf4 = report["formats"]["nf4"]
    assert set(nf4) == {"bitsandbytes", "torch"}
    assert all(trial["problem"] is None and 0 <= trial["output_error"] < 0.05 for trial in nf4.values())
    assert set(report["gflops"]["cpu"]) == {"bf16", "fp16", "fp32"}
    assert all(speed > 0 for speed in report["gflops"]["cpu"].values())
    assert "auto" in report["quant_backends"] and set(report["assets"]) == set(ASSETS)
    assert set(report["to_install"]) <= set(report["programs"])
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "quant backends" in printed and "works (output off by" in printed and "to install" in printed


def test_formats_are_tried_on_every_backend_that_supports_them() -> None:
    found = try_formats("cpu", torch.float32)
    assert set(found["int4-g64"]) == {"torch", "quanto"} and set(found["llm-int8"]) == {
        "torch",
        "bitsandbytes",
    }
    assert found["int4-g64"]["torch"]["gradient_error"] < 1e-4
    absent = try_formats("nowhere", torch.float32)["nf4"]["bitsandbytes"]
    assert absent["problem"] == "bitsandbytes does not run on nowhere" and absent["output_error"] is None


def test_dtype_that_fails_reports_the_reason() -> None:
    assert str(gflops("fp32", "xpu")).startswith("refused: ")
    assert isinstance(gflops("fp32", "cpu"), float)


def test_unavailable_devices_report_the_reason() -> None:
    found = devices()
    assert found["cpu"] == "here"
    assert torch.cuda.is_available() or "GPU" in found["cuda"]
    assert {"total", "available"} <= set(memory())


@pytest.fixture
def program_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return an empty folder that is the whole PATH, so only programs written into it are found."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def write_program(folder: Path, name: str, body: str) -> None:
    (folder / name).write_text(f"#!{'/bin/sh'}\n{body}\n")
    (folder / name).chmod(0o755)


def test_missing_programs_come_with_install_commands(program_folder: Path) -> None:
    found = software.programs()
    assert found["TeX"].state.startswith("missing pdflatex, bibtex, latexmk, pdffonts, aspell")
    assert "texlive-latex-recommended" in found["TeX"].install or "mactex" in found["TeX"].install
    assert found["containers"].install and found["compiler"].install and found["browser"].install


def test_tex_packages_equal_those_of_the_paper_build() -> None:
    script = Path(__file__).parents[3] / "tools" / "build_paper.sh"
    assert f'packages="{software._TEX_DEBIAN}"' in script.read_text()


def test_container_engine_that_does_not_respond_is_reported(program_folder: Path) -> None:
    write_program(program_folder, "docker", "echo 'Cannot connect to the Docker daemon' >&2; exit 1")
    assert software.programs()["containers"].state.endswith(
        "its engine does not answer: Cannot connect to the Docker daemon"
    )
    write_program(program_folder, "docker", "exit 0")
    assert software.programs()["containers"] == software.Found("docker: installed, its engine answers")
    for name in ("pdflatex", "bibtex", "latexmk", "pdffonts", "aspell"):
        write_program(program_folder, name, "exit 0")
    assert software.programs()["TeX"] == software.Found("here (make paper)")


@pytest.mark.skipif(
    torch.version.cuda is not None or torch.version.hip is not None, reason="this torch is built for a GPU"
)
def test_gpu_without_a_matching_torch_build_is_reported(program_folder: Path) -> None:
    assert devices()["cuda"] == "no GPU that torch can use"
    write_program(program_folder, "rocm-smi", "exit 0")
    assert "ROCm build" in devices()["cuda"]
    write_program(program_folder, "nvidia-smi", "exit 0")
    assert devices()["cuda"].endswith("make install TORCH=cuda")


def test_missing_library_comes_with_its_install_command() -> None:
    found = software._library("no_such_module", "no-such-module", "nothing")()
    assert found.state == "not installed (nothing)" and found.install.endswith(
        "-m pip install no-such-module"
    )
    assert software._library("no_such_module", "no-such-module", "nothing", "some")().install.endswith(
        "-m pip install 'bitrank[some]'"
    )


def test_secrets_of_the_environment_are_not_reported(capsys, monkeypatch) -> None:
    monkeypatch.setitem(os.environ, "WANDB_API_KEY", "do-not-tell")
    assert "do-not-tell" not in str(software.programs())


def test_verify_names_the_damaged_folder_and_exits_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setenv("BITRANK_CACHE", str(tmp_path))
    place = build_once(tmp_path / "models" / "m", lambda folder: (folder / "weights").write_text("12345"))
    assert main(["doctor", "--verify"]) == 0
    assert "every file matches its digest" in capsys.readouterr().out
    before = (place / "weights").stat()
    (place / "weights").write_text("54321")
    os.utime(place / "weights", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert main(["doctor", "--verify", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["damaged"] == [str(place)]
