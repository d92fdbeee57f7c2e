"""Measure the memory of a run's process before it has a model: libraries, tokenizer and tokens.

A separate process takes the measurement, and the result is cached.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from bitrank_data import build_once, cache_dir

from bitrank.errors import UserError
from bitrank.process.environment import run_environment
from bitrank.process.fast_imports import quick_imports
from bitrank.process.libraries import installed_version
from bitrank.process.tcmalloc import find_tcmalloc
from bitrank.spec.inputs import data_digest, model_digest
from bitrank.spec.provenance import code_hash
from bitrank.spec.run_spec import RunSpec, read_spec, write_spec

# The large libraries that bitrank.run.train_run imports before it has a model.
_LIBRARIES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "bitsandbytes",
    "optimum-quanto",
    "scipy",
    "numpy",
    "pyarrow",
    "tokenizers",
)


@dataclass(frozen=True)
class ImportMemory:
    """Bytes of a run's process before it has a model.

    ``imports`` is the peak after imports (a run's ``mem/import_mib``); ``data`` is the increase by tokenizer
    and tokens.
    """

    imports: int
    data: int


def import_memory(spec: RunSpec) -> ImportMemory:
    """Return the import memory of a run of ``spec`` with the installed libraries, cached if possible.

    Raises :class:`UserError` if the model's tokenizer or the task cannot be loaded.
    """
    digests = (model_digest(spec.model), data_digest(spec.task, spec.data, spec.test_file))
    inputs = (spec.model, spec.task, spec.data, spec.file_options, *digests)
    sets_threads_and_heap = (spec.threads, spec.memory_limit is None)
    fields = (*inputs, spec.max_length, *sets_threads_and_heap)
    libraries = [f"{name} {installed_version(name)}" for name in _LIBRARIES]
    key_parts = [
        code_hash("bitrank.forecast.import_memory"),
        sys.version,
        str(find_tcmalloc()),
        *libraries,
        *map(str, fields),
    ]
    key = hashlib.sha256("\0".join(key_parts).encode()).hexdigest()[:16]
    place = build_once(cache_dir() / "import_memory" / key, lambda folder: _measure_apart(spec, folder))
    return ImportMemory(**json.loads((place / "import_memory.json").read_text()))


def _measure_apart(spec: RunSpec, folder: Path) -> None:
    with TemporaryDirectory() as scratch:
        write_spec(spec, Path(scratch) / "spec.json")
        command = [
            sys.executable,
            "-m",
            "bitrank.forecast.import_memory",
            str(Path(scratch) / "spec.json"),
            str(folder / "import_memory.json"),
        ]
        done = subprocess.run(command, env=run_environment(spec), capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(
            "cannot measure the memory of a run before its model: "
            f"{(done.stderr.strip() or 'no output').splitlines()[-1]}"
        )


def _measure(spec_path: Path, answer: Path) -> None:
    with quick_imports():
        from bitrank_trainer import peak_memory_mib, release_memory, resident_bytes

        import bitrank.run.train_run  # noqa: F401 - the measurement needs these imports
        from bitrank.models.load import load_tokenizer
        from bitrank.run.data import load_data

    spec = read_spec(spec_path)
    imports = int(peak_memory_mib() * 2**20)
    stored = load_data(spec), load_tokenizer(spec.model_source)
    release_memory()
    answer.write_text(json.dumps(asdict(ImportMemory(imports, max(0, resident_bytes() - imports)))))
    del stored


if __name__ == "__main__":
    _measure(Path(sys.argv[1]), Path(sys.argv[2]))
