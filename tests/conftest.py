"""Data that several tests share: real GLUE files where they are at hand, and a few hand-written sentences."""

import os
import re
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


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random BERT of two layers, 16 wide, and a tokenizer that knows the ten sentences' words."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("tiny_bert")
    words = sorted(set(re.findall(r"[a-z]+|,", "".join(SENTENCES.values()).lower())))
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(vocabulary), **sizes, max_position_embeddings=32)).save_pretrained(folder)
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder
