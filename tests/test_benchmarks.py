"""The step-cost benchmark runs on a tiny shape and its arithmetic is right; no test looks at a time."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import scipy.sparse
import torch

from adaprune import AdaptationHead, Run, keep_top, load_encoder, load_mask, save_mask
from adaprune.masks import maskable
from adaprune.runs import mask_path
from benchmarks import (
    anchor,
    contenders,
    inference,
    kernels,
    mask_size,
    plan_cost,
    step_cost,
    switch_cost,
    topology_cost,
)
from benchmarks.step_cost import REFERENCE, VARIANTS, judge, ratios, summary
from tests.deploy import test_flips

ROOT = Path(__file__).parents[1]


@pytest.fixture
def measured():
    """Made-up seconds and bytes: adaprune is faster in the median and leaner, with embeddings it is neither."""
    seconds = {REFERENCE: [2.0, 4.0, 2.0], "adaprune": [1.0, 4.0, 1.5], "adaprune_embeddings": [3.0, 3.0, 3.0]}
    memory = {REFERENCE: 1000, "adaprune": 550, "adaprune_embeddings": 551}
    return summary(seconds, memory)


def test_ratios_are_formed_round_by_round():
    # the ratio of the medians would be 3 / 2
    assert ratios([1.0, 3.0, 8.0], [2.0, 1.0, 4.0]) == {"median": 2.0, "least": 0.5, "greatest": 3.0}


def test_summary_relates_to_fine_tuning(measured):
    assert measured[REFERENCE]["seconds_ratio"] == {"median": 1.0, "least": 1.0, "greatest": 1.0}
    assert measured["adaprune"]["seconds_ratio"]["median"] == 0.75
    assert measured["adaprune"]["median_seconds"] == 1.5
    assert measured["adaprune"]["memory_ratio"] == 0.55


def test_bars_are_judged_at_their_limits(measured):
    verdicts = judge({"bert-base-8x128": measured})
    reached = {(bar["what"], bar["variants"]): bar["reached"] for bar in verdicts}
    assert reached == {
        ("seconds", "adaprune"): True,
        ("seconds", "adaprune_embeddings"): False,
        ("memory", "adaprune"): True,
        ("memory", "adaprune_embeddings"): False,
    }


def test_bars_that_were_not_measured_are_left_out(measured):
    assert judge({"tiny-2x8": measured}) == []
    assert judge({"bert-base-8x128": summary({REFERENCE: [1.0]}, {})}) == []


@pytest.mark.parametrize("rule", ["adam", "adafactor"])
def test_a_tiny_run_reports_every_variant(rule, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(step_cost.torch, "set_num_threads", lambda threads: None)  # other tests keep theirs
    path = tmp_path / "cost.json"
    options = ["--shapes", "tiny-2x8", "--rounds", "2", "--no-memory", "--rule", rule, "--device", "cpu"]
    assert step_cost.main([*options, "--check", "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    rows = found["shapes"]["tiny-2x8"]
    assert tuple(rows) == VARIANTS
    for row in rows.values():
        assert len(row["seconds"]) == 2 and min(row["seconds"]) > 0
        ratio = row["seconds_ratio"]
        assert ratio["least"] <= ratio["median"] <= ratio["greatest"]
    assert found["bars"] == [] and found["environment"]["rule"] == rule
    printed = capsys.readouterr().out
    assert all(variant in printed for variant in VARIANTS)


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from Linux's /proc")
def test_peak_memory_is_what_a_step_takes_above_the_model():
    """A step that fills 64 MiB and frees them: those, and little more. In a process of its own, as in the benchmark:
    of a long one the system may take cold pages away meanwhile, and what is resident falls."""
    measured = """
import torch
from benchmarks import step_cost
step_cost.stepper = lambda *given: lambda: float(torch.ones(2**24)[0])
print(step_cost.peak_memory("adaprune", step_cost.SHAPES["tiny-2x8"], "adafactor", "cpu", steps=2))
"""
    done = subprocess.run([sys.executable, "-c", measured], check=True, capture_output=True, text=True, cwd=ROOT)
    assert 0.9 * 2**26 < int(done.stdout) < 1.5 * 2**26


def test_check_fails_only_where_asked(monkeypatch):
    missed = {"shape": "s", "variants": "v", "what": "seconds", "limit": 1.0, "found": 2.0, "reached": False}
    monkeypatch.setattr(step_cost, "judge", lambda results: [missed])
    monkeypatch.setattr(step_cost.torch, "set_num_threads", lambda threads: None)
    monkeypatch.setattr(step_cost, "seconds_in_turns", lambda *given: {REFERENCE: [1.0]})
    options = ["--shapes", "tiny-2x8", "--no-memory"]
    assert step_cost.main(options) == 0
    assert step_cost.main([*options, "--check"]) == 1


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks by the old name
def test_switch_cost_on_a_tiny_shape(tmp_path, capsys, monkeypatch):
    """It reports every way and every sparsity; no test looks at a time."""
    pytest.importorskip("peft", reason="LoRA needs peft: pip install adaprune[methods]")
    monkeypatch.setattr(switch_cost.torch, "set_num_threads", lambda threads: None)
    path = tmp_path / "switch.json"
    assert switch_cost.main(["--shape", "tiny", "--rounds", "2", "--check", "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    assert set(found["bytes"]) == {"mask", "lora", "checkpoint"}
    kinds = {"mask, kept", "mask, not kept", "mask, keep=0", "mask, no switch", "sparse, kept", "sparse, not kept"}
    assert set(found["switch"]) == kinds | {"a pass of apply_mask", "lora", "lora, merged", "checkpoint"}
    assert all(found["switch"][way]["clock_seconds"] > 0 for way in ("a pass of apply_mask", "lora", "checkpoint"))
    assert [row["sparsity"] for row in found["coding"]] == list(switch_cost.SPARSITIES)
    assert all(row["coded_bytes"] <= row["plain_bytes"] < row["file_bytes"] for row in found["coding"])
    assert "checkpoint" in capsys.readouterr().out


def test_switch_cost_is_judged_at_its_limits():
    row = {"sparsity": 0.5, "bound_bytes": 100, "head_bytes": 10, "file_bytes": 64_113}
    row |= {"encode_seconds": 3.0, "decode_seconds": 3.1}
    found = {"mask, kept": 0.004, "mask, not kept": 0.0251, "mask, no switch": 0.001, "a pass of apply_mask": 0.05}
    switches = {way: {"processor_seconds": seconds} for way, seconds in found.items()}
    verdicts = switch_cost.judge("bert-base", switches, [row])
    assert [bar["reached"] for bar in verdicts] == [True, False, True, True, True, False]
    switches["mask, no switch"]["processor_seconds"] = 0.0011
    assert [bar["reached"] for bar in switch_cost.judge("bert-base", switches, [row])][2] is False
    assert switch_cost.judge("tiny", {}, []) == []


def test_topology_cost_measures_a_layer_of_bert_base():
    found = topology_cost.measure(0.99, layers=1)
    assert found["connections"] == 4 * 768 * 768 + 2 * 768 * 3072
    assert abs(found["kept"] / found["connections"] - 0.01) < 1e-3
    assert found["seconds"] > 0 and found["peak_memory_bytes"] > 2**20


def test_inference_on_a_tiny_shape(tmp_path, capsys, monkeypatch):
    """It reports every way at every batch, and that logits agree is checked on the way; no test looks at a time."""
    monkeypatch.setattr(inference.torch, "set_num_threads", lambda threads: None)
    path = tmp_path / "inference.json"
    options = ["--shapes", "tiny", "--threads", "1", "--sparsities", "0.5", "0.97", "--rounds", "2", "--no-onnx"]
    assert inference.main([*options, "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    ways = {(row["batch"], row["sparsity"], row["way"]) for row in found["rows"]}
    rivals = {inference.REFERENCE, "dense bfloat16", "int8, torch"}
    expected = {(batch, None, way) for batch in inference.TINY for way in rivals}
    for sparsity in (0.5, 0.97):
        ours = (inference.REFERENCE, *contenders.OURS, *([contenders.UNITS] if sparsity == 0.5 else []))
        expected |= {(batch, sparsity, way) for batch in inference.TINY for way in ours}
    assert ways == expected
    assert all(min(row["seconds"]) > 0 and len(row["seconds"]) == 2 for row in found["rows"])
    judged = [bar["what"] for bar in found["bars"]]
    assert sum(what.startswith("auto, magnitude at") for what in judged) == 2 * 2
    assert [what for what in judged if "int8" in what] == [
        f"ours beside int8 at 0.97, tiny {batch} threads 1" for batch in inference.TINY
    ]
    assert "compact, sparse" in capsys.readouterr().out


@pytest.mark.skipif(not contenders.has_onnx(), reason="onnxruntime is an extra: pip install adaprune[onnx]")
@pytest.mark.filterwarnings("ignore")  # of torch's exporter
def test_inference_beside_onnxruntime(tmp_path):
    made = contenders.onnx_sessions("tiny", 1, tmp_path)
    assert set(made) == {"float32, onnxruntime", "int8, onnxruntime"}
    assert set(contenders.units("tiny", 1, tmp_path, onnx=True)) == {contenders.UNITS, contenders.UNITS_ONNX}
    inputs = contenders.batch_of(inference.TINY["3x8"], model := contenders.dense("tiny"))
    (logits,) = made["float32, onnxruntime"].run(None, {name: ids.numpy() for name, ids in inputs.items()})
    assert logits == pytest.approx(model(**inputs).logits.detach().numpy(), abs=1e-4)


def test_inference_is_judged_at_its_limits():
    def row(way, faster, sparsity=0.97, shape="minilm", batch="1x32", threads=1):
        about = {"shape": shape, "threads": threads, "batch": batch, "sparsity": sparsity, "way": way, "mask": ""}
        return {**about, "faster": {"median": faster}}

    rows = [row("int8, torch", 2.9, sparsity=None), row("sparse", 2.0), row("auto", 0.95), row("compact, sparse", 3.0)]
    assert [(bar["found"], bar["limit"], bar["reached"]) for bar in inference.judge(rows)] == [
        (3.0, 3.0, True),
        (3.0, 2.9, True),
        (0.95, 0.95, True),
    ]
    slow = [row("sparse", 1.69, 0.9), row("auto", 0.94, 0.9)]
    assert [bar["reached"] for bar in inference.judge(slow)] == [False, False]
    assert inference.judge([row("sparse", 0.1, 0.9, batch="8x128"), row("sparse", 0.1, 0.9, shape="tiny")]) == []


def test_inference_times_are_related_round_by_round():
    rows = inference.summary({inference.REFERENCE: [2.0, 6.0, 3.0], "sparse": [1.0, 2.0, 3.0]})
    assert rows["sparse"]["faster"] == {"median": 2.0, "least": 1.0, "greatest": 3.0}
    assert rows["sparse"]["median_seconds"] == 2.0


# ---- masks as differences


def test_kernels_give_the_dense_product(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    written = tmp_path / "kernels.json"
    tiny = ["--shapes", "8x12", "--tokens", "1", "5", "--sparsities", "0.5", "--times", "1", "--rounds", "2"]
    assert kernels.main([*tiny, "--json", str(written)]) == 0
    rows = json.loads(written.read_text())["rows"]
    ways = {"dense float32", "embedding_bag", "CSR", "CSR, x left", "COO", "BSR", "scipy"}
    assert {(row["way"], row["tokens"]) for row in rows} == {(way, tokens) for way in ways for tokens in (1, 5)}
    assert all(row["faster"]["least"] <= row["faster"]["median"] <= row["faster"]["greatest"] for row in rows)
    monkeypatch.setattr(kernels, "csr_array", lambda weight: 2 * scipy.sparse.csr_array(weight))
    with pytest.raises(AssertionError, match="scipy: the product differs by"):
        kernels.main(tiny)


def test_sizes_of_masks_are_those_of_their_files(tmp_path, tiny_model_dir, capsys):
    """A mask near the largest weights, and one at random, on a tiny base that the card names."""
    encoder = load_encoder(str(tiny_model_dir)).model
    head = AdaptationHead(2, 16, 2, "linear").state_dict()
    card = {"labels": ["a", "b"], "model": str(tiny_model_dir)}
    near = test_flips.near(encoder, 0.5, 0.02)
    total = sum(mask.numel() for mask in near.values())
    random = {
        name: torch.rand(mask.shape, generator=torch.Generator().manual_seed(1)) < 0.5 for name, mask in near.items()
    }
    for name, masks in {"near": near, "random": random}.items():
        path = save_mask(tmp_path / "masks" / f"{name}.safetensors", masks, head, card, encoder)
        assert load_mask(path).card["format"] == {"near": 3, "random": 2}[name]
    written = tmp_path / "sizes.json"
    assert mask_size.main([str(tmp_path), "--shape", "tiny", "--json", str(written)]) == 0
    rows = {row["name"]: row for row in json.loads(written.read_text())["rows"]}
    assert set(rows) == {"near", "random", "made up, tiny"} and "version 1" in capsys.readouterr().out
    for name, masks in {"near": near, "random": random}.items():
        row, flipped = rows[name], sum(int((a ^ b).sum()) for a, b in zip(masks.values(), near.values(), strict=True))
        assert row["weights"] == total and row["bits"] == sum(-(-mask.numel() // 8) for mask in masks.values())
        assert (name == "near") == (row["stored"] == "version 2")
        assert row["bound"] <= row["version 2"]
        assert flipped == 0 or row["flips"] > 0.4
    card = load_mask(tmp_path / "masks" / "near.safetensors").card
    data = sum(n for *_, n in [*card["flips"]["rows"], *card["flips"]["classes"]]) + card["flips"]["frame"]
    said = {key: card["flips"][key] for key in ("bins", "frame", "rows", "classes")}
    assert rows["near"]["version 2"] == data + len(json.dumps(said))


def test_bars_of_mask_sizes():
    row = {
        "name": "x",
        "stored": "version 2",
        "version 2": 52_400,
        "bound": 48_000,
        "encode_seconds": 9,
        "decode_seconds": 9,
    }
    assert mask_size.judged(row, "bert-base")  # 1.05 * 48,000 + 2,000 = 52,400
    assert not mask_size.judged(row | {"version 2": 52_401}, "bert-base")
    assert mask_size.judged(row | {"version 2": 90_000, "stored": "version 1"}, "bert-base")
    made = row | {"name": "made up, bert-base", "encode_seconds": 4.0, "decode_seconds": 1.5}
    assert mask_size.judged(made, "bert-base") and not mask_size.judged(made | {"decode_seconds": 1.6}, "bert-base")


@pytest.mark.usefixtures("forget")
def test_an_anchor_holds_theta(tmp_path, ten_sentences, tiny_model_dir, capsys, monkeypatch):
    monkeypatch.chdir(ten_sentences.parent)  # short names
    common = {"task": ten_sentences.name, "model": str(tiny_model_dir), "results_dir": str(tmp_path), "head": "linear"}
    run = Run(**common, epochs=4, batch_size=2, learning_rate=1e-2, max_length=16)
    settings = {"free": (0.0, float("inf")), "still": (1.0, float("inf")), "narrow": (0.0, 0.3), "shut": (0.0, -1.0)}
    rows = anchor.compare([run], settings)
    assert list(rows["method"]) == ["adaprune", *settings]
    encoder = load_encoder(str(tiny_model_dir)).model
    sizes = {name: module.weight.abs() for name, module in maskable(encoder).items()}
    start = keep_top(sizes, 0.5)
    masks = {m: load_mask(mask_path(run.model_copy(update={"method": m}))).masks for m in rows["method"]}
    away = {m: {n: kept ^ start[n] for n, kept in found.items()} for m, found in masks.items()}
    counts = {m: sum(int(flips.sum()) for flips in found.values()) for m, found in away.items()}
    assert all(torch.equal(masks["free"][n], kept) for n, kept in masks["adaprune"].items())
    assert counts["adaprune"] > 0 and counts["still"] == counts["shut"] == 0
    assert 0 < counts["narrow"] < counts["adaprune"]
    size, kept = (torch.cat([found[n].flatten() for n in sizes]) for found in (sizes, masks["narrow"]))
    outside = (size / size[torch.cat([start[n].flatten() for n in sizes])].min()).log().abs() > 0.3 + 1e-4
    assert (
        size[outside & kept].min() > size[outside & ~kept].max()
    )  # there theta is in the order of |w| as at the start
    size, kept = (torch.cat([found[n].flatten() for n in sizes]) for found in (sizes, masks["adaprune"]))
    assert size[outside & kept].min() < size[outside & ~kept].max()


def test_a_plan_is_costed_by_hand():
    """1,000 rows of which 900 train, batches of 8: 113 a pass; imp at 0.5 has 4 rounds; a GPU's step is 0.1 s."""
    shape = {
        name: {"median_seconds": seconds, "memory_bytes": size}
        for name, seconds, size in [
            ("finetune", 2.0, 30), ("adaprune", 1.0, 20), ("adaprune_embeddings", 3.0, 25), ("features", 0.5, 10)
        ]
    }  # fmt: skip
    common = {"task": "movie_reviews", "max_train_examples": 64, "epochs": 2, "batch_size": 8}
    runs = [Run(method=method, sparsity=0.5, **common) for method in ("adaprune", "imp", "random")]
    found = plan_cost.cost(runs, shape, 100, 0.1, {"movie_reviews": 1000}, vector=0).set_index("method")
    assert list(found["steps"]) == [2 * 113, 4 * 2 * 113, 0] and list(found["bytes_above_model"]) == [20, 30, 10]
    # the forward pass of 900 rows: 112.5 batches at a quarter of a step
    assert list(found["hours_gpu"] * 36000) == pytest.approx([226, 904 + 112.5 / 4, 112.5 / 4])
    hours = found["hours_two_cores"]
    reading = hours["random"]  # 900 t 0.5 / 100, and adaprune's is 226 (8 t) 1 / 100: t cancels
    assert hours["adaprune"] / reading == pytest.approx(226 * 8 / 450)
    assert (hours["imp"] - reading) / hours["adaprune"] == pytest.approx(8)
    # the vectors of 1,000 rows, held-out ones too, where a head is trained on a frozen encoder; rows are of each run
    found = plan_cost.cost(runs, shape, 100, 0.1, {"movie_reviews": 1000}, vector=8).set_index("method")
    assert list(found["bytes_above_model"]) == pytest.approx([20, 8000, 8000])
    more = runs[0].model_copy(update={"max_train_examples": 128})
    steps = plan_cost.cost([runs[0], more], shape, 100, 0.1, {}, vector=0)["steps"].item()
    assert steps == 2 * (math.ceil(58 / 8) + math.ceil(115 / 8))


def test_a_plan_of_unknown_cost_is_refused():
    with pytest.raises(ValueError, match="no passes are known of 'smp'"):
        plan_cost.steps_of(Run(method="smp"), 100)
