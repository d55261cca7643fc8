"""Families of encoders: which run with every method and `topology.report`, and which are refused, and why.

`python -m tests.test_families` writes docs/families.md from what happens; the test holds the file to it.
"""

import math
import os
import re
import tempfile
import warnings
from pathlib import Path

import pytest
import torch
import transformers
from transformers import BertTokenizerFast

import adaprune
from adaprune import Run, apply_mask, load_encoder, load_mask, topology
from adaprune.masks import COMPONENTS, component_of, maskable
from adaprune.runs import METHODS, mask_path, read_record

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "docs" / "families.md"
SHAPE = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0}
COMMON = {**SHAPE, "intermediate_size": 48, "max_position_embeddings": 40}
RELATIVE = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
XLM = {"vocab_size": 60, "emb_dim": 32, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 40, "pad_index": 0}
T5 = {"vocab_size": 60, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
MARKS = {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
# What people call it -> the class of transformers, and its settings.
FAMILIES = {
    "BERT": ("BertModel", COMMON),
    "RoBERTa": ("RobertaModel", COMMON),
    "XLM-RoBERTa": ("XLMRobertaModel", COMMON),
    "CamemBERT": ("CamembertModel", COMMON),
    "DistilBERT": ("DistilBertModel", {"vocab_size": 60, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}),
    "ELECTRA": ("ElectraModel", {**COMMON, "embedding_size": 16}),
    "MPNet": ("MPNetModel", COMMON),
    "ALBERT": ("AlbertModel", {**COMMON, "embedding_size": 16}),
    "DeBERTa": ("DebertaModel", {**COMMON, **RELATIVE}),
    "DeBERTa-v2, -v3": ("DebertaV2Model", {**COMMON, **RELATIVE, "position_buckets": 8}),
    "DeBERTa-v2, -v3, shared keys": (
        "DebertaV2Model",
        {**COMMON, **RELATIVE, "position_buckets": 8, "share_att_key": True, "norm_rel_ebd": "layer_norm"},
    ),
    "ModernBERT": ("ModernBertModel", {**COMMON, **MARKS}),
    "T5, encoder alone": ("T5EncoderModel", T5),
    "T5 1.1, encoder alone": ("T5EncoderModel", {**T5, "feed_forward_proj": "gated-gelu"}),
    "ERNIE": ("ErnieModel", COMMON),
    "Megatron-BERT": ("MegatronBertModel", COMMON),
    "MobileBERT": (
        "MobileBertModel",
        {**COMMON, "embedding_size": 32, "intra_bottleneck_size": 32, "true_hidden_size": 32},
    ),
    "RoFormer": ("RoFormerModel", {**COMMON, "embedding_size": 32}),
    "XLM": ("XLMModel", XLM),
    "FlauBERT": ("FlaubertModel", XLM),
    "BigBird, full attention": ("BigBirdModel", {**COMMON, "attention_type": "original_full"}),
    "ESM": ("EsmModel", COMMON),
    "Longformer": ("LongformerModel", {**COMMON, "attention_window": 8}),
    "XLNet": ("XLNetModel", {"vocab_size": 60, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}),
    "SqueezeBERT": ("SqueezeBertModel", {**COMMON, "embedding_size": 32}),
    "ConvBERT": ("ConvBertModel", {**COMMON, "embedding_size": 32}),
    "FNet": ("FNetModel", {name: value for name, value in COMMON.items() if name != "num_attention_heads"}),
    "Funnel": (
        "FunnelModel",
        {"vocab_size": 60, "block_sizes": [1, 1], "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 48},
    ),
    "CANINE": ("CanineModel", {**COMMON, "max_position_embeddings": 40}),
    "LUKE": ("LukeModel", {**COMMON, "entity_vocab_size": 10, "entity_emb_size": 16}),
    "T5": ("T5Model", {**T5, "decoder_start_token_id": 0}),
    "BART": ("BartModel", {"vocab_size": 60, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2}),
    "GPT-2": ("GPT2Model", {"vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 4}),
}
WHOLE = (
    "DeBERTa",
    "DeBERTa-v2, -v3, shared keys",
    "ModernBERT",
    "T5, encoder alone",
)  # with every method; BERT: test_adapt.py
UNFIT = {"ia3": ("DeBERTa", "ModernBERT"), "bitfit": ("ModernBERT", "T5, encoder alone")}  # which say why
REFUSED = [*FAMILIES][[*FAMILIES].index("Longformer") :]
HEAD = """# Families of encoders

`python -m tests.test_families` makes this page. It builds a tiny random model of each family, loads it, runs adaprune
on it and calls `topology.report` on its mask. Families that do not work are refused when they are loaded, with the
sentence shown here. "Heads and blocks" means that the report also has statistics of attention heads and FFN blocks,
which need the six matrices of a layer as separate matrices; fused or gated ones are reported by matrix. The test runs
every method on DeBERTa, DeBERTa-v2 with shared keys, ModernBERT and T5 (tests/test_adapt.py on BERT), and adaprune and
wanda on each family. `ia3` is refused if keys, values or FFN units have no matrix of their own (DeBERTa, ModernBERT),
and `bitfit` if there are no biases (ModernBERT, T5). All families learn in bfloat16 but
DeBERTa, which needs `precision=fp32`. `compact` and `export` know the first seven, the runtime `sparse` all.

| family | `model_type` | matrices of a layer | `topology.report` |
|---|---|---|---|
"""


def made(family: str, folder: Path) -> str:
    """A tiny random model of the family in ``folder``, with a tokenizer of 60 words."""
    kind, settings = FAMILIES[family]
    torch.manual_seed(0)
    cls = getattr(transformers, kind)
    cls(cls.config_class(**settings)).save_pretrained(folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{index}" for index in range(55))]
    BertTokenizerFast(vocab={word: index for index, word in enumerate(words)}).save_pretrained(folder)
    return str(folder)


def data(folder: Path) -> None:
    """Sixteen short texts or pairs of one to four words, in two classes, and six more."""
    for name in ("one", "two"):
        (folder / name).mkdir()
        for split, rows in (("train", range(16)), ("validation", range(16, 22))):
            texts = [" ".join(f"word{(3 * n + k) % 50}" for k in range(1 + n % 4)) for n in rows]
            pair = [f"word{n},{text}" if name == "two" else text for n, text in zip(rows, texts, strict=True)]
            head = "text,text_pair,label" if name == "two" else "text,label"
            lines = [head, *(f"{text},{'ab'[n % 2]}" for n, text in enumerate(pair))]
            (folder / name / f"{split}.csv").write_text("\n".join(lines) + "\n")


def asked(method: str, **fields) -> Run:
    task = "two" if method == "zero_shot" else "one"
    small = {"epochs": 1, "batch_size": 4, "max_length": 16, "results_dir": "out", "precision": "fp32"}
    return Run(**{"task": task, "model": "m", "method": method, **small, **fields})


def told(family: str) -> str:
    """The family's line of the table, of the model in ``m`` and its run of adaprune."""
    encoder = load_encoder("m").model
    count = {part: 0 for part in COMPONENTS}
    for name in maskable(encoder):
        count[component_of(name)] += 1
    layers = encoder.config.num_hidden_layers if family != "ALBERT" else 1
    parts = ", ".join(
        f"{count[part] // layers} x {part}" if count[part] > layers else part for part in COMPONENTS if count[part]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = topology.report(load_mask(mask_path(asked("adaprune"))), progress=False)
    reported = "heads and blocks" if len(report.heads) else "matrices"
    return f"| {family} | `{encoder.config.model_type}` | {parts} | {reported} |"


def refusal(family: str, folder: Path) -> str:
    """The line of a family that is refused: its sentence, without the name of the folder."""
    with pytest.raises(ValueError) as refused:
        load_encoder(made(family, folder))
    name = getattr(transformers, FAMILIES[family][0]).config_class.model_type
    assert name in str(refused.value), str(refused.value)
    why = str(refused.value).partition("cannot be adapted: ")[2].partition(". Choose")[0] or "it is not an encoder"
    return f"| {family} | `{name}` | refused: {why} | |"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data(tmp_path)
    return tmp_path


@pytest.mark.filterwarnings("ignore:layer 0.* only the matrices are reported")
@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in REFUSED])
def test_a_family_runs(here, family):
    made(family, here / "m")
    for method in METHODS if family in WHOLE else ("adaprune", "wanda"):
        if method in ("lora", "ia3"):
            pytest.importorskip("peft", reason="lora and ia3 need peft, of the extra adaprune[methods]")
        run = asked(method)
        if family in UNFIT.get(method, ()):
            with pytest.raises(
                ValueError, match=f"method '{method}' .* model 'm' .family {family.lower()[:2]}.* has no"
            ):
                adaprune.adapt(run)
            continue
        record = adaprune.adapt(run)
        assert record["weights_intact"] is run.kind.weights_intact
        if not run.kind.mask:
            continue
        scope = sum(module.weight.numel() for module in maskable(load_encoder("m").model).values())
        assert (record["mask"]["total"], record["mask"]["kept"]) == (scope, round(scope / 2))
        if run.kind.weights_intact:
            mask = load_mask(mask_path(run))
            report = topology.report(mask, progress=False)
            assert report.matrices["kept"].sum() == mask.kept and len(report.matrices) == len(mask.masks)
    assert told(family) in TABLE.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in REFUSED])
def test_a_family_learns_in_bfloat16_or_says_that_it_cannot(here, family):
    made(family, here / "m")
    run = asked("adaprune", precision="bf16")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a processor without instructions for it
        if family == "DeBERTa":
            with pytest.raises(ValueError, match="precision='bf16' does not work with deberta models"):
                adaprune.adapt(run)
        else:
            single = adaprune.adapt(asked("adaprune"))
            losses = [
                [point["loss"] for point in record["curve"] if "loss" in point]
                for record in (single, adaprune.adapt(run))
            ]
            assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], abs=0.03)


@pytest.mark.parametrize("family", ["T5, encoder alone", "ModernBERT", "DeBERTa", "XLM"])
def test_word_embeddings_of_a_family_are_masked_where_they_are_read(here, family):
    """The logits of the learning model are those of the mask file on the base, and the table's mask counts."""
    made(family, here / "m")
    run = asked("adaprune", scope="encoder+embeddings", sparsity=0.9)
    record = adaprune.adapt(run)
    mask = load_mask(mask_path(run))
    assert "embed" in record["mask"]["per_component"]
    adapted = apply_mask(load_encoder("m").model, mask)
    task = adaprune.load_task("one")
    batch = load_encoder("m").tokenizer(list(task.splits["validation"]["text"]), padding=True, return_tensors="pt")
    with torch.no_grad():
        score = task.metrics(adapted(**batch).logits, task.splits["validation"]["label"])
    assert math.isclose(score["accuracy"], record["metrics"]["validation"]["accuracy"])
    with torch.no_grad():
        before = adapted(**batch).logits
        adapted.encoder.get_input_embeddings().weight.zero_()
        assert not torch.equal(adapted(**batch).logits, before)
    assert read_record(Path("out") / f"{run.name}.json") == record


@pytest.mark.parametrize("family", REFUSED)
def test_a_family_is_refused_by_name_when_loaded(tmp_path, family):
    line = refusal(family, tmp_path)
    assert line in TABLE.read_text(encoding="utf-8").splitlines()


def test_the_table_has_every_family():
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    assert [found[1] for line in lines if (found := re.match(r"\| ([A-Z].*?) \| `", line))] == list(FAMILIES)


def main() -> None:
    """Writes docs/families.md."""
    warnings.simplefilter("ignore")
    lines = []
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            if family in REFUSED:
                lines.append(refusal(family, Path(folder)))
                continue
            data(Path(folder))
            made(family, Path(folder) / "m")
            adaprune.adapt(asked("adaprune"))
            lines.append(told(family))
    TABLE.write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
