"""Data that several tests share: real GLUE files where they are at hand, and a few hand-written sentences."""

import os
from pathlib import Path

import pytest

SENTENCES = {
    "train": """text,label
a fine film,good
"warm, funny and wise",good
the cast is superb,good
I laughed and I cried,good
see it twice,good
a dull film,bad
"cold, flat and long",bad
the cast is wasted,bad
I yawned and I left,bad
skip it,bad
""",
    "validation": """text,label
a superb film,good
a flat film,bad
funny and warm,good
dull and long,bad
""",
}


@pytest.fixture(scope="session")
def glue_dir() -> Path:
    """The folder with real GLUE files: `ADAPRUNE_GLUE`, else `../shared/glue` beside the repository."""
    folder = Path(os.environ.get("ADAPRUNE_GLUE") or Path(__file__).parents[2] / "shared" / "glue")
    if not (folder / "mrpc" / "train.parquet").is_file():
        pytest.skip(f"no GLUE files in {folder}; set ADAPRUNE_GLUE to a folder with mrpc/train.parquet")
    return folder


@pytest.fixture
def ten_sentences(tmp_path: Path) -> Path:
    """A folder with train.csv, ten hand-written sentences in two classes, and validation.csv, four more."""
    folder = tmp_path / "ten_sentences"
    folder.mkdir()
    for split, table in SENTENCES.items():
        (folder / f"{split}.csv").write_text(table, encoding="utf-8")
    return folder
