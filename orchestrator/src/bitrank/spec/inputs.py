"""Content digests of a run's inputs: its data and its model.

The id of a run depends on content and not on paths: files behind a path may change, and files may be moved.
So a spec contains the path, to open the input, and the digest, for the id. Edited files give a different run;
moved or copied files give the same one.

The prefix of a digest names its source:

- ``content:…`` hashes the user's own files: a data file, a folder given with ``--data``, a model folder;
- ``pinned:…`` is the pinned hash of an embedded task or model, so no file is read;
- ``code:…`` hashes the code that creates a tiny test model;
- ``hub:…`` is the commit of a repository on the Hugging Face hub. If the hub's cache has no copy,
  :func:`resolve_hub_digests` requests the commit before runs start; ``bitrank list`` sends no request.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bitrank_data import (
    ASSETS,
    EMBEDDED,
    HUB_TASKS,
    DataError,
    Source,
    cached_commit,
    hub_repository,
    open_task,
    task_files,
)

from bitrank.errors import UserError, shortened
from bitrank.spec.digests import content_digest
from bitrank.spec.embedded_models import EMBEDDED_MODELS
from bitrank.spec.provenance import code_hash
from bitrank.spec.tiny_models import TINY

if TYPE_CHECKING:
    from bitrank.spec.run_spec import RunSpec

_CONTENT, _HUB = "content:", "hub:"
_HUB_SECONDS = 10.0  # timeout of a request to the hub
# Endings of the files of configuration and tokenizer, by the names that transformers' tokenizers give them.
TEXT_FILES = {".json", ".txt", ".model", ".tiktoken", ".codes", ".spm", ".tokenizer"}
# Files of a model folder that may be loaded: weights, configuration and tokenizer. Notes and images in the
# folder are not part of the digest.
_MODEL_FILES = {".safetensors", ".bin", ".gguf", *TEXT_FILES, ".jinja", ".py"}


def data_digest(task: str, data: str | None = None, test_file: str | None = None) -> str | None:
    """The digest of the data of ``task``; None when only the hub knows it or the file does not exist.

    ``test_file`` is a file of the user that belongs to the data.
    """
    if task in EMBEDDED:
        return f"pinned:{EMBEDDED[task].fingerprint()}"
    if task in HUB_TASKS and data is None:
        commit = cached_commit("datasets", hub_repository(task))
        return f"{_HUB}{commit}" if commit else None
    path = Path(data if task in HUB_TASKS and data is not None else task)
    if not path.exists() or (test_file is not None and not Path(test_file).exists()):
        return None
    parts = [content_digest(path) if task in HUB_TASKS else _task_digest(path, test_file)]
    if test_file is None:
        return f"{_CONTENT}{parts[0]}"
    parts.append(content_digest(Path(test_file)))
    return f"{_CONTENT}{hashlib.sha256(' '.join(parts).encode()).hexdigest()}"


def _task_digest(path: Path, test_file: str | None) -> str:
    """The digest of the files that a task of the user's own reads; a folder may hold others, as a store."""
    try:
        files = {file for _, file in task_files(path, Path(test_file) if test_file else None).all()}
    except DataError:  # a folder that cannot be read as a task, which reading reports
        return content_digest(path)
    return content_digest(path, files.__contains__, deep=False)


def model_digest(name: str) -> str | None:
    """The digest of the model ``name``; None when only the hub knows it or the model does not exist."""
    if name in EMBEDDED_MODELS:  # precedes a folder of the same name, as in bitrank.models.locate
        return f"pinned:{ASSETS[name].sha256}"
    if name in TINY:
        return f"code:{code_hash('bitrank.spec.tiny_models')}"
    folder = Path(name)
    if folder.is_dir():
        # Models are read from files directly in their folder; runs may write files to subfolders.
        return f"{_CONTENT}{content_digest(folder, _is_loaded, deep=False)}"
    commit = cached_commit("models", name)
    return f"{_HUB}{commit}" if commit else None


def is_content(digest: str | None) -> bool:
    """Whether ``digest`` hashes the user's own files, so that the id does not depend on their path."""
    return digest is not None and digest.startswith(_CONTENT)


