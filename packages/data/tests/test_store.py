"""A cache folder holds the built content; opening it detects changed files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from bitrank_data import build_once, damaged, is_built
from bitrank_data import cache as store

CONTENT = {"weights.bin": b"0123456789" * 100, "deep/config.json": b"{}"}


@pytest.fixture
def builds(cache: Path) -> list[int]:
    """List that gets one element per build."""
    return []


def build(place: Path, builds: list[int]) -> Path:
    def write(folder: Path) -> None:
        builds.append(1)
        for name, content in CONTENT.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)

    return build_once(place, write)


def content(place: Path) -> dict[str, bytes]:
    return {name: (place / name).read_bytes() for name in CONTENT}


def test_unchanged_folder_is_built_once(cache: Path, builds: list[int]) -> None:
    assert not is_built(cache / "models/m")
    place = build(cache / "models/m", builds)
    assert is_built(place)
    build(place, builds)
    assert len(builds) == 1 and content(place) == CONTENT and damaged() == []


@pytest.mark.parametrize("name", CONTENT)
@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "more"])
def test_folder_with_changed_content_is_rebuilt(
    cache: Path, builds: list[int], name: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place = build(cache / "models/m", builds)
    path = place / name
    if damage == "flip":
        path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "remove":
        path.unlink()
    else:
        path.with_name("other.safetensors").write_bytes(b"planted")
    assert not is_built(place)
    build(place, builds)
    assert len(builds) == 2 and content(place) == CONTENT
    assert not path.with_name("other.safetensors").exists()
    assert "has other content than was built" in capsys.readouterr().err


def test_other_users_can_read_a_built_folder_without_writing(
    cache: Path, builds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The modes follow the umask, and opening needs no lock, which another user cannot open."""
    mask = os.umask(0o022)
    try:
        place = build(cache / "models/m", builds)
    finally:
        os.umask(mask)
    assert place.stat().st_mode & 0o777 == 0o755
    modes = {path.stat().st_mode & 0o777 for path in place.rglob("*") if path.is_file()}
    assert modes == {0o644}

    def refused(*_: object) -> None:
        raise PermissionError("this user cannot write")

    monkeypatch.setattr(store, "FileLock", refused)
    monkeypatch.setattr(store, "write_atomically", refused)
    assert build(place, builds) == place and len(builds) == 1
    os.utime(place / "weights.bin", ns=(1, 1))
    assert build(place, builds) == place and len(builds) == 1


def test_folder_with_changed_times_is_verified_and_kept(cache: Path, builds: list[int]) -> None:
    place = build(cache / "models/m", builds)
    for name in CONTENT:
        os.utime(place / name, ns=(1, 1))
    build(place, builds)
    assert len(builds) == 1 and damaged() == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"weights.bin": 3}'])
def test_damaged_record_causes_a_rebuild(cache: Path, builds: list[int], text: str) -> None:
    place = build(cache / "models/m", builds)
    (place / ".digest").write_text(text)
    build(place, builds)
    assert len(builds) == 2 and content(place) == CONTENT


def test_damaged_detects_a_change_with_equal_size_and_time(cache: Path, builds: list[int]) -> None:
    place = build(cache / "models/m", builds)
    path = place / "weights.bin"
    before = path.stat()
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert damaged() == [place]


def test_a_folder_copied_without_its_times_is_not_damaged(cache: Path, builds: list[int]) -> None:
    place = build(cache / "models/m", builds)
    os.utime(place / "weights.bin", (1, 1))
    assert damaged() == [] and is_built(place)
    (place / "weights.bin").write_bytes(b"other")
    assert damaged() == [place]


def test_build_that_was_killed_leaves_no_folder_after_the_next_build(cache: Path, builds: list[int]) -> None:
    (cache / "models").mkdir(parents=True)
    killed = cache / "models/.m.0123456789abcdef"
    others = [cache / "models/.m.2.0123456789abcdef", cache / "models/.mm.0123456789abcdef"]
    for folder in (killed, *others):
        folder.mkdir()
        (folder / "half").touch()
    build(cache / "models/m", builds)
    assert not killed.exists() and all(path.exists() for path in others)


def test_signal_between_the_creation_of_the_folder_and_the_build_leaves_nothing(
    cache: Path, builds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Path.mkdir

    def make_and_exit(path: Path, *arguments: object, **options: object) -> None:
        make(path, *arguments, **options)
        if path.name.startswith(".m."):
            raise SystemExit

    monkeypatch.setattr(Path, "mkdir", make_and_exit)
    with pytest.raises(SystemExit):
        build(cache / "models/m", builds)
    assert [path.name for path in (cache / "models").iterdir()] == [".m.lock"]
