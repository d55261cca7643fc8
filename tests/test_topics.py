"""The task of six topics: a package made by hand, in the form that dpkg gives it."""

import hashlib
import io
import tarfile

import pandas as pd
import pytest

from adaprune.data import load_task
from benchmarks import topics


def package(files: dict[str, str]) -> bytes:
    """A .deb with these files among the fortunes: an ar archive, each member padded to an even length."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"./usr/share/games/fortunes/{name}")
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    members = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", "data.tar.xz": packed.getvalue()}
    found = b"!<arch>\n"
    for name, content in members.items():
        found += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
        found += content + b"\n" * (len(content) % 2)
    return found


@pytest.fixture
def deb(tmp_path, monkeypatch):
    files = {
        topic: "\n%\n".join(f"{topic} is\n\ta thing, {n} — twice" for n in [*range(9), 0]) + "\n%\n"
        for topic in topics.TOPICS
    }
    made = package(files | {"wisdom": "none of ours\n%\n"})
    monkeypatch.setattr(topics, "SHA256", hashlib.sha256(made).hexdigest())
    monkeypatch.setattr(topics, "VALIDATION", 12)
    (tmp_path / topics.PACKAGE).write_bytes(made)
    return tmp_path / topics.PACKAGE


def test_each_text_once_with_its_collection_as_label(deb, tmp_path):
    out = tmp_path / "topics"
    assert topics.main([str(deb), "--folder", str(out)]) == 0
    tables = {split: pd.read_csv(out / f"{split}.csv") for split in ("train", "validation")}
    assert [len(table) for table in tables.values()] == [42, 12]
    rows = pd.concat(tables.values())
    assert sorted(map(tuple, rows.to_numpy().tolist())) == sorted(
        (f"{topic} is a thing, {n} — twice", topic) for topic in topics.TOPICS for n in range(9)
    )
    before = {split: (out / f"{split}.csv").read_bytes() for split in tables}
    assert topics.main([str(deb), "--folder", str(out)]) == 0
    assert {split: (out / f"{split}.csv").read_bytes() for split in tables} == before  # the same split each time
    assert list(load_task(str(out)).labels) == topics.TOPICS


def test_another_package_is_refused(deb, tmp_path, capsys):
    deb.write_bytes(deb.read_bytes() + b"\n")
    assert topics.main([str(deb), "--folder", str(tmp_path / "topics")]) == 1
    assert f"not {topics.PACKAGE}: its sha256 is " in capsys.readouterr().err
    assert topics.main([str(tmp_path / "none.deb"), "--folder", str(tmp_path / "topics")]) == 1
    assert "No such file" in capsys.readouterr().err
    assert not (tmp_path / "topics").exists()
