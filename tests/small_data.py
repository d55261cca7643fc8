"""Ten hand-written sentences, pairs of them, and a random BERT that knows their words, written into a folder."""

import re
from pathlib import Path

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


def ten_sentences(folder: Path) -> Path:
    """Writes train.csv, ten sentences in two classes, and validation.csv, four more."""
    folder.mkdir()
    for split, table in SENTENCES.items():
        (folder / f"{split}.csv").write_text(table, encoding="utf-8")
    return folder


def pairs(folder: Path) -> Path:
    """Writes train.csv and validation.csv of pairs of the sentences: whether both are of one class."""
    folder.mkdir()
    for split, table in SENTENCES.items():
        rows = [row.rsplit(",", 1) for row in table.splitlines()[1:]]
        kinds = {True: "alike", False: "unlike"}
        both = zip(rows, rows[1:] + rows[:1], strict=True)
        lines = [f"{one},{other},{kinds[kind == its]}" for (one, kind), (other, its) in both]
        (folder / f"{split}.csv").write_text("\n".join(["text,text_pair,label", *lines]) + "\n", encoding="utf-8")
    return folder


def tiny_model(folder: Path) -> Path:
    """Writes a random BERT of two layers, 16 wide, and a tokenizer that knows the ten sentences' words."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir(exist_ok=True)
    words = sorted(set(re.findall(r"[a-z]+|,", "".join(SENTENCES.values()).lower())))
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(vocabulary), **sizes, max_position_embeddings=32)).save_pretrained(folder)
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder
