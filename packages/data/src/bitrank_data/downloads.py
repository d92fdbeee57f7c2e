"""Pinned archives of package registries, downloaded by the registry's own client.

The user's index, proxy and certificates apply. An archive is neither imported nor installed, and none of its
code runs. Content other than the pinned hash is rejected.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bitrank_data.errors import DataError

_SUFFIXES = {".whl", ".gz", ".tgz"}
# pip asks the build backend of a source distribution for its name and version, also if it only downloads.
# That is setuptools, which runs the archive's setup.py. This module answers in its place.
_BACKEND = """\
import pathlib, sys

__legacy__ = sys.modules[__name__]  # the object that pip names if there is no pyproject.toml


def prepare_metadata_for_build_wheel(folder, config_settings=None):
    made = pathlib.Path(folder, "{name}-{version}.dist-info")
    made.mkdir()
    (made / "METADATA").write_text("Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
    return made.name
"""


class Archive(Protocol):
    """One file of a package registry: ``requirement`` is its exact name and version, as the client writes it.

    ``client`` is the program that downloads it, ``command`` the call that writes it into ``folder``, and
    ``environment`` the variables of that call.
    """

    @property
    def requirement(self) -> str: ...

    @property
    def sha256(self) -> str: ...

    @property
    def client(self) -> str: ...

    def command(self, folder: Path) -> list[str]: ...

    def environment(self, folder: Path) -> dict[str, str]: ...


@dataclass(frozen=True)
class PipArchive:
    """A wheel, ``name==version``; ``options`` select the file for ``pip download``."""

    requirement: str
    sha256: str
    options: tuple[str, ...]
    client: str = "pip"

    def command(self, folder: Path) -> list[str]:
        """Call of pip; writes the requirement with its hash into ``folder`` first."""
        requirements = folder / "requirements.txt"
        requirements.write_text(f"{self.requirement} --hash=sha256:{self.sha256}\n")
        return [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "--require-hashes",
            *self.options,
            "--dest",
            str(folder),
            "--requirement",
            str(requirements),
        ]

    def environment(self, folder: Path) -> dict[str, str]:
        return dict(os.environ)


@dataclass(frozen=True)
class SourceArchive(PipArchive):
    """A source distribution, ``name==version``, of which pip runs no code: ``setup.py`` is only a file.

    No library is downloaded for building it either.
    """

    options: tuple[str, ...] = ("--no-binary=:all:", "--no-build-isolation")

    def environment(self, folder: Path) -> dict[str, str]:
        """Variables by which pip finds a backend that answers name and version; writes it into ``folder``."""
        name, _, version = self.requirement.partition("==")
        backend = folder / "backend" / "setuptools"
        backend.mkdir(parents=True)
        (backend / "__init__.py").touch()
        (backend / "build_meta.py").write_text(_BACKEND.format(name=name, version=version))
        # Variables, because an option that a later pip no longer has would be an error.
        given = {**os.environ, "PIP_USE_PEP517": "1"}
        given.pop("PIP_BUILD_CONSTRAINT", None)  # pip refuses it together with --no-build-isolation
        places = (str(backend.parent), os.environ.get("PYTHONPATH"))
        return given | {"PYTHONPATH": os.pathsep.join(place for place in places if place)}


@dataclass(frozen=True)
class NpmArchive:
    """A package of npm, ``name@version``."""

    requirement: str
    sha256: str
    client: str = "npm"

    def command(self, folder: Path) -> list[str]:
        """Call of npm. Raises :class:`DataError` if npm is not installed."""
        npm = shutil.which("npm")
        if npm is None:
            raise DataError(
                f"{self.requirement} is a package of npm, and npm is not installed; install Node.js with "
                "npm, then run the same command again"
            )
        # Scripts of a package never run: only its text files are used.
        return [
            npm,
            "pack",
            self.requirement,
            "--ignore-scripts",
            "--silent",
            "--pack-destination",
            str(folder),
        ]

    def environment(self, folder: Path) -> dict[str, str]:
        return dict(os.environ)


def download(archive: Archive, folder: Path, megabytes: int) -> Path:
    """Download ``archive`` into the empty ``folder`` and check its hash; return its path.

    Raises :class:`DataError` if the client fails or the content differs from the pinned one.
    """
    command = archive.command(folder)
    environment = archive.environment(folder)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    found = [path for path in folder.iterdir() if path.suffix in _SUFFIXES]
    if done.returncode != 0 or len(found) != 1:
        raise DataError(_reason(archive, megabytes, done.stderr))
    check_hash(found[0], archive.requirement, archive.sha256)
    return found[0]


def check_hash(path: Path, name: str, sha256: str) -> None:
    """Raise :class:`DataError` if the SHA-256 of ``path`` is not ``sha256``; reads it in parts."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise DataError(_other_bytes(name, sha256))


def _other_bytes(name: str, sha256: str) -> str:
    return (
        f"{name} came with other bytes than the pinned sha256 {sha256}; nothing was kept. Check your index."
    )


def _reason(archive: Archive, megabytes: int, stderr: str) -> str:
    errors = [line for line in stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
    if "DO NOT MATCH THE HASHES" in stderr:
        return _other_bytes(archive.requirement, archive.sha256)
    hint = (
        f"check the network or your package index ({archive.client}'s own settings are used), "
        "then run the same command again"
    )
    return (
        f"cannot fetch {archive.requirement} ({megabytes} MB) with {archive.client}: "
        f"{errors[-1] if errors else 'no reason given'}; {hint}"
    )
