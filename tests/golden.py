"""Fingerprints of what tiny seeded runs of every method leave: `python tests/golden.py` prints them as JSON,
to be put into golden.json under this kind of processor (`KIND` in test_golden.py)."""

import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path

import torch

import adaprune

METHODS = (
    "adaprune finetune features random magnitude movement soft_movement movement_finetune smp edge_popup "
    "threshold_mask bernoulli wanda snip gmp imp gmp_finetune imp_finetune lora"
).split()
VARIANTS = [
    *({"method": method, "recipe": recipe} for method in METHODS for recipe in ("tuned", "paper")),
    *({"initial_theta": kind} for kind in "constant normal uniform relative activation gradient".split()),
    {"temperature": 0.1},
    {"reach": 0.8},
    {"allocation": "equal"},
    {"allocation": "scores"},
    {"head": "linear"},
    {"scope": "encoder+embeddings"},
    {"scope": "encoder+embeddings", "method": "smp"},
    {"scope": "encoder+embeddings", "method": "wanda"},
    {"method": "smp", "allocation": "equal"},
    {"method": "magnitude", "allocation": "equal"},
    {"ablation": "head"},
    {"ablation": "shuffle"},
    {"ablation": "head", "noise": 0.01},
    {"teacher": "finetune"},
    {"sparsity": 0.9, "seed": 1},
]


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fingerprint(record: dict, mask_file: Path) -> dict[str, str | None]:
    """Hashes of the mask's bits, of the counts and scores in the record, and of the losses on the way."""
    bits = None
    if record["mask"] is not None and record["weights_intact"]:
        masks = adaprune.load_mask(mask_file).masks
        digest = hashlib.sha256()
        for name in sorted(masks):
            digest.update(name.encode() + masks[name].numpy().tobytes())
        bits = digest.hexdigest()[:16]
    curve = [[point.get(key) for key in ("step", "loss", "sparsity", "selection_loss")] for point in record["curve"]]
    scores = [record["metrics"], record["mask"], record["weights_intact"], record["cost"]["steps"]]
    return {"mask": bits, "record": sha(json.dumps(scores, sort_keys=True)), "curve": sha(json.dumps(curve))}


def fingerprints(task: Path, model: Path, results_dir: Path) -> dict[str, dict[str, str | None]]:
    """The fingerprint of each variant, by its settings; run with one thread."""
    small = {"max_length": 16, "batch_size": 2, "epochs": 2.0, "results_dir": str(results_dir)}
    found, teacher = {}, ""
    for fields in VARIANTS:
        asked = {**fields, "teacher": teacher} if "teacher" in fields else fields
        run = adaprune.Run(task=str(task), model=str(model), **small, **{"head": "mlp", **asked})
        record = adaprune.adapt(run)
        key = " ".join(f"{name}={value}" for name, value in fields.items())
        found[key] = fingerprint(record, results_dir / "masks" / f"{run.name}.safetensors")
        if fields == {"method": "finetune", "recipe": "tuned"}:
            teacher = str(results_dir / f"{run.name}.json")
    return found


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tests.small_data import ten_sentences, tiny_model

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        ten_sentences(Path("ten"))
        tiny_model(Path("tiny"))
        print(json.dumps(fingerprints(Path("ten"), Path("tiny"), Path("out")), indent=1))