def is_hub(digest: str | None) -> bool:
    """Whether ``digest`` is the commit of a repository on the hub."""
    return digest is not None and digest.startswith(_HUB)


def commit_of(digest: str | None) -> str | None:
    """The commit in ``digest``; None if it is no commit of a repository on the hub."""
    return digest.removeprefix(_HUB) if digest is not None and is_hub(digest) else None


def source_of(spec: RunSpec) -> Source:
    """The texts of ``spec``; those of a hub task are read by the commit in the spec.

    Raises :class:`~bitrank_data.DataError` for an unknown task, or a kind that its examples do not fit.
    """
    return open_task(spec.task, spec.data, spec.file_options, commit_of(spec.data_digest), spec.kind)


def located(text: str) -> str:
    """Make ``text`` an absolute path if it names an existing file or folder.

    Names of embedded models, which take precedence, and names that do not exist (a hub id, a wrong path) are
    returned unchanged. Raises :class:`UserError` for text that cannot be a file name.
    """
    named = text in EMBEDDED_MODELS or text in TINY
    try:
        path = Path(text).expanduser()
        exists = path.exists()
    except OSError as error:
        raise UserError(f"cannot read {shortened(text)}: {error.strerror}; give another path") from error
    except RuntimeError as error:  # ~name of an unknown user
        raise UserError(f"cannot read {shortened(text)}: {error}") from error
    return str(path.absolute()) if exists and not named else text


def check_inputs(spec: RunSpec) -> None:
    """Raise :class:`UserError` if data or model of ``spec`` changed since the spec was made.

    Call it after the inputs were read, to confirm that the run used the content of its id. Old specs without
    digests are not checked, nor are data and models of the hub, which are loaded by the commit in the spec.
    """
    if not is_hub(spec.data_digest):
        found = data_digest(spec.task, spec.data, spec.test_file)
        _compare(f"the data of {spec.task}", spec.data_digest, found)
    if not is_hub(spec.model_digest):
        _compare(f"the model {spec.model}", spec.model_digest, model_digest(spec.model))


def check_plan(spec: RunSpec) -> None:
    """Raise :class:`UserError` if the config or plan file changed since ``spec`` was made."""
    from bitrank.spec.configs import find_arm

    if not spec.arm:
        return
    current = find_arm(spec.config, spec.plan, spec.tuned).as_data()
    if json.loads(json.dumps(current)) != json.loads(json.dumps(spec.arm)):
        raise UserError(
            f"{spec.plan or spec.config} changed after this run was requested: it describes another arm now. "
            "Repeat the same command to start a new run"
        )


def _compare(label: str, expected: str | None, found: str | None) -> None:
    if expected is None or found == expected:
        return
    got = f"got {_short(found)}" if found else "but it no longer exists"
    raise UserError(
        f"{label} changed after this run was requested: expected {_short(expected)}, {got}. "
        "Restore the old content, or repeat the same command to start a new run with the current content"
    )


def _short(digest: str) -> str:
    kind, _, value = digest.partition(":")
    return f"{kind}:{value[:12]}"


def _is_loaded(path: Path) -> bool:
    return path.suffix in _MODEL_FILES and not path.name.startswith(".")


def resolve_hub_digests(spec: RunSpec) -> RunSpec:
    """Add the commits of data and model on the hub to ``spec``; unchanged if the hub does not answer.

    A request is sent only if the hub's cache has no copy.
    """
    missing: dict[str, Any] = {}
    if spec.data_digest is None and spec.data is None and spec.task in HUB_TASKS:
        missing["data_digest"] = _hub_commit("datasets", hub_repository(spec.task))
    if spec.model_digest is None and spec.model and not Path(spec.model).exists():
        missing["model_digest"] = _hub_commit("models", spec.model)
    return replace(spec, **missing) if missing else spec


@cache
def _hub_commit(kind: Literal["models", "datasets"], repository: str) -> str | None:
    from huggingface_hub import HfApi

    request = HfApi().model_info if kind == "models" else HfApi().dataset_info
    try:
        commit = request(repository, timeout=_HUB_SECONDS).sha
    except (OSError, ValueError):
        # The hub is unreachable or the repository does not exist: the run reports it when it loads.
        return None
    return f"{_HUB}{commit}" if commit else None
