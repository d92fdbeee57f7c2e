"""What a run's process takes before it has a model: libraries, tokenizer and tokens. Measured in a process of its own, and remembered."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory

from bitrank_data import build_once, cache_dir

from bitrank.allocator import find_tcmalloc
from bitrank.environment import run_environment
from bitrank.errors import UserError
from bitrank.imports import quick_imports
from bitrank.inputs import data_digest, model_digest
from bitrank.provenance import code_hash
from bitrank.specs import RunSpec, read_spec, write_spec

# All that bitrank.road imports before it has a model, and that are large.
_LIBRARIES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "optimum-quanto", "scipy", "numpy", "pyarrow", "tokenizers")


@dataclass(frozen=True)
class Baseline:
    """Bytes: ``imports`` is the peak after imports (a run's ``mem/import_mib``), ``material`` what tokenizer and tokens add to it."""

    imports: int
    material: int


def baseline(spec: RunSpec) -> Baseline:
    """The baseline of a run of ``spec`` with the libraries installed here, from the cache when it is there.

    Raises :class:`UserError` when its model's tokenizer or its task cannot be loaded.
    """
    inputs = (spec.model, spec.task, spec.data, model_digest(spec.model), data_digest(spec.task, spec.data))
    sets_threads_and_heap = (spec.threads, spec.memory_limit is None)
    fields = (*inputs, spec.max_length, *sets_threads_and_heap)
    libraries = [f"{name} {_version(name)}" for name in _LIBRARIES]
    said = [code_hash("bitrank.baseline"), sys.version, str(find_tcmalloc()), *libraries, *map(str, fields)]
    key = hashlib.sha256("\0".join(said).encode()).hexdigest()[:16]
    place = build_once(cache_dir() / "baselines" / key, lambda folder: _measure_apart(spec, folder))
    return Baseline(**json.loads((place / "baseline.json").read_text()))


def _measure_apart(spec: RunSpec, folder: Path) -> None:
    with TemporaryDirectory() as scratch:
        write_spec(spec, Path(scratch) / "spec.json")
        command = [sys.executable, "-m", "bitrank.baseline", str(Path(scratch) / "spec.json"), str(folder / "baseline.json")]
        done = subprocess.run(command, env=run_environment(spec), capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"cannot measure what a run takes before its model: {(done.stderr.strip() or 'no word').splitlines()[-1]}")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def _measure(spec_path: Path, answer: Path) -> None:
    with quick_imports():
        from bitrank_trainer.meters import peak_memory_mib, release_memory, resident_bytes

        import bitrank.road  # noqa: F401 - its imports are what is measured
        from bitrank.material import load_material
        from bitrank.models import load_tokenizer

    spec = read_spec(spec_path)
    imports = int(peak_memory_mib() * 2**20)
    held = load_material(spec), load_tokenizer(spec.model)
    release_memory()
    answer.write_text(json.dumps(asdict(Baseline(imports, max(0, resident_bytes() - imports)))))
    del held


if __name__ == "__main__":
    _measure(Path(sys.argv[1]), Path(sys.argv[2]))
