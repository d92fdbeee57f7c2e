"""What a run reads from outside its code, by content: the digests of its data and of its model.

The id of a run depends on content and not on paths. A path only locates content: the same path may hold other
data tomorrow, and the same data may be moved. So a spec keeps the path, for the run to open, and the digest,
for its id. Edited files make another run, and files that were moved or copied make the same one.

A digest says where its certainty comes from:

- ``content:…`` hashes files of the user's own: a data file, a folder given with ``--data``, a model folder;
- ``pinned:…`` repeats the hash that an embedded task or model is pinned by, so nothing is read;
- ``code:…`` hashes the code that makes a tiny test model;
- ``hub:…`` is the commit of a repository on the Hugging Face hub. Without a copy in the hub's cache it is
  known only once the hub was asked, which :func:`ask_hub` does before runs start; ``bitrank list`` asks
  nobody.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bitrank_data import ASSETS, HUB_TASKS, TASKS, cached_commit, hub_repository, open_task

from bitrank.errors import UserError, shortened
from bitrank.models.tiny import TINY
from bitrank.spec.digests import content_digest
from bitrank.spec.embedded_models import EMBEDDED_MODELS
from bitrank.tracking.provenance import code_hash

if TYPE_CHECKING:
    from bitrank.spec.run_spec import RunSpec

_CONTENT = "content:"
_HUB_SECONDS = 10.0  # to wait for the hub's answer
# Weights, configuration and tokenizer: whatever of a model folder may be loaded. Notes and pictures beside
# them do not count.
_MODEL_FILES = {".safetensors", ".bin", ".gguf", ".json", ".txt", ".model", ".jinja", ".py"}


def data_digest(task: str, data: str | None = None) -> str | None:
    """The digest of what ``task`` reads; None when only the hub knows it or there is no such file."""
    if task in TASKS and task not in HUB_TASKS:
        return f"pinned:{open_task(task).fingerprint()}"
    if task in HUB_TASKS and data is None:
        commit = cached_commit("datasets", hub_repository(task))
        return f"hub:{commit}" if commit else None
    place = Path(data if task in HUB_TASKS and data is not None else task)
    return f"{_CONTENT}{content_digest(place)}" if place.exists() else None


def model_digest(name: str) -> str | None:
    """The digest of the model ``name`` (see :func:`bitrank.models.locate`); None when only the hub knows it
    or there is none.
    """
    if name in EMBEDDED_MODELS:  # before a folder of the same name, as in bitrank.models.locate
        return f"pinned:{ASSETS[name].sha256}"
    if name in TINY:
        return f"code:{code_hash('bitrank.models.tiny')}"
    folder = Path(name)
    if folder.is_dir():
        # Models are read from files directly in their folder. Runs may keep their own files below it.
        return f"{_CONTENT}{content_digest(folder, _is_loaded, deep=False)}"
    commit = cached_commit("models", name)
    return f"hub:{commit}" if commit else None


def is_content(digest: str | None) -> bool:
    """Whether ``digest`` stands for files of the user's own, so that their path says nothing more."""
    return digest is not None and digest.startswith(_CONTENT)


def located(text: str) -> str:
    """``text`` as an absolute path when it names a file or folder that exists.

    Names of embedded models, which come first, and all that does not exist (a hub id, a wrong path) stay as
    they are. Raises :class:`UserError` for text that no file can be called.
    """
    named = text in EMBEDDED_MODELS or text in TINY
    try:
        path = Path(text).expanduser()
        exists = path.exists()
    except OSError as error:
        raise UserError(f"cannot read {shortened(text)}: {error.strerror}; give another path") from error
    except RuntimeError as error:  # ~name of a user that the machine does not know
        raise UserError(f"cannot read {shortened(text)}: {error}") from error
    return str(path.absolute()) if exists and not named else text


def check_inputs(spec: RunSpec) -> None:
    """Raise :class:`UserError` when data or model of ``spec`` are others now than when the spec was made.

    Call it after they were read: then what was read is what the id says. Specs of before digests were kept
    are not checked.
    """
    _compare(f"the data of {spec.task}", spec.data_digest, data_digest(spec.task, spec.data))
    _compare(f"the model {spec.model}", spec.model_digest, model_digest(spec.model))


def check_plan(spec: RunSpec) -> None:
    """Raise :class:`UserError` when the config or plan file of ``spec`` describes another arm now than when
    the spec was made.
    """
    from bitrank.spec.configs import find_config

    if not spec.arm:
        return
    now = find_config(spec.config, spec.plan, spec.tuned).as_data()
    if json.loads(json.dumps(now)) != json.loads(json.dumps(spec.arm)):
        raise UserError(
            f"{spec.plan or spec.config} changed after this run was requested: it describes another arm now. "
            "Run the same command again: it makes a new run"
        )


def _compare(what: str, expected: str | None, found: str | None) -> None:
    if expected is None or found == expected:
        return
    if found is None and not is_content(expected):
        return  # the hub's cache has no copy yet
    now = f"its digest now is {_short(found)}" if found else "it is gone"
    raise UserError(
        f"{what} changed after this run was requested: expected {_short(expected)}, and {now}. "
        "Put the old content back, or run the same command again: it makes a new run on what is there now"
    )


def _short(digest: str) -> str:
    kind, _, value = digest.partition(":")
    return f"{kind}:{value[:12]}"


def _is_loaded(path: Path) -> bool:
    return path.suffix in _MODEL_FILES and not any(part.startswith(".") for part in path.parts[-2:])


def ask_hub(spec: RunSpec) -> RunSpec:
    """``spec`` with the commits of what it reads from the hub, asked for where no copy is cached; as it is
    when the hub is silent.
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

    ask = HfApi().model_info if kind == "models" else HfApi().dataset_info
    try:
        commit = ask(repository, timeout=_HUB_SECONDS).sha
    except (
        OSError,
        ValueError,
    ):  # not reachable, no such repository, or no such name: the run itself says so when it loads
        return None
    return f"hub:{commit}" if commit else None
