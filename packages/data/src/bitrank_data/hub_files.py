"""Data files of a repository of the Hugging Face hub, or of a local folder in hub format.

Files of the hub are read from its own cache by commit. So texts and fingerprint belong to one commit, and a
commit stays readable after the repository has moved on, without network access too.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitrank_data.errors import DataError
from bitrank_data.hub_cache import cached_commit, hub_snapshot

_BUILDERS = {".parquet": "parquet", ".jsonl": "json"}  # suffix → builder of the library datasets
LOCAL_COPY = (
    "give a local copy with --data FOLDER (saved with save_to_disk, or train/validation/test files in CSV, "
    "JSONL or Parquet)"
)
# Reads all splits of a task, each of which needs the columns: a ``datasets.DatasetDict``.
Read = Callable[[tuple[str, ...]], Any]


@dataclass(frozen=True)
class Repository:
    """A repository of data sets: ``files`` is the pattern of the files of a split, ``splits`` are read."""

    name: str
    files: str
    splits: tuple[str, ...]


@dataclass(frozen=True)
class HubFiles:
    """The files of ``task`` in ``repository``: of a ``commit`` (None: that of the cache), or of ``folder``.

    ``folder`` is a local copy of the data.
    """

    task: str
    repository: Repository
    folder: Path | None = None
    commit: str | None = None

    def fingerprint(self) -> str:
        """A text that changes with the data: the commit, or a hash of all files of the local folder."""
        if self.folder is None:
            commit = self.commit or self._current_commit()
            return f"hub:{self.repository.name}:{self.repository.files}@{commit}"
        digest = hashlib.sha256()
        for path in sorted(self.folder.rglob("*")):
            if path.is_file():
                digest.update(f"{path.relative_to(self.folder)}\0".encode() + path.read_bytes())
        return digest.hexdigest()

    def read(self, columns: tuple[str, ...]) -> Any:
        """All splits. Raises :class:`DataError` if files, a split, or one of ``columns`` are missing."""
        import datasets

        commit = None if self.folder else self.commit or self._current_commit()
        try:
            with _no_bars_in_pipes():
                if self.folder is None:
                    builder = _BUILDERS[Path(self.repository.files).suffix]
                    data = datasets.load_dataset(builder, data_files=self._files(commit))
                elif (self.folder / "dataset_dict.json").is_file():
                    data = datasets.load_from_disk(str(self.folder))
                else:
                    data = datasets.load_dataset(str(self.folder.absolute()))
        except DataError:
            raise
        except Exception as error:
            place = f"the local folder {self.folder}" if self.folder else self._place(commit)
            raise self._not_loaded(place, error) from error
        self._check(data, columns)
        return data

    def _current_commit(self) -> str:
        """The commit of the cached copy, which is downloaded if there is none."""
        commit = cached_commit("datasets", self.repository.name)
        return self._snapshot(None).name if commit is None else commit

    def _files(self, commit: str | None) -> dict[str, list[str]]:
        """Files of each split at ``commit``."""
        folder, pattern = self._snapshot(commit), self.repository.files
        files = {
            split: sorted(str(path) for path in folder.glob(pattern.format(split=split)))
            for split in self.repository.splits
        }
        for split, found in files.items():
            if not found:
                missing = pattern.format(split=split)
                raise DataError(f"{self.task}: {self._place(commit)} has no {missing}; {LOCAL_COPY}")
        return files

    def _snapshot(self, commit: str | None) -> Path:
        """The folder of ``commit`` in the hub's own cache; downloads files that are absent there."""
        patterns = [self.repository.files.format(split=split) for split in self.repository.splits]
        try:
            return hub_snapshot("datasets", self.repository.name, commit, patterns)
        except (OSError, ValueError) as error:
            raise self._not_loaded(self._place(commit), error) from error

    def _place(self, commit: str | None) -> str:
        return f"{self.repository.name}{f'@{commit}' if commit else ''} on the hub"

    def _not_loaded(self, place: str, error: Exception) -> DataError:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return DataError(f"cannot load {self.task} from {place}: {reason}; {LOCAL_COPY}")

    def _check(self, data: Any, columns: tuple[str, ...]) -> None:
        for split in self.repository.splits:
            if split not in data:
                raise DataError(f"{self.task} needs a split {split!r}; found {', '.join(data)}")
            missing = [column for column in columns if column not in data[split].column_names]
            if missing:
                raise DataError(
                    f"{self.task} needs the column {missing[0]!r} in {split}; found "
                    f"{', '.join(data[split].column_names)}"
                )


@contextmanager
def _no_bars_in_pipes() -> Iterator[None]:
    """Show the progress bars of the library datasets on a terminal only."""
    import datasets

    if sys.stderr.isatty() or datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()
